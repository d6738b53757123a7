"""A budget of capability: training stops when a measured figure gets worse by more than the budget allows."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxalign.checkpoint import Checkpoints
from jaxalign.errors import UserError
from jaxalign.evals.config import SuiteSection
from jaxalign.models.model import Model
from jaxalign.models.params import Params, union
from jaxalign.paths import write_whole
from jaxalign.reporting import Report, silent

if TYPE_CHECKING:
    from jaxalign.evals.outcome import Good

BEFORE, WITHIN = "budget.json", "within_budget"
# Relative rounding error of a difference: 268 / 400 - 260 / 400 is a little more than 0.02 in binary.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class BudgetSection:
    """How much capability training may cost. Where a figure gets worse by more, the run stops.

    Args:
        max_tax: by figure (task/figure, as `jaxalign eval` names them), how much worse it may get, in its own unit
        suite: what to measure, before training and at intervals
        every: steps (iterations, of methods that sample) between measurements; the last step is always measured
    """

    max_tax: dict[str, float] = dataclasses.field(default_factory=dict)
    suite: SuiteSection = dataclasses.field(default_factory=SuiteSection)
    every: int = 50


def check_budget(section: BudgetSection) -> None:
    """Raises UserError for a budget that cannot be measured, before the model is loaded.

    The suite's files are read. Without ``max_tax`` nothing of ``jaxalign.evals`` but its configuration is imported.
    """
    if not section.max_tax:
        if section.suite != SuiteSection():
            raise UserError("budget.suite is given, but no figure is limited. Set budget.max_tax too, or omit both.")
        return
    for name, allowed in section.max_tax.items():
        if not 0 <= allowed < math.inf:
            raise UserError(f"budget.max_tax: the limit of {name} is {allowed}. Give a finite number, 0 or more.")
    if section.every < 1:
        raise UserError(f"budget.every is {section.every}. Give a number of steps, 1 or more.")

    from jaxalign.evals import suite_check  # only a run with a budget pays for this import

    suite_check.check_suite(section.suite)
    names = suite_check.figure_names(section.suite, of_two=False)
    # For these two neither direction is better, so they cannot get worse.
    names = [name for name in names if not name.endswith(("/words", "/entropy_per_token"))]
    for name in section.max_tax:
        if name not in names:
            raise UserError(f"budget.max_tax: unknown figure {name}. Choose among {', '.join(names)}.")


def is_beyond(before: float, now: float, good: Good, allowed: float) -> bool:
    """Returns whether a figure got worse by more than is allowed, up to rounding. NaN is beyond every limit."""
    worse = before - now if good == "more" else now - before
    return not worse <= allowed + ROUNDING * max(1.0, abs(before))


class Budget:
    """The budget of a run: the figures before training, and the last state that was within the budget.

    Args:
        section: the settings, with at least one figure in ``max_tax``.
        output: the run's directory. With None the last state within the budget is a copy in device memory.
        model: the model as it is trained (adapters included).
        fixed: parameters that are not trained.
        tokenizer: the model's tokenizer.
        seed: seed of sampled answers.
        report: called with a line for each task that is measured.
        resuming: whether the run resumes. Otherwise a state that an earlier, killed run saved is deleted.
        policy: selects the policy from all trained parameters.
        unit: what positions count, for messages.
    """

    def __init__(
        self,
        section: BudgetSection,
        output: Path | None,
        model: Model,
        fixed: Params,
        tokenizer: Any,
        seed: int,
        report: Report = silent,
        *,
        resuming: bool,
        policy: Callable[[Params], Params] = lambda params: params,
        unit: str = "step",
    ) -> None:
        from jaxalign.evals import suite

        self.unit = unit
        self.section, self.output, self.seed, self.report = section, output, seed, report
        self._model, self._fixed, self._tokenizer, self._policy = model, fixed, tokenizer, policy
        self._scorers = suite.open_scorers(section.suite, suite.Subject(model, None, tokenizer), report)
        if output is not None and not resuming:
            shutil.rmtree(output / WITHIN, ignore_errors=True)
        self._within = _StateInMemory() if output is None else Checkpoints(output / WITHIN, keep=1)
        self._before: dict[str, Any] = self._read_before(output) if resuming and output is not None else {}

    def begin(self, state: Any) -> dict[str, float]:
        """Measures the model before training and returns its figures."""
        from jaxalign.evals.suite_check import file_digests

        self._before = self._measure(state)
        if self.output is not None:
            record = {"figures": self._before, "files": file_digests(self.section.suite)}
            write_whole(self.output / BEFORE, json.dumps(record, indent=2) + "\n")
        self._within.save(state)
        return {name: entry["value"] for name, entry in self._before.items()}

    def measure(self, state: Any, position: int) -> tuple[dict[str, float], str | None]:
        """Measures the model during training.

        Args:
            state: the train state. It is saved if it is within the budget.
            position: number of steps or iterations so far.

        Returns:
            The figures, and a sentence if one of them is beyond the budget.
        """
        from jaxalign.evals.outcome import NotFinite

        try:
            figures = self._measure(state)
        except NotFinite as error:  # parameters that are not finite are beyond any budget
            return {}, f"{error} ({self.unit} {position})."
        values = {name: entry["value"] for name, entry in figures.items()}
        for name, allowed in self.section.max_tax.items():
            before = self._before[name]
            if is_beyond(before["value"], values[name], before["good"], allowed):
                return values, (
                    f"{name} was {before['value']:.4g} before training and is {values[name]:.4g} after {self.unit} "
                    f"{position}: worse by {abs(before['value'] - values[name]):.3g}, {allowed:g} is allowed "
                    "(budget.max_tax)."
                )
        # A run that resumes from an earlier checkpoint reaches the same states again.
        if int(state.step) > (self._within.latest_step() or 0):
            self._within.save(state, position=position)
        return values, None

    def _read_before(self, output: Path) -> dict[str, Any]:
        from jaxalign.evals.suite_check import file_digests

        record = json.loads((output / BEFORE).read_text())
        now = file_digests(self.section.suite)
        changed = [path for path in sorted(now | record["files"]) if now.get(path) != record["files"].get(path)]
        if changed:
            raise UserError(
                f"{changed[0]} changed since the run in {output} began, and the budget compares figures of that file. "
                "Restore the file, or choose another output directory."
            )
        return dict(record["figures"])

    def restore(self, like: Any) -> tuple[Any, int]:
        """Returns the last state within the budget, and its position.

        Args:
            like: the current state. Its parameters and optimiser state are deleted first: two states may not fit.
        """
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        jax.tree.map(lambda leaf: leaf.delete(), (like.params, like.opt_state))
        return self._within.restore(shapes)

    def close(self) -> None:
        """Waits until everything is written."""
        self._within.close()

    def _measure(self, state: Any) -> dict[str, Any]:
        from jaxalign.evals import Subject, measure_suite

        params = self._policy(union(state.params, self._fixed))
        subject = Subject(self._model, params, self._tokenizer)
        result = measure_suite(self.section.suite, subject, seed=self.seed, scorers=self._scorers, report=self.report)
        values = {name: estimate.value for name, estimate in result.figures().items()}
        return {outcome.name: {"value": values[outcome.name], "good": outcome.good} for outcome in result.outcomes}


class _StateInMemory:
    """The last saved state as a copy on the devices, with the methods of `Checkpoints` that a budget uses."""

    def __init__(self) -> None:
        self._saved: tuple[Any, int] | None = None

    def save(self, state: Any, *, position: int | None = None) -> None:
        # The training step donates its state, so a reference would not survive it.
        self._saved = jax.tree.map(jnp.copy, state), int(state.step) if position is None else position

    def restore(self, like: Any) -> tuple[Any, int]:
        del like  # the copy already has its shapes and shardings
        assert self._saved is not None, "begin() saves a state first"
        return self._saved

    def latest_step(self) -> int | None:
        return None if self._saved is None else int(self._saved[0].step)

    def close(self) -> None:
        self._saved = None
