"""``jaxalign compare``: every method from one fine-tuned model in a world whose gold reward is known, over seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from jaxalign import stats
from jaxalign.checkpoint import check_writable
from jaxalign.cli.judge_audit import check_matplotlib
from jaxalign.compare import arms, figures, measure
from jaxalign.compare.start import Setting, Start, begin
from jaxalign.errors import UserError
from jaxalign.evals.outcome import figure
from jaxalign.paths import write_whole
from jaxalign.recipes.run_directory import settings
from jaxalign.settings import check_ranges
from jaxalign.stats import Bootstrap

RANGES: dict[str, tuple[float, float]] = {"seeds": (1, 1000), "first_seed": (0, 10**6), "setting.n": (2, measure.MANY)}
RANGES |= dict.fromkeys(
    (f"setting.{name}" for name in ("pairs", "pretrain_steps", "sft_steps", "steps", "iterations")), (1, math.inf)
)
RANGES |= dict.fromkeys(
    (f"setting.{name}" for name in ("temperature", "beta", "learning_rate", "sft_learning_rate")), (1e-8, math.inf)
)
RANGES |= {"setting.held_out": (0.1, 0.9), "setting.price": (0, math.inf)}
COLUMNS = (
    ("gold", "gold"),
    ("proxy", "proxy"),
    ("win_rate", "win rate"),
    ("win_rate_lc", "LC win rate"),
    ("kl", "KL, nats"),
    ("knowledge", "knows"),
    ("fact_loss", "fact loss, nats"),
    ("perplexity", "perplexity"),
    ("over_refusal", "over-refuses"),
    ("compliance", "complies"),
    ("words", "words"),
)
"""Figures that the table shows, and what it calls them (LC: length-controlled)."""
FEW = 10
"""Items below which a bootstrap is not believed."""
FORMAT = 1
"""Of a line of results; another one where a figure comes to mean something else."""
SHARES = ("win_rate", "win_rate_lc", "knowledge", "over_refusal", "compliance")
"""Figures that cannot leave 0 to 1, nor can their intervals."""
COSTS = ("tokens", "seconds", "models", "peak memory")


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
    check_matplotlib(otherwise="")
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
        for line in run_seed(start, missing, console, began):
            lines.append(line)
            with results.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
    wanted = range(config.first_seed, config.first_seed + config.seeds)
    tell([line for line in lines if line["seed"] in wanted and line["method"] in chosen], chosen, output, console)
    console.print(f"{time.perf_counter() - began:.0f} s; table, figures and results are in {output}.")


def read_results(path: Path, setting: Setting) -> list[dict[str, Any]]:
    """What is done of this setting.

    Raises:
        UserError: if the file is of another setting, or holds anything else.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        same = all((line["format"], line["setting"]) == (FORMAT, settings(setting)) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} has a line that is no result of compare ({error}): remove it, or the file") from None
    if not same:
        raise UserError(f"{path} holds results of another setting or version: give another output, or remove it")
    return lines


def run_seed(start: Start, methods: Sequence[str], console: Console, began: float) -> Iterator[dict[str, Any]]:
    """A line of results for each method, with one answer to an instruction of each kind."""
    baseline = measure.answer(start, arms.sft_arm(start))
    for name in methods:
        aligned = arms.ARMS[name](start)
        mine = baseline if name == "sft" else measure.answer(start, aligned)
        bootstrap = Bootstrap(seed=start.seed)
        found = {
            each.name: figure(each, bootstrap=bootstrap) for each in measure.outcomes(start, aligned, baseline, mine)
        }
        found["win_rate_lc"] = measure.length_controlled(baseline, mine, bootstrap)
        line: dict[str, Any] = {"format": FORMAT, "seed": start.seed, "method": name}
        line["setting"] = settings(start.setting)
        line["figures"] = {key: each.plain() for key, each in found.items()}
        line |= measure.plain(aligned)
        line["samples"] = measure.samples(mine)
        if name == "best_of_n":
            line["curve"] = measure.best_of_n_curve(start)._asdict()
        console.print(f"seed {start.seed}: {name}, gold {found['gold'].value:.3f}, {time.perf_counter() - began:.0f} s")
        yield line


def across(lines: Sequence[dict[str, Any]], method: str, name: str) -> tuple[float, float, float]:
    """A figure's mean with its 95 % interval: Student's over seeds; of one seed, the bootstrap's over instructions.

    A bootstrap over fewer than ``FEW`` covers much less than it says, so there is none.
    """
    mine = [line["figures"][name] for line in lines if line["method"] == method and name in line["figures"]]
    if not mine:
        return math.nan, math.nan, math.nan
    values = np.array([each["value"] for each in mine], float)  # null, which the data left open, is NaN
    if len(mine) == 1:
        return float(values[0]), *(mine[0]["ci"] if mine[0]["ci"] and mine[0]["items"] >= FEW else (math.nan, math.nan))
    mean, low, high = stats.student(values)
    return (mean, max(low, 0.0), min(high, 1.0)) if name in SHARES else (mean, low, high)


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


def costs(lines: Sequence[dict[str, Any]], method: str) -> list[str]:
    """Tokens trained on, seconds, models in memory, and what training needs there: the mean over seeds."""
    mine = [line for line in lines if line["method"] == method]
    keys = ("tokens", "seconds", "models", "peak_bytes")
    tokens, seconds, models, peak = (float(np.mean([line[key] for line in mine])) for key in keys)
    return [f"{tokens / 1000:.0f} k", f"{seconds:.0f}", f"{models:.0f}", f"{peak / 2**20:.0f} MiB"]


def write_table(lines: Sequence[dict[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Every figure with its interval, as Markdown."""
    rows = [["method", *(shown for _, shown in COLUMNS), *COSTS]]
    rows.append(["---"] * len(rows[0]))
    for name in methods:
        values = [across(lines, name, key) for key, _ in COLUMNS]
        rows.append([name, *map(_shown, values)])
        rows[-1] += costs(lines, name)
    write_whole(path, "".join(f"| {' | '.join(row)} |\n" for row in rows))


def _shown(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
