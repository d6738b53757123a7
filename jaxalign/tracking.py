"""Metrics on disk, on dashboards and on the screen.

Two files, because only one of them can be the same twice: ``metrics.jsonl`` holds what the run computed (one
object a line, with its ``step``), ``timings.jsonl`` what the clock said. After a resume both are those of the
run that was never stopped, the first to the byte.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from jaxalign.errors import UserError

METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"

# What the progress display shows of a step, where the method reports it.
SHOWN = {"loss": "loss", "perplexity": "perplexity", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where metrics go, besides metrics.jsonl in the output directory.

    Args:
        every: steps between two logged ones
        tensorboard: also write TensorBoard events, under tensorboard/ in the output directory
        wandb: also log to this Weights & Biases project
    """

    every: int = 1
    tensorboard: bool = False
    wandb: str | None = None


def check_installed(config: LogConfig) -> None:
    """Raise for a dashboard whose package is missing, so that a command can tell before its long work.

    Raises:
        UserError: naming the package and how to install it.
    """
    for name, wanted, package in (
        ("tensorboard", config.tensorboard, "tensorboardX"),
        ("wandb", config.wandb is not None, "wandb"),
    ):
        if not wanted:
            continue
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(f"log.{name} needs the {package} package; run: pip install 'jaxalign[{name}]'.") from error


