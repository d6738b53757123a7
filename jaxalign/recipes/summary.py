"""What a run ends with: held-out metrics before and after, answers before and after."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxalign import stats


def print_comparison(lines: Sequence[Mapping[str, Any]], count: int, console: Console, prefix: str = "eval/") -> None:
    """A table of the first and the last evaluation of a run, each on ``count`` held-out examples; none, no table.

    Args:
        lines: the run's metrics file.
        count: held-out examples.
        console: where to print.
        prefix: what the names of evaluation metrics begin with.
    """
    evaluations = [line for line in lines if any(name.startswith(prefix) for name in line)]
    if not evaluations:
        return
    before, after = evaluations[0], evaluations[-1]
    table = Table(title=f"{count} held-out examples (shares with 95% intervals)")
    table.add_column("metric")
    for line in (before, after):
        table.add_column(f"step {line['step']}", justify="right")
    for name in after:
        if name.startswith(prefix):
            table.add_row(name.removeprefix(prefix), *(_cell(name, line.get(name), count) for line in (before, after)))
    console.print(table)


def print_samples(answered: Mapping[str, Sequence[str]], console: Console) -> None:
    """Each prompt with its answer before and after."""
    for trio in zip(answered["prompt"], answered["before"], answered["after"], strict=True):
        for label, text in zip(("prompt", "before", "after"), trio, strict=True):
            console.print(f"{label:>6}: ", style="bold", end="")
            console.print(text.strip() or "(nothing)", markup=False)
        console.print()
    if answered["prompt"]:
        before, after = (sum(len(text.split()) for text in answered[when]) for when in ("before", "after"))
        count = len(answered["prompt"])
        console.print(f"words an answer: {before / count:.0f} before, {after / count:.0f} after")


def print_cost(timings: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Seconds a step (the median: the first ones compile) and the most memory that was in use."""
    if not timings:
        return
    memory = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    for device in jax.local_devices()[:1]:
        memory[device.platform] = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)  # CPUs have no statistics
    seconds = statistics.median(line["seconds"] for line in timings)
    peaks = ", ".join(f"{place} {size / 2**30:.1f} GiB" for place, size in memory.items() if size)
    console.print(f"{seconds:.2f} s a step (median); peak memory: {peaks}")


def _cell(name: str, value: float | None, count: int) -> str:
    if value is None:
        return "not finite"
    if not name.endswith("accuracies"):
        return f"{value:.4f}"
    low, high = stats.wilson(value, count)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
