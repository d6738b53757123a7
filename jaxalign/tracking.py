"""Metrics of a run: in memory, in files, on dashboards, and as lines of a report.

There are two files, because only one of them is reproducible. ``metrics.jsonl`` contains what the run computed, one
object a line with its ``step``. ``timings.jsonl`` contains times. After a resume, ``metrics.jsonl`` equals that of an
uninterrupted run to the byte.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax

from jaxalign.errors import UserError
from jaxalign.packages import import_package
from jaxalign.paths import write_whole
from jaxalign.reporting import Report, format_duration, silent

# Records the metrics of a step in a file or on a dashboard.
Log: TypeAlias = Callable[[int, Mapping[str, float]], None]
METRICS_FILE = "metrics.jsonl"
TIMINGS_FILE = "timings.jsonl"

# What a progress line shows of a step: label → metric, for the metrics that the method has.
SHOWN = {"loss": "loss", "perplexity": "perplexity", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where metrics go, in addition to metrics.jsonl in the output directory.

    Args:
        every: steps between two logged ones
        tensorboard: also write TensorBoard events, under tensorboard/ in the output directory
        wandb: also log to this Weights & Biases project
    """

    every: int = 1
    tensorboard: bool = False
    wandb: str | None = None


def check_installed(config: LogConfig) -> None:
    """Checks that the packages of the dashboards are installed, before any long work.

    Raises:
        UserError: If one is missing; the message has the command that installs it.
    """
    if config.tensorboard:
        import_package("tensorboardX", "tensorboard", "log.tensorboard")
    if config.wandb is not None:
        import_package("wandb", "wandb", "log.wandb")


class Jsonl:
    """A file of one JSON object a line, flushed after each. Non-finite values are written as null.

    Args:
        path: The file. Lines of steps after ``resume_step``, and one cut short by a crash, are dropped from it.
        resume_step: The step that the run resumes from; None starts a new file.

    Attributes:
        lines: The lines of earlier steps that a resumed run retains.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None):
        self.lines = []
        if resume_step is not None and path.exists():
            self.lines = [line for line in read_jsonl(path) if line["step"] <= resume_step]
        write_whole(path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file = path.open("a", encoding="utf-8", buffering=1)  # flushes every line

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line."""
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Returns the objects of a metrics file, without a last line that a crash cut short.

    Raises:
        UserError: For a line that is not a JSON object with a step.
    """
    lines = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
            lines[-1]["step"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is not a metrics line. Remove that line or the file.") from error
    return lines


def _log_to_tensorboard(directory: Path, resume_step: int | None, stack: contextlib.ExitStack) -> Log:
    """Opens TensorBoard events, without those after ``resume_step``, until the stack closes."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(directory), purge_step=None if resume_step is None else resume_step + 1)
    stack.callback(writer.close)

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    return log


def _log_to_wandb(
    project: str, directory: Path, settings: Any, resume_step: int | None, stack: contextlib.ExitStack
) -> Log:
    """Opens a Weights & Biases run. Its id is stored in the directory, so that a resumed run continues it."""
    import wandb

    remembered = directory / "wandb_run_id"
    known = remembered.read_text().strip() if resume_step is not None and remembered.exists() else None
    config = dict(settings) if settings else None
    run = wandb.init(project=project, dir=str(directory), id=known, resume="allow", config=config)
    stack.callback(run.finish)
    remembered.write_text(run.id)
    return lambda step, metrics: run.log(dict(metrics), step=step)