class Sink(Protocol):
    """Where metrics go: a file, a dashboard."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Jsonl:
    """One JSON object a line, flushed at once; what is not finite becomes null, as JSON has no word for it.

    Args:
        path: the file; lines of steps after ``resume_step``, and one cut short by a crash, are dropped from it.
        resume_step: the step the run goes on from, None to start a new file.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None):
        kept = []
        if resume_step is not None and path.exists():
            kept = [line for line in read_jsonl(path) if line["step"] <= resume_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(draft, path)  # a crash here leaves the old file or the new one
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a last line cut short by a crash is left out.

    Raises:
        UserError: for a line that is no JSON object with a step.
    """
    lines = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
            lines[-1]["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is not a metrics line; remove that line or the file.") from error
    return lines


class TensorBoard:
    """Events for TensorBoard; those after ``resume_step`` are purged."""

    def __init__(self, directory: Path, *, resume_step: int | None = None):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=None if resume_step is None else resume_step + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A Weights & Biases run; its id is kept in the output directory, so that a resumed run goes on with it."""

    def __init__(
        self, project: str, directory: Path, *, config: Mapping[str, Any] | None = None, resume_step: int | None = None
    ):
        import wandb

        remembered = directory / "wandb_run_id"
        known = remembered.read_text().strip() if resume_step is not None and remembered.exists() else None
        settings = dict(config) if config else None
        self._run = wandb.init(project=project, dir=str(directory), id=known, resume="allow", config=settings)
        remembered.write_text(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class Tracker:
    """Sends each step's metrics to the files and dashboards of a run, and to the screen.

    Args:
        directory: the run's output directory.
        total_steps: steps of the whole run, for the time left.
        config: see `LogConfig`.
        resume_step: the step the run goes on from, None for a new one.
        settings: what dashboards should show as the run's configuration.
        shown: the progress display's columns: label → metric.
        stream: where progress goes; standard output by default.

    On a machine that is not the first of a multi-host run, nothing is written.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        total_steps: int,
        config: LogConfig | None = None,
        resume_step: int | None = None,
        settings: Mapping[str, Any] | None = None,
        shown: Mapping[str, str] = SHOWN,
        stream: TextIO | None = None,
    ):
        config = config or LogConfig()
        if config.every < 1:
            raise UserError(f"log.every is {config.every}; give 1 or more steps.")
        self._every = config.every
        self._total_steps = total_steps
        self._sinks: list[Sink] = []
        self._timings: Jsonl | None = None
        self._display: Display | None = None
        self._clock = Clock(resume_step or 0, total_steps)
        if jax.process_index() != 0:
            return
        directory = Path(directory)
        check_installed(config)  # before any file is touched
        if config.tensorboard:
            self._sinks.append(TensorBoard(directory / "tensorboard", resume_step=resume_step))
        if config.wandb is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._sinks.append(Wandb(config.wandb, directory, config=settings, resume_step=resume_step))
        self._sinks.append(Jsonl(directory / METRICS_FILE, resume_step=resume_step))
        self._timings = Jsonl(directory / TIMINGS_FILE, resume_step=resume_step)
        self._display = Display(total_steps, shown, stream or sys.stdout)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Log a training step: ``metrics`` are scalars, on the device or off it, ``num_tokens`` among them.

        Every call advances the clock; every ``config.every``-th step and the last are fetched, written and shown.
        """
        self._clock.count(metrics.get("num_tokens", 0))
        if step % self._every and step != self._total_steps:
            return
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        timing = self._clock.read(step)
        for sink in self._sinks:
            sink.log(step, values)
        if self._timings is not None:
            self._timings.log(step, {"seconds": timing.seconds, "tokens_per_second": timing.tokens_per_second})
        if self._display is not None:
            self._display.show(step, values, timing)

    def log_eval(self, step: int, metrics: Mapping[str, Any], *, prefix: str = "eval/") -> dict[str, float]:
        """Log an evaluation, under ``prefix``; its time is not counted as training. Returns the prefixed metrics."""
        values = {prefix + name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        for sink in self._sinks:
            sink.log(step, values)
        if self._display is not None:
            self._display.show_eval(step, values, prefix)
        self._clock.restart()
        return values

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Write values down that are told otherwise."""
        for sink in self._sinks:
            sink.log(step, values)

    def close(self) -> None:
        for sink in (*self._sinks, self._timings, self._display):
            if sink is not None:
                sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class Timing:
    """The clock at a logged step: seconds a step and tokens a second since the last one, seconds left."""

    seconds: float
    tokens_per_second: float
    left: float | None


class Clock:
    """Speed since the last reading, and the time left at the pace so far without the first step, which compiles."""

    def __init__(self, step: int, total_steps: int):
        self._total_steps = total_steps
        self._warm_seconds, self._warm_steps, self._first = 0.0, 0, True
        self._steps: int = 0
        self._tokens: list[Any] = []
        self._since = time.perf_counter()

    def count(self, tokens: Any) -> None:
        """One more step; its token count may still be on the device, and is left there until `read`."""
        self._steps += 1
        self._tokens.append(tokens)

    def read(self, step: int) -> Timing:
        """The pace since the last reading, which this one becomes."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        steps, tokens = max(self._steps, 1), float(sum(jax.device_get(self._tokens)))
        if not self._first:
            self._warm_seconds += elapsed
            self._warm_steps += steps
        pace = self._warm_seconds / self._warm_steps if self._warm_steps else None
        self._first = False
        self.restart()
        return Timing(elapsed / steps, tokens / elapsed, None if pace is None else pace * (self._total_steps - step))

    def restart(self) -> None:
        """Forget what has passed since the last reading."""
        self._steps, self._tokens, self._since = 0, [], time.perf_counter()


class Display:
    """A live line on a terminal; elsewhere a plain line for every logged step."""

    def __init__(self, total_steps: int, shown: Mapping[str, str], stream: TextIO):
        self._shown = shown
        self._total_steps = total_steps
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._progress = Progress(*columns, console=self._console)
            self._task = self._progress.add_task("compiling", total=total_steps)
            self._progress.start()

    def show(self, step: int, metrics: Mapping[str, float], timing: Timing) -> None:
        parts = [f"{label} {metrics[name]:.4f}" for label, name in self._shown.items() if name in metrics]
        parts.append(f"{timing.tokens_per_second:,.0f} tokens/s")
        if timing.left is not None:
            parts.append(f"{duration(timing.left)} left")
        line = "  ".join(parts)
        if self._progress is None:
            self._console.print(f"step {step}/{self._total_steps}  {line}", markup=False)
        else:
            self._progress.update(self._task, completed=step, description=line)

    def show_eval(self, step: int, metrics: Mapping[str, float], prefix: str) -> None:
        known = [(label, prefix + name) for label, name in self._shown.items() if prefix + name in metrics]
        known = known or [(name.removeprefix(prefix), name) for name in metrics]
        line = "  ".join(f"{label} {metrics[name]:.4f}" for label, name in known)
        self._console.print(f"step {step}/{self._total_steps}  {prefix.strip('/')}: {line}", markup=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def duration(seconds: float) -> str:
    """
    >>> duration(7.4), duration(187), duration(7260)
    ('7s', '3m07s', '2h01m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
