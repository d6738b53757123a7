"""``jaxalign compare``: all methods from one fine-tuned model, in a world whose gold reward is known, over seeds."""

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
from jaxalign.compare.figures import draw_methods, draw_overoptimisation
from jaxalign.compare.measure import CANDIDATES
from jaxalign.compare.methods import METHODS
from jaxalign.compare.results import COLUMNS, COSTS, across, costs, read_results, run_seed, write_table
from jaxalign.compare.start import Setting, make_start
from jaxalign.errors import UserError
from jaxalign.packages import import_package
from jaxalign.settings import check_ranges

RANGES: dict[str, tuple[float, float]] = {"seeds": (1, 1000), "first_seed": (0, 10**6), "setting.n": (2, CANDIDATES)}
RANGES |= dict.fromkeys(
    (f"setting.{name}" for name in ("pairs", "pretrain_steps", "sft_steps", "steps", "iterations")), (1, math.inf)
)
RANGES |= dict.fromkeys(
    (f"setting.{name}" for name in ("temperature", "beta", "learning_rate", "sft_learning_rate")), (1e-8, math.inf)
)
RANGES |= {"setting.held_out": (0.1, 0.9), "setting.price": (0, math.inf)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare methods in the testbed, a small world whose gold reward is known. Nothing is downloaded.

    Args:
        setting: the world, its annotators, and the training budgets of the methods
        methods: the methods to compare; sft is always one of them
        seeds: number of seeds; finished ones are not run again
        first_seed: the first seed
        output: directory of results.jsonl, table.md and the figures
    """

    setting: Setting = dataclasses.field(default_factory=Setting)
    methods: list[str] = dataclasses.field(default_factory=lambda: list(METHODS))
    seeds: int = 5
    first_seed: int = 0
    output: str = "runs/compare"


def run(config: Config) -> None:
    """Runs all methods and seeds that are missing, then writes the table and the figures."""
    check_ranges(config, RANGES)
    if unknown := [name for name in config.methods if name not in METHODS]:
        raise UserError(f"methods: {unknown[0]!r} is not a method. Choose from {', '.join(METHODS)}.")
    output = Path(config.output).expanduser()
    import_package("matplotlib", "plots", "The picture")
    check_writable(output)
    console = Console(highlight=False, soft_wrap=True)
    methods = [name for name in METHODS if name == "sft" or name in config.methods]
    results = output / "results.jsonl"
    lines = read_results(results, config.setting)
    output.mkdir(parents=True, exist_ok=True)
    programs: dict[Any, Any] = {}
    began = time.perf_counter()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    for seed in seeds:
        done = {line["method"] for line in lines if line["seed"] == seed}
        missing = [name for name in methods if name not in done]
        if not missing:
            continue
        start = make_start(config.setting, seed, programs)
        console.print(f"seed {seed}: pretrained and fine-tuned, {time.perf_counter() - began:.0f} s")
        for line in run_seed(start, missing, began, lambda text: console.print(text, markup=False)):
            lines.append(line)
            with results.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
    lines = [line for line in lines if line["seed"] in seeds and line["method"] in methods]
    write_table(lines, methods, output / "table.md")
    draw_methods(lines, methods, output / "methods.png")
    draw_overoptimisation(lines, output / "overoptimisation.png")
    print_table(lines, methods, console)
    print_samples(lines, methods, console)
    console.print(f"{time.perf_counter() - began:.0f} s; table, figures and results are in {output}.")


def print_table(lines: Sequence[dict[str, Any]], methods: Sequence[str], console: Console) -> None:
    """Prints the mean of every figure, the interval of gold, and the costs."""
    table = Table("", *methods, title="on held-out instructions, with the 95 % interval of gold")
    for key, heading in COLUMNS:
        values = [across(lines, name, key) for name in methods]
        table.add_row(heading, *(f"{value:.2f}" for value, _, _ in values))
        if key == "gold":
            table.add_row("  from", *(f"{low:.2f}" for _, low, _ in values))
            table.add_row("  to", *(f"{high:.2f}" for _, _, high in values), end_section=True)
    for heading, *entries in zip(COSTS, *(costs(lines, name) for name in methods), strict=True):
        table.add_row(heading, *entries)
    console.print(table)


def print_samples(lines: Sequence[dict[str, Any]], methods: Sequence[str], console: Console) -> None:
    """Prints an instruction of each kind, with each method's answer and its gold reward, of the first seed."""
    first = min(line["seed"] for line in lines)
    samples = {line["method"]: line["samples"] for line in lines if line["seed"] == first}
    for number, row in enumerate(samples["sft"]):
        console.print(f"\n{row['instruction']}", markup=False)
        for name in methods:
            text, gold = samples[name][number]["answer"]
            console.print(f"  {name:<10} {gold:+.2f}  {text}", markup=False)
    console.print()
