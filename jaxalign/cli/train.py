"""The commands that train: sft, reward, dpo, kto, ppo, grpo, online_dpo. Each calls the recipe of its name."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from jaxalign.cli.console import LiveReport, print_comparison, print_cost, print_samples
from jaxalign.tracking import METRICS_FILE, TIMINGS_FILE, read_jsonl


def run(recipe: Any, config: Any) -> None:
    """Runs a recipe and prints its result."""
    with LiveReport() as report:
        result = recipe.train(config, report=report)
    print_samples(result.samples, report.console)
    lines = read_jsonl(result.directory / METRICS_FILE)
    counts = [line["data/held_out/examples"] for line in lines if "data/held_out/examples" in line]
    print_comparison(result.before, result.after, f"{counts[0]:.0f}" if counts else "all", report.console)
    print_calibration(result.after, report.console)
    print_cost(read_jsonl(result.directory / TIMINGS_FILE), report.console)


def print_calibration(after: dict[str, Any], console: Any) -> None:
    """Prints predicted probabilities and observed frequencies of a reward model's held-out pairs."""
    if "eval/bins" not in after:
        return
    table = Table(title="held-out pairs: predicted probability, observed frequency")
    for column in ("probability", "pairs", "mean predicted", "observed"):
        table.add_column(column, justify="right")
    for row in after["eval/bins"]:
        low, high = f"{row['low']:.1f}", f"{row['high']:.1f}"
        table.add_row(f"{low} to {high}", str(row["size"]), f"{row['probability']:.3f}", f"{row['outcome']:.3f}")
    console.print(table)
