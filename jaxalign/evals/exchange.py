"""The alignment tax: what a model gained in behaviour, what it paid in capability, and at what rate.

The term is Askell et al.'s (2021, arXiv:2112.00861, sec. 1); the exchange rate is ours: points of a capability lost for
each unit gained of another figure (reward, say), and for each nat the model moved away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxalign.errors import UserError
from jaxalign.evals.outcome import Difference, Outcome, difference, finite
from jaxalign.stats import DEFAULT, Bootstrap, Interval


class Exchange(NamedTuple):
    """What a unit of a gain cost of a capability; the interval is by resampling both."""

    paid: str
    gained: str
    rate: float
    ci: Interval


@dataclass(frozen=True)
class Tax:
    """Two models side by side: each figure's difference, and how capabilities were exchanged for gains."""

    differences: Mapping[str, Difference]
    outcomes: Mapping[str, Outcome]
    exchange: Sequence[Exchange] = ()

    def better(self, name: str) -> bool | None:
        """Whether a figure got better (True), worse (False) or neither, its interval having 0 in it (None)."""
        found, good = self.differences[name], self.outcomes[name].good
        if not found.significant or good == "neither":
            return None
        return (found.change > 0) == (good == "more")

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it: what is not finite is null, as a rate that means nothing."""
        return {
            "differences": {
                name: {**found.plain(), "good": self.outcomes[name].good, "better": self.better(name)}
                for name, found in self.differences.items()
            },
            "exchange": [finite(each._asdict()) for each in self.exchange],
        }


def tax(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    *,
    capabilities: Sequence[str] = (),
    gains: Sequence[str] = (),
    bootstrap: Bootstrap = DEFAULT,
) -> Tax:
    """Every figure's paired difference, and the exchange rate of each capability for each gain.

    Args:
        before, after: outcomes of the two models, of the same tasks and items.
        capabilities: names of the figures that pay; a loss is a change for the worse, in the figure's own unit (for
            perplexity in its logarithm, so nats).
        gains: names of the figures that are bought.
        bootstrap: of all intervals.

    Raises:
        UserError: if a figure is missing of one model, or a name is of none.
    """
    old, new = {each.name: each for each in before}, {each.name: each for each in after}
    if len(old) < len(before):
        names = [each.name for each in before]
        raise UserError(f"{next(name for name in names if names.count(name) > 1)} is measured twice: rename one")
    if old.keys() != new.keys():
        raise UserError(f"{', '.join(sorted(old.keys() ^ new.keys()))}: measured of one model only: measure both")
    for name in (*capabilities, *gains):
        if name not in old:
            raise UserError(f"{name} is no figure that was measured; those are {', '.join(old)}")
    differences = {name: difference(old[name], new[name], bootstrap=bootstrap) for name in old}
    exchange = [_rate(old, new, paid, gained, bootstrap) for paid in capabilities for gained in gains if paid != gained]
    return Tax(differences, old, exchange)


def exchange_rate(lost: np.ndarray, gained: np.ndarray, paid: str, bought: str, confidence: float) -> Exchange:
    """The ratio of two changes from their resampled values, of which the first of each is the measured one.

    Where nothing was gained, or it may be so (the interval is not above 0), a rate means nothing and is NaN. Of the few
    resamples that gained nothing all the same, one that lost has the rate ∞, one that did not -∞.
    """
    tail = (1 - confidence) / 2
    if not np.quantile(gained[1:], tail) > 0 or not np.isfinite(lost).all():
        return Exchange(paid, bought, math.nan, (math.nan, math.nan))
    some = gained[1:] > 0
    rates = np.where(some, lost[1:] / np.where(some, gained[1:], 1), np.where(lost[1:] > 0, math.inf, -math.inf))
    rates = rates[some | (lost[1:] != 0)]
    interval = np.quantile(rates, [tail, 1 - tail], method="nearest")  # between infinities nothing can be interpolated
    return Exchange(paid, bought, float(lost[0] / gained[0]), (float(interval[0]), float(interval[1])))


def _rate(
    old: Mapping[str, Outcome], new: Mapping[str, Outcome], paid: str, gained: str, bootstrap: Bootstrap
) -> Exchange:
    change: Callable[[str], np.ndarray] = lambda name: _changes(old[name], new[name], bootstrap)  # noqa: E731
    sign = {"more": 1.0, "less": -1.0, "neither": 1.0}
    lost = -sign[old[paid].good] * change(paid)
    return exchange_rate(lost, sign[old[gained].good] * change(gained), paid, gained, bootstrap.confidence)


def _changes(old: Outcome, new: Outcome, bootstrap: Bootstrap) -> np.ndarray:
    """The change of a figure, measured and then resampled; of a figure that is an exponential, of its logarithm.

    Figures of as many items are resampled alike: those of one task have the same items; others are none the worse.
    """
    count = len(old.totals)
    drawn = np.random.default_rng((bootstrap.seed, count)).multinomial(
        count, np.full(count, 1 / count), size=bootstrap.resamples
    )
    weight = np.concatenate([np.ones((1, count)), drawn])
    with np.errstate(divide="ignore", invalid="ignore"):
        return weight @ new.totals / (weight @ new.counts) - weight @ old.totals / (weight @ old.counts)
