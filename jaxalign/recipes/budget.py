"""A budget of capability: figures measured as a run trains, which stop it when they fall by more than is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxalign import evals
from jaxalign.checkpoint import Checkpoints
from jaxalign.errors import UserError
from jaxalign.evals import suite as tasks
from jaxalign.evals import suite_check
from jaxalign.models.model import Model
from jaxalign.models.params import Params, union
from jaxalign.paths import write_whole

BEFORE, WITHIN = "budget.json", "within_budget"
ROUNDING = 1e-9
"""Of what is subtracted: 268 / 400 - 260 / 400 is a little more than 0.02."""


@dataclasses.dataclass(frozen=True)
class BudgetSection:
    """Capabilities that training may cost so much and no more; where one costs more, the run stops.

    Args:
        max_tax: by figure (task/figure, as `jaxalign eval` names them), how much worse it may get, in its own unit
        suite: what is measured, before training and every so many steps
        every: steps (iterations, of methods that sample) between measurements; the last is always measured
    """

    max_tax: dict[str, float] = dataclasses.field(default_factory=dict)
    suite: tasks.SuiteSection = dataclasses.field(default_factory=tasks.SuiteSection)
    every: int = 50


def check(section: BudgetSection) -> None:
    """Raise for a budget that cannot be kept, before anything is read."""
    if not section.max_tax:
        if section.suite != tasks.SuiteSection():
            raise UserError("budget.suite measures what nothing limits; give budget.max_tax too, or leave it away.")
        return
    for name, allowed in section.max_tax.items():
        if not 0 <= allowed < math.inf:
            raise UserError(f"budget.max_tax: {name} may get worse by {allowed}; give a finite number, 0 or more.")
    if section.every < 1:
        raise UserError(f"budget.every is {section.every}; give a number of steps, 1 or more.")
    suite_check.check(section.suite)
    known = suite_check.figures_of(section.suite, of_two=False)
    known = [name for name in known if not name.endswith(("/words", "/entropy_per_token"))]  # neither is better
    for name in section.max_tax:
        if name not in known:
            raise UserError(
                f"budget.max_tax: {name} is no figure of budget.suite that can get worse; those are {', '.join(known)}."
            )


def is_beyond(before: float, now: float, good: evals.Good, allowed: float) -> bool:
    """Whether a figure got worse by more than is allowed, but for rounding; NaN is beyond everything."""
    worse = before - now if good == "more" else now - before
    return not worse <= allowed + ROUNDING * max(1.0, abs(before))


class Budget:
    """A run's budget: the figures before training, and the last state that was within it.

    Args:
        section: the settings.
        output: the run's directory.
        model: the model as it is trained (adapters and all).
        fixed: the part of its parameters that is not trained.
        policy: takes the policy out of all that is trained.
        unit: what positions count.
        tokenizer: the model's.
        seed: of sampled answers.
        console: where to tell.
        resuming: whether the run goes on; what one that was killed before its first checkpoint kept is not this run's.
    """

    def __init__(
        self,
        section: BudgetSection,
        output: Path,
        model: Model,
        fixed: Params,
        tokenizer: Any,
        seed: int,
        console: Console,
        *,
        resuming: bool,
        policy: Callable[[Params], Params] = lambda params: params,
        unit: str = "step",
    ) -> None:
        self.unit = unit
        self.section, self.output, self.seed, self.console = section, output, seed, console
        self._model, self._fixed, self._tokenizer, self._policy = model, fixed, tokenizer, policy
        self._scorers = tasks.open_scorers(section.suite, self._subject(None), model.mesh, console)
        if not resuming:
            shutil.rmtree(output / WITHIN, ignore_errors=True)
        self._within = Checkpoints(output / WITHIN, keep=1)
        self._before: dict[str, Any] = self._read_before() if resuming else {}

    def begin(self, state: Any) -> dict[str, float]:
        """Measure the model before training."""
        found = self._measure(state)
        self._before = found
        kept = {"figures": found, "files": suite_check.digests(self.section.suite)}
        write_whole(self.output / BEFORE, json.dumps(kept, indent=2) + "\n")
        self._within.save(state)
        return {name: each["value"] for name, each in found.items()}

    def measure(self, state: Any, position: int) -> tuple[dict[str, float], str | None]:
        """The figures after so many steps or iterations, and a sentence if they are beyond the budget.

        A state within it is kept.
        """
        try:
            found = self._measure(state)
        except evals.NotFinite as error:  # the parameters are not: beyond any budget
            return {}, f"{error} ({self.unit} {position})."
        values = {name: each["value"] for name, each in found.items()}
        for name, allowed in self.section.max_tax.items():
            before = self._before[name]
            if is_beyond(before["value"], values[name], before["good"], allowed):
                return values, (
                    f"{name} was {before['value']:.4g} before training and is {values[name]:.4g} after {self.unit} "
                    f"{position}: worse by {abs(before['value'] - values[name]):.3g}, {allowed:g} is allowed "
                    "(budget.max_tax)."
                )
        # A run that goes on from an earlier checkpoint comes by the same states again.
        if int(state.step) > (self._within.latest_step() or 0):
            self._within.save(state, position=position)
        return values, None

    def _read_before(self) -> dict[str, Any]:
        kept = json.loads((self.output / BEFORE).read_text())
        now = suite_check.digests(self.section.suite)
        changed = [path for path in sorted(now | kept["files"]) if now.get(path) != kept["files"].get(path)]
        if changed:
            raise UserError(
                f"{changed[0]} is not what it was when the run in {self.output} began, and its budget is in figures of "
                "that file: restore it, or give another output."
            )
        return dict(kept["figures"])

    def restore(self, like: Any) -> tuple[Any, int]:
        """The last state within the budget, and its position; ``like`` is given up, for two may not fit."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        jax.tree.map(lambda leaf: leaf.delete(), (like.params, like.opt_state))
        return self._within.restore(shapes)

    def close(self) -> None:
        """Wait until everything is written."""
        self._within.close()

    def _subject(self, params: Params) -> tasks.Subject:
        return tasks.Subject(self._model, params, self._tokenizer)

    def _measure(self, state: Any) -> dict[str, Any]:
        subject = self._subject(self._policy(union(state.params, self._fixed)))
        outcomes, _ = tasks.measure(
            self.section.suite, subject, seed=self.seed, console=self.console, scorers=self._scorers
        )
        return {each.name: {"value": evals.figure(each).value, "good": each.good} for each in outcomes}