class Tracker(contextlib.ExitStack):
    """Records the metrics of a run in memory, in its files, on dashboards and in its report.

    It is a context manager. Leaving it, or ``close``, closes all files and dashboards.

    Args:
        directory: The run's output directory; None records in memory only.
        total_steps: Steps of the whole run, for the time left.
        config: See :class:`LogConfig`.
        resume_step: The step that the run resumes from; None for a new run.
        settings: The configuration that dashboards show.
        shown: What progress lines show: label → metric.
        report: Receives a line for each logged step and evaluation.

    Attributes:
        lines: Every line of the run so far, as in metrics.jsonl.

    On a process other than the first of a multi-process run, nothing is written.
    """

    def __init__(
        self,
        directory: str | Path | None,
        *,
        total_steps: int,
        config: LogConfig | None = None,
        resume_step: int | None = None,
        settings: Mapping[str, Any] | None = None,
        shown: Mapping[str, str] = SHOWN,
        report: Report = silent,
    ):
        super().__init__()
        config = config or LogConfig()
        if config.every < 1:
            raise UserError(f"log.every is {config.every}. Give 1 or more steps.")
        self._every, self._total_steps = config.every, total_steps
        self._shown, self._report = shown, report
        self._logs: list[Log] = []
        self._timings: Jsonl | None = None
        self._clock = Clock(resume_step or 0, total_steps)
        self.lines: list[dict[str, Any]] = []
        if jax.process_index() != 0:
            self._report = silent
            return
        check_installed(config)  # before any file is touched
        if directory is None:
            return
        directory = Path(directory)
        if config.tensorboard:
            self._logs.append(_log_to_tensorboard(directory / "tensorboard", resume_step, self))
        if config.wandb is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._logs.append(_log_to_wandb(config.wandb, directory, settings, resume_step, self))
        metrics, self._timings = (
            self.enter_context(contextlib.closing(Jsonl(directory / name, resume_step=resume_step)))
            for name in (METRICS_FILE, TIMINGS_FILE)
        )
        self.lines = list(metrics.lines)
        self._logs.append(metrics.log)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Records a training step.

        Every call advances the clock. Every ``config.every``-th step and the last are fetched, recorded and reported.

        Args:
            step: Steps done.
            metrics: Scalars, on the device or off it, with ``num_tokens`` among them.
        """
        self._clock.count(metrics.get("num_tokens", 0))
        if step % self._every and step != self._total_steps:
            return
        values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        timing = self._clock.read(step)
        self.note(step, values)
        if self._timings is not None:
            self._timings.log(step, {"seconds": timing.seconds, "tokens_per_second": timing.tokens_per_second})
        parts = [f"{label} {values[name]:.4f}" for label, name in self._shown.items() if name in values]
        parts.append(f"{timing.tokens_per_second:,.0f} tokens/s")
        if timing.left is not None:
            parts.append(f"{format_duration(timing.left)} left")
        self._report(f"step {step}/{self._total_steps}  " + "  ".join(parts))

    def log_eval(self, step: int, metrics: Mapping[str, Any], *, prefix: str = "eval/") -> dict[str, float]:
        """Records an evaluation under ``prefix``. Its time does not count as training.

        Returns:
            The metrics with the prefix in their names.
        """
        values = {prefix + name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
        self.note(step, values)
        known = [(label, prefix + name) for label, name in self._shown.items() if prefix + name in values]
        known = known or [(name.removeprefix(prefix), name) for name in values]
        line = "  ".join(f"{label} {values[name]:.4f}" for label, name in known)
        self._report(f"{prefix.strip('/')} at step {step}: {line}")
        self._clock.restart()
        return values

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Records values without a line in the report."""
        self.lines.append({"step": step, **values})
        for log in self._logs:
            log(step, values)


class Timing(NamedTuple):
    """Pace since the last logged step, in seconds per step and tokens per second, and the seconds left."""

    seconds: float
    tokens_per_second: float
    left: float | None


class Clock:
    """Measures the pace since the last reading, and the time left. The first step is excluded, because it compiles."""

    def __init__(self, step: int, total_steps: int):
        self._total_steps = total_steps
        self._warm_seconds, self._warm_steps, self._first = 0.0, 0, True
        self._steps: int = 0
        self._tokens: list[Any] = []
        self._since = time.perf_counter()

    def count(self, tokens: Any) -> None:
        """Counts one more step. Its token count may still be on the device, and stays there until ``read``."""
        self._steps += 1
        self._tokens.append(tokens)

    def read(self, step: int) -> Timing:
        """Returns the pace since the last reading, and starts the next one."""
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
        """Forgets the time since the last reading."""
        self._steps, self._tokens, self._since = 0, [], time.perf_counter()
