"""The alignment tax: the gain in behaviour, the loss of capability, and the exchange rate between them.

The term is Askell et al.'s (2021, arXiv:2112.00861, sec. 1). The exchange rate is ours: capability lost for each unit
that another figure (the reward, for example) gained, or for each nat of KL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxalign.errors import UserError
from jaxalign.evals.outcome import Difference, Outcome, difference, json_safe
from jaxalign.stats import DEFAULT, Bootstrap, Interval, ratio


class Exchange(NamedTuple):
    """Loss of a capability for each unit of a gain. The interval resamples both."""

    paid: str
    gained: str
    rate: float
    ci: Interval


@dataclass(frozen=True)
class Tax:
    """Comparison of two models: the difference of each figure, and exchange rates of capabilities for gains."""

    differences: Mapping[str, Difference]
    outcomes: Mapping[str, Outcome]
    exchange: Sequence[Exchange] = ()

    def better(self, name: str) -> bool | None:
        """Returns True if a figure got better, False if worse, None if the interval of its change contains 0."""
        change, good = self.differences[name], self.outcomes[name].good
        if not change.significant or good == "neither":
            return None
        return (change.change > 0) == (good == "more")

    def plain(self) -> dict[str, Any]:
        """Returns the comparison for JSON. Non-finite values are null."""
        return {
            "differences": {
                name: {**change.plain(), "good": self.outcomes[name].good, "better": self.better(name)}
                for name, change in self.differences.items()
            },
            "exchange": [json_safe(exchange._asdict()) for exchange in self.exchange],
        }


def tax(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    *,
    capabilities: Sequence[str] = (),
    gains: Sequence[str] = (),
    bootstrap: Bootstrap = DEFAULT,
) -> Tax:
    """Compares two models: every figure's paired difference, and the exchange rate of each capability for each gain.

    Args:
        before: outcomes of the model before alignment.
        after: outcomes of the aligned model, of the same tasks and items.
        capabilities: names of the figures that may get worse. A loss is in the figure's own unit (of perplexity, whose
            logarithm is used, in nats).
        gains: names of the figures that should get better.
        bootstrap: settings of all intervals.

    Raises:
        UserError: if a figure is missing for one model, or a name is unknown.
    """
    old, new = ({outcome.name: outcome for outcome in outcomes} for outcomes in (before, after))
    if len(old) < len(before):
        names = [outcome.name for outcome in before]
        raise UserError(f"{next(name for name in names if names.count(name) > 1)} is measured twice. Rename one.")
    if old.keys() != new.keys():
        raise UserError(f"{', '.join(sorted(old.keys() ^ new.keys()))}: measured for one model only. Measure both.")
    for name in (*capabilities, *gains):
        if name not in old:
            raise UserError(f"Figure {name} was not measured. Choose among {', '.join(old)}.")
    differences = {name: difference(old[name], new[name], bootstrap=bootstrap) for name in old}
    improved = {name: _improvements(old[name], new[name], bootstrap) for name in (*capabilities, *gains)}
    exchange = [
        exchange_rate(-improved[paid], improved[gained], paid, gained, bootstrap.confidence)
        for paid in capabilities
        for gained in gains
        if paid != gained
    ]
    return Tax(differences, old, exchange)


def exchange_rate(lost: np.ndarray, gained: np.ndarray, paid: str, bought: str, confidence: float) -> Exchange:
    """Returns the ratio of two changes with its interval.

    The rate is NaN if nothing was gained beyond chance, that is, if the interval of the gain is not above 0. Among the
    resamples a few may gain nothing all the same. Their rate is ∞ if they lost, -∞ otherwise.

    Args:
        lost: loss of the capability: the measured one, then the resampled ones, ``[1 + R]``.
        gained: the gain, likewise.
        paid: name of the capability.
        bought: name of the gain.
        confidence: of the interval.
    """
    tail = (1 - confidence) / 2
    if not np.quantile(gained[1:], tail) > 0 or not np.isfinite(lost).all():
        return Exchange(paid, bought, math.nan, (math.nan, math.nan))
    some = gained[1:] > 0
    rates = np.where(some, lost[1:] / np.where(some, gained[1:], 1), np.where(lost[1:] > 0, math.inf, -math.inf))
    rates = rates[some | (lost[1:] != 0)]
    interval = np.quantile(rates, [tail, 1 - tail], method="nearest")  # infinities cannot be interpolated
    return Exchange(paid, bought, float(lost[0] / gained[0]), (float(interval[0]), float(interval[1])))


def _improvements(old: Outcome, new: Outcome, bootstrap: Bootstrap) -> np.ndarray:
    """Returns the measured improvement of a figure's ratio, then the resampled ones, ``[1 + R]``, without the link.

    The seed depends on the number of items, so two figures of one task, which have the same items, are resampled
    together.
    """
    count = len(old.totals)
    draws = np.random.default_rng((bootstrap.seed, count)).multinomial(
        count, np.full(count, 1 / count), size=bootstrap.resamples
    )
    weight = np.concatenate([np.ones((1, count)), draws])
    after, before = (ratio(outcome.totals, outcome.counts)(weight) for outcome in (new, old))
    return -1.0 * (after - before) if old.good == "less" else after - before
