"""Calibration of a judge's probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.raters import estimate_mean, same_length
from jaxalign.stats import DEFAULT, Bootstrap, Floats, Interval, estimate


class Bin(NamedTuple):
    """One bin of a reliability diagram.

    Attributes:
        low: Lower end of its probabilities.
        high: Upper end of its probabilities.
        size: Number of items.
        probability: Mean of the judge's probabilities; NaN in an empty bin.
        outcome: Mean of the outcomes; NaN in an empty bin.
    """

    low: float
    high: float
    size: int
    probability: float
    outcome: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from frequencies. Intervals are by bootstrap over the items.

    Attributes:
        brier: The Brier score.
        brier_ci: Its interval.
        ece: Expected calibration error. With few items it is positive even for a perfect judge, so compare
            ``ece_by_luck``.
        ece_ci: Its interval.
        ece_by_luck: Upper limit of the error, at this confidence, if all of these probabilities were true.
        overconfidence: Mean of |p - ½| - (outcome on the side that p favours - ½). Above 0 the judge is surer than it
            is right.
        overconfidence_ci: Its interval.
        bins: The reliability diagram.
        failures: Number of items without a probability. No other field counts them.
    """

    brier: float
    brier_ci: Interval
    ece: float
    ece_ci: Interval
    ece_by_luck: float
    overconfidence: float
    overconfidence_ci: Interval
    bins: tuple[Bin, ...]
    failures: int


def calibration(
    probabilities: Sequence[float | None], outcomes: Any, *, bins: int = 10, bootstrap: Bootstrap = DEFAULT
) -> Calibration:
    """Computes Brier = Σ_i (p_i - y_i)² / n and ECE = Σ_b (n_b / n) |mean p - mean y| over bins of equal width.

    Source: Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2, for two outcomes, halved;
    Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Args:
        probabilities: Probabilities of an event, such as that the first response is better; None for a failure,
            ``[n]``.
        outcomes: Whether the event occurred: 0 or 1, or ½ for a tie, ``[n]``.
        bins: Number of bins.
        bootstrap: Settings of the intervals.

    Returns:
        The measures and the reliability diagram.

    Raises:
        UserError: If lengths differ, all probabilities are failures, or a value is out of range. The message names the
            row.

    >>> result = calibration([0.9, 0.9, 0.1, None], [1, 0, 0, 1], bins=2)
    >>> round(result.brier, 3), round(result.ece, 3), result.failures
    (0.277, 0.3, 1)
    """
    same_length({"probabilities": probabilities, "outcomes": outcomes})
    if bins < 1:
        raise UserError(f"bins is {bins}. Give at least 1.")
    p = _parse_shares("probabilities", probabilities, allow_none=True)
    y = _parse_shares("outcomes", outcomes, allow_none=False)
    parsed = ~np.isnan(p)
    if not parsed.any():
        raise UserError("probabilities: all are failures. Give at least one probability.")
    p, y = p[parsed], y[parsed]
    ones = np.ones(len(p), int)
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    in_bin = (bin_of[:, None] == np.arange(bins)).astype(float)

    def ece(weight: Floats) -> Floats:
        return np.abs((weight * (p - y)) @ in_bin).sum(1) / weight.sum(1)

    excess = np.abs(p - 0.5) - np.where(p >= 0.5, 1, -1) * (y - 0.5)
    drawn = np.random.default_rng(bootstrap.seed).random((bootstrap.resamples, len(p))) < p
    luck = np.quantile(np.abs((p - drawn) @ in_bin).sum(1) / len(p), bootstrap.confidence)
    return Calibration(
        *estimate_mean((p - y) ** 2, ones, bootstrap),
        *estimate(ece, ones, bootstrap, bounds=(0, 1)),
        float(luck),
        *estimate_mean(excess, ones, bootstrap, (-0.5, 1)),
        tuple(_bin(b, bins, p[bin_of == b], y[bin_of == b]) for b in range(bins)),
        int((~parsed).sum()),
    )


def _bin(index: int, bins: int, p: Floats, y: Floats) -> Bin:
    low, high = index / bins, (index + 1) / bins
    return Bin(low, high, len(p), *((float(p.mean()), float(y.mean())) if len(p) else (np.nan, np.nan)))


def _parse_shares(name: str, values: Any, *, allow_none: bool) -> Floats:
    """Returns numbers between 0 and 1, with NaN for None."""
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    for i, value in enumerate(listed):
        valid = (value is None and allow_none) or (isinstance(value, (int, float)) and 0 <= value <= 1)
        if not valid:
            raise UserError(f"{name}, row {i + 1}: {value!r} is not between 0 and 1. Give a number in that range.")
    return np.array([np.nan if value is None else value for value in listed], np.float64)
