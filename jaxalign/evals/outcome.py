"""A task's outcome, item by item, and what is said of it: a figure, a difference between two models, intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError
from jaxalign.stats import DEFAULT, Bootstrap, Floats, Interval, estimate

Good = Literal["more", "less", "neither"]
Link = Callable[[Any], Any]


def _identity(x: Any) -> Any:
    return x


@dataclass(frozen=True, eq=False)
class Outcome:
    """What was found for each of N items; the figure is link(Σ totals / Σ counts).

    A mean has counts of 1; perplexity has nats over tokens and the link exp.

    Attributes:
        name: of the figure, ``task/what``.
        totals, counts: of the items, ``[N]``.
        good: which direction is better.
        link: of the ratio.
        share: whether items are 0 or 1 (or between), so that a figure seen on all items alike still has an interval.
    """

    name: str
    totals: NDArray[np.float64]
    counts: NDArray[np.float64]
    good: Good = "more"
    link: Link = _identity
    share: bool = False

    @classmethod
    def mean(cls, name: str, values: Any, *, good: Good = "more", share: bool = False) -> Outcome:
        """The outcome whose figure is the mean of the values.

        >>> Outcome.mean("piqa/accuracy", [True, False]).totals
        array([1., 0.])
        """
        totals = np.asarray(values, np.float64)
        return cls(name, totals, np.ones(totals.shape), good, share=share)

    def __post_init__(self) -> None:
        if self.totals.ndim != 1 or self.totals.shape != self.counts.shape or not len(self.totals):
            raise UserError(f"{self.name}: there are no items: give a file with at least one that can be used")
        if not (np.isfinite(self.totals).all() and np.isfinite(self.counts).all()):
            bad = int(np.argmin(np.isfinite(self.totals) & np.isfinite(self.counts)))
            raise NotFinite(f"{self.name}: item {bad + 1} has no finite value: check the model and that item")


class NotFinite(UserError):
    """An item has no finite value, as where the model's parameters have none."""


class Estimate(NamedTuple):
    """A figure, its interval, and the number of items."""

    value: float
    ci: Interval
    items: int

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: what the data leave open is null."""
        return finite(self._asdict())


class Difference(NamedTuple):
    """After minus before on the same items; ``significant``: its interval excludes 0."""

    before: float
    after: float
    change: float
    ci: Interval
    significant: bool
    items: int

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: what is not finite is null."""
        return finite(self._asdict())


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, with null for a number that is not finite and for an interval that has such an end."""

    def known(value: Any) -> bool:
        parts = value if isinstance(value, tuple) else (value,)
        return all(math.isfinite(part) for part in parts if isinstance(part, float))

    return {name: value if known(value) else None for name, value in values.items()}


def figure(outcome: Outcome, *, bootstrap: Bootstrap = DEFAULT) -> Estimate:
    """The figure and its interval, by bootstrap over items; of a single item that is no share there is no interval.

    >>> figure(Outcome.mean("accuracy", [1, 1, 0, 1], share=True)).value
    0.75
    """
    bounds = (0.0, 1.0) if outcome.share else (-math.inf, math.inf)
    span = 1.0 if outcome.share else 0.0
    ones = np.ones(len(outcome.totals))
    value, ci = estimate(_statistic(outcome), ones, bootstrap, bounds=bounds, span=span)
    return Estimate(value, ci if _has_scatter(outcome) else (math.nan, math.nan), len(ones))


def difference(before: Outcome, after: Outcome, *, bootstrap: Bootstrap = DEFAULT) -> Difference:
    """What changed, by a paired bootstrap: a resample takes the same items of both models.

    Source: Koehn 2004, https://aclanthology.org/W04-3250, sec. 3.2 (pairing); percentiles as in ``figure``.

    Raises:
        UserError: if the outcomes are not of the same items.

    >>> difference(Outcome.mean("x", [0, 0, 1, 0]), Outcome.mean("x", [1, 1, 1, 0])).change
    0.5
    """
    if before.name != after.name or len(before.totals) != len(after.totals):
        raise UserError(
            f"{before.name} of {len(before.totals)} items and {after.name} of {len(after.totals)} cannot be compared: "
            "measure both models on the same items"
        )
    old, new = _statistic(before), _statistic(after)
    ones = np.ones(len(before.totals))
    span = 1.0 if before.share else 0.0
    bounds = (-1.0, 1.0) if before.share else (-math.inf, math.inf)
    change, ci = estimate(lambda weight: new(weight) - old(weight), ones, bootstrap, bounds=bounds, span=span)
    if not _has_scatter(before):
        ci = (math.nan, math.nan)
    values = (float(old(ones[None])[0]), float(new(ones[None])[0]))
    return Difference(*values, change, ci, ci[0] > 0 or ci[1] < 0, len(ones))


def _has_scatter(outcome: Outcome) -> bool:
    """Whether the items' scatter says how sure the figure is: one item has none."""
    return outcome.share or len(outcome.totals) > 1


def _statistic(outcome: Outcome) -> Callable[[Floats], Floats]:
    def statistic(weight: Floats) -> Floats:
        under = weight @ outcome.counts
        ratio = np.divide(weight @ outcome.totals, under, out=np.full(len(weight), np.nan), where=under > 0)
        return outcome.link(ratio)

    return statistic
