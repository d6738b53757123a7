"""What commands print: progress while they run, and tables at their end."""

from __future__ import annotations

import re
import resource
import statistics
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

PROGRESS_LINE = re.compile(r"(\w+) (\d+)/(\d+)  (.*)")


def make_console() -> Console:
    """Returns the console of all commands: no highlighting, no wrapping."""
    return Console(highlight=False, soft_wrap=True)


class LiveReport:
    """A report that prints lines. On a terminal, lines of progress (``NAME K/N  …``) share a live line."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()
        self._progress: Progress | None = None

    def __call__(self, line: str) -> None:
        """Prints the line, or updates the live line."""
        match = PROGRESS_LINE.fullmatch(line)
        if match is None or not self.console.is_terminal:
            self.console.print(line, markup=False)
            return
        name, done, total, rest = match.groups()
        if self._progress is None:
            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            self._progress = Progress(*columns, console=self.console)
            self._task = self._progress.add_task(name)
            self._progress.start()
        self._progress.update(self._task, completed=int(done), total=int(total), description=f"{name}  {rest}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def print_comparison(before: Mapping[str, Any], after: Mapping[str, Any], count: Any, console: Console) -> None:
    """Prints the metrics of the first and the last evaluation side by side; without an evaluation, nothing."""
    if not after:
        return
    table = Table(title=f"{count} held-out examples (shares with 95% intervals)")
    table.add_column("metric")
    for metrics in (before, after):
        table.add_column(f"step {metrics['step']}", justify="right")
    for name in after:
        if name.startswith("eval/") and not name.endswith("_ci") and name in before:
            table.add_row(name.removeprefix("eval/"), *(_cell(name, metrics) for metrics in (before, after)))
    console.print(table)


def _cell(name: str, metrics: Mapping[str, Any]) -> str:
    value, interval = metrics.get(name), metrics.get(f"{name}_ci")
    if value is None or value != value:
        return "not finite"
    return f"{value:.4f}" if interval is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def print_samples(samples: Sequence[Mapping[str, str]], console: Console) -> None:
    """Prints each prompt with its answer before and after."""
    for sample in samples:
        for label, text in sample.items():
            console.print(f"{label:>6}: ", style="bold", end="")
            console.print(text.strip() or "(nothing)", markup=False)
        console.print()
    if samples:
        before, after = (sum(len(sample[when].split()) for sample in samples) for when in ("before", "after"))
        console.print(f"words an answer: {before / len(samples):.0f} before, {after / len(samples):.0f} after")


def print_cost(timings: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints seconds a step (the median: the first ones compile) and the peak memory."""
    if not timings:
        return
    memory = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}
    for device in jax.local_devices()[:1]:
        memory[device.platform] = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)  # CPUs have no statistics
    seconds = statistics.median(line["seconds"] for line in timings)
    peaks = ", ".join(f"{place} {size / 2**30:.1f} GiB" for place, size in memory.items() if size)
    console.print(f"{seconds:.2f} s a step (median); peak memory: {peaks}")
