"""The outcome of a task, item by item, and what follows from it: a figure, a difference of two models, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError
from jaxalign.stats import DEFAULT, Bootstrap, Floats, Interval, estimate, ratio

Good = Literal["more", "less", "neither"]
Link = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Measurements of N items. Their figure is link(Σ totals / Σ counts).

    A mean has counts of 1. Perplexity has nats over tokens and the link exp.

    Attributes:
        name: name of the figure, ``task/figure``.
        totals: numerators, ``[N]``.
        counts: denominators, ``[N]``.
        good: which direction is better.
        link: function of the ratio.
        share: whether every item is between 0 and 1. Then the figure has an interval even if all items agree.
    """

    name: str
    totals: NDArray[np.float64]
    counts: NDArray[np.float64]
    good: Good = "more"
    link: Link = np.positive
    share: bool = False

    @classmethod
    def mean(cls, name: str, values: Any, *, good: Good = "more", share: bool = False) -> Outcome:
        """Returns the outcome whose figure is the mean of the values.

        >>> Outcome.mean("piqa/accuracy", [True, False]).totals
        array([1., 0.])
        """
        totals = np.asarray(values, np.float64)
        return cls(name, totals, np.ones(totals.shape), good, share=share)

    def __post_init__(self) -> None:
        if self.totals.ndim != 1 or self.totals.shape != self.counts.shape or not len(self.totals):
            raise UserError(f"{self.name}: no items. Give a file with at least one usable item.")
        if not (np.isfinite(self.totals).all() and np.isfinite(self.counts).all()):
            bad = int(np.argmin(np.isfinite(self.totals) & np.isfinite(self.counts)))
            raise NotFinite(f"{self.name}: item {bad + 1} has no finite value. Check the model and that item.")


class NotFinite(UserError):
    """Raised for an item without a finite value, for example if the model's parameters are NaN."""


class Estimate(NamedTuple):
    """A figure, its interval, and the number of items."""

    value: float
    ci: Interval
    items: int

    def plain(self) -> dict[str, Any]:
        """Returns the fields for JSON. Non-finite values are null."""
        return json_safe(self._asdict())


class Difference(NamedTuple):
    """Change from before to after on the same items. It is significant if its interval excludes 0."""

    before: float
    after: float
    change: float
    ci: Interval
    significant: bool
    items: int

    def plain(self) -> dict[str, Any]:
        """Returns the fields for JSON. Non-finite values are null."""
        return json_safe(self._asdict())


def json_safe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values with null for a non-finite number and for an interval with a non-finite end."""

    def is_finite(value: Any) -> bool:
        parts = value if isinstance(value, tuple) else (value,)
        return all(math.isfinite(part) for part in parts if isinstance(part, float))

    return {name: value if is_finite(value) else None for name, value in values.items()}


def figure(outcome: Outcome, *, bootstrap: Bootstrap = DEFAULT) -> Estimate:
    """Returns the figure with its interval, by bootstrap over items.

    The interval is NaN for a single item, unless the figure is a share.

    >>> figure(Outcome.mean("accuracy", [1, 1, 0, 1], share=True)).value
    0.75
    """
    ones = np.ones(len(outcome.totals))
    value, ci = estimate(_statistic(outcome), ones, bootstrap, **_limits(outcome, 0.0))
    return Estimate(value, ci if _has_scatter(outcome) else (math.nan, math.nan), len(ones))


def difference(before: Outcome, after: Outcome, *, bootstrap: Bootstrap = DEFAULT) -> Difference:
    """Returns the change of a figure, by a paired bootstrap: a resample takes the same items of both models.

    Source: Koehn 2004, https://aclanthology.org/W04-3250, sec. 3.2 (pairing); percentiles as in ``figure``.

    Raises:
        UserError: if the outcomes have different names or numbers of items.

    >>> difference(Outcome.mean("x", [0, 0, 1, 0]), Outcome.mean("x", [1, 1, 1, 0])).change
    0.5
    """
    if before.name != after.name or len(before.totals) != len(after.totals):
        raise UserError(
            f"{before.name} of {len(before.totals)} items and {after.name} of {len(after.totals)} items cannot be "
            "compared. Measure both models on the same items."
        )
    old, new = _statistic(before), _statistic(after)
    ones = np.ones(len(before.totals))
    change, ci = estimate(lambda weight: new(weight) - old(weight), ones, bootstrap, **_limits(before, -1.0))
    if not _has_scatter(before):
        ci = (math.nan, math.nan)
    values = (float(old(ones[None])[0]), float(new(ones[None])[0]))
    return Difference(*values, change, ci, ci[0] > 0 or ci[1] < 0, len(ones))


def _has_scatter(outcome: Outcome) -> bool:
    """Whether the scatter of the items estimates the error of the figure. A single item has no scatter."""
    return outcome.share or len(outcome.totals) > 1


def _statistic(outcome: Outcome) -> Callable[[Floats], Floats]:
    mean = ratio(outcome.totals, outcome.counts)
    return lambda weight: outcome.link(mean(weight))


def _limits(outcome: Outcome, low: float) -> dict[str, Any]:
    """Returns the options of ``estimate`` for a figure that is at least ``low`` if its items are shares."""
    return {"bounds": (low, 1.0), "span": 1.0} if outcome.share else {"span": 0.0}
