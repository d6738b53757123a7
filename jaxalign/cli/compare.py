"""``jaxalign compare``: every method from one fine-tuned model in a world whose gold reward is known, over seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxalign.checkpoint import check_writable
from jaxalign.compare import arms, figures, measure
from jaxalign.compare.results import COLUMNS, COSTS, across, costs, read_results, run_seed, write_table
from jaxalign.compare.start import Setting, begin
from jaxalign.errors import UserError
from jaxalign.plotting import check_matplotlib
from jaxalign.settings import check_ranges

RANGES: dict[str, tuple[float, float]] = {"seeds": (1, 1000), "first_seed": (0, 10**6), "setting.n": (2, measure.MANY)}
RANGES |= dict.fromkeys(
    (f"setting.{name}" for name in ("pairs", "pretrain_steps", "sft_steps", "steps", "iterations")), (1, math.inf)
)
RANGES |= dict.fromkeys(
    (f"setting.{name}" for name in ("temperature", "beta", "learning_rate", "sft_learning_rate")), (1e-8, math.inf)
)
RANGES |= {"setting.held_out": (0.1, 0.9), "setting.price": (0, math.inf)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare methods in the testbed: a small world whose gold reward is known. Nothing is downloaded.

    Args:
        setting: the world, its annotators, and how much each method may learn from
        methods: which to compare; sft is always among them
        seeds: how many seeds; a finished one is not run again
        first_seed: the first of them
        output: directory of results.jsonl, table.md and the figures
    """

    setting: Setting = dataclasses.field(default_factory=Setting)
    methods: list[str] = dataclasses.field(default_factory=lambda: list(arms.ARMS))
    seeds: int = 5
    first_seed: int = 0
    output: str = "runs/compare"


def run(config: Config) -> None:
    """All seeds and methods that are missing, then the table and the figures of all."""
    check_ranges(config, RANGES)
    unknown = [name for name in config.methods if name not in arms.ARMS]
    if unknown:
        raise UserError(f"methods: {unknown[0]!r} is none; those are {', '.join(arms.ARMS)}")
    output = Path(config.output).expanduser()
    check_matplotlib()
    check_writable(output)
    console = Console(highlight=False, soft_wrap=True)
    chosen = [name for name in arms.ARMS if name == "sft" or name in config.methods]
    results = output / "results.jsonl"
    lines = read_results(results, config.setting)
    output.mkdir(parents=True, exist_ok=True)
    programs: dict[Any, Any] = {}
    began = time.perf_counter()
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        done = {line["method"] for line in lines if line["seed"] == seed}
        missing = [name for name in chosen if name not in done]
        if not missing:
            continue
        start = begin(config.setting, seed, programs)
        console.print(f"seed {seed}: pretrained and fine-tuned, {time.perf_counter() - began:.0f} s")
        for line in run_seed(start, missing, began, lambda line: console.print(line, markup=False)):
            lines.append(line)
            with results.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
    wanted = range(config.first_seed, config.first_seed + config.seeds)
    tell([line for line in lines if line["seed"] in wanted and line["method"] in chosen], chosen, output, console)
    console.print(f"{time.perf_counter() - began:.0f} s; table, figures and results are in {output}.")


def tell(lines: Sequence[dict[str, Any]], methods: Sequence[str], output: Path, console: Console) -> None:
    """The table on the terminal, and with all intervals as Markdown; the figures; samples."""
    write_table(lines, methods, output / "table.md")
    figures.methods(lines, methods, across, output / "methods.png")
    figures.overoptimisation(lines, output / "overoptimisation.png")
    table = Table("", *methods, title="on held-out instructions, with the 95 % interval of gold")
    for key, shown_as in COLUMNS:
        values = [across(lines, name, key) for name in methods]
        table.add_row(shown_as, *(f"{value:.2f}" for value, _, _ in values))
        if key == "gold":
            table.add_row("  from", *(f"{low:.2f}" for _, low, _ in values))
            table.add_row("  to", *(f"{high:.2f}" for _, _, high in values), end_section=True)
    spent = [costs(lines, name) for name in methods]
    for number, shown_as in enumerate(COSTS):
        table.add_row(shown_as, *(each[number] for each in spent))
    console.print(table)
    first = min(line["seed"] for line in lines)
    shown = {line["method"]: line["samples"] for line in lines if line["seed"] == first}
    for number, row in enumerate(shown["sft"]):
        console.print(f"\n{row['instruction']}", markup=False)
        for name in methods:
            text, value = shown[name][number]["answer"]
            console.print(f"  {name:<10} {value:+.2f}  {text}", markup=False)
    console.print()
