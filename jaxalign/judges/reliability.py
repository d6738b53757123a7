"""Do a judge's probabilities mean what they say?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.raters import same_length
from jaxalign.stats import DEFAULT, Bootstrap, Floats, Interval, estimate, ratio


class Bin(NamedTuple):
    """One bin of a reliability diagram."""

    low: float
    high: float
    size: int
    probability: float
    """Mean of what the judge said; NaN in an empty bin."""
    outcome: float
    """Mean of what was the case."""


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from frequencies. Intervals are by bootstrap over the items."""

    brier: float
    brier_ci: Interval
    ece: float
    """Expected calibration error. It is positive even of a perfect judge, for want of data: compare ``ece_by_luck``."""
    ece_ci: Interval
    ece_by_luck: float
    """What a judge with these very probabilities, all true, would stay below at this confidence."""
    overconfidence: float
    """Mean of |p - ½| - (outcome on the side that p takes - ½): above 0 the judge is surer than it is right."""
    overconfidence_ci: Interval
    bins: tuple[Bin, ...]
    failures: int
    """Items without a probability; they are in none of the figures above."""


def calibration(
    probabilities: Sequence[float | None], outcomes: Any, *, bins: int = 10, bootstrap: Bootstrap = DEFAULT
) -> Calibration:
    """Brier = Σ_i (p_i - y_i)² / n and ECE = Σ_b (n_b / n) |mean p - mean y| over bins of equal width.

    Source: Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2, for two outcomes, halved;
    Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Args:
        probabilities: that the first response is better, say, in [0, 1]; None for a failure, ``[n]``.
        outcomes: whether it was, 0 or 1, or ½ for a tie, ``[n]``.
        bins: how many, at least 1.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        the figures and the reliability diagram.

    Raises:
        UserError: if lengths differ, all failed, or a value is out of range; the sentence names the row.

    >>> result = calibration([0.9, 0.9, 0.1, None], [1, 0, 0, 1], bins=2)
    >>> round(result.brier, 3), round(result.ece, 3), result.failures
    (0.277, 0.3, 1)
    """
    same_length({"probabilities": probabilities, "outcomes": outcomes})
    if bins < 1:
        raise UserError(f"bins is {bins}: give at least 1")
    p = _in_unit("probabilities", probabilities, failures=True)
    y = _in_unit("outcomes", outcomes, failures=False)
    parsed = ~np.isnan(p)
    if not parsed.any():
        raise UserError("probabilities: every one is a failure: there is nothing to calibrate")
    p, y = p[parsed], y[parsed]
    one, ones = np.ones(len(p)), np.ones(len(p), int)
    place = np.minimum((p * bins).astype(int), bins - 1)
    belongs = (place[:, None] == np.arange(bins)).astype(float)

    def ece(weight: Floats, outcome: Floats = y) -> Floats:
        return np.abs((weight * (p - outcome)) @ belongs).sum(1) / weight.sum(1)

    side = np.where(p >= 0.5, 1, -1)
    excess = np.abs(p - 0.5) - side * (y - 0.5)
    brier = estimate(ratio((p - y) ** 2, one), ones, bootstrap, bounds=(0, 1))
    error = estimate(ece, ones, bootstrap, bounds=(0, 1))
    drawn = np.random.default_rng(bootstrap.seed).random((bootstrap.resamples, len(p))) < p
    luck = np.quantile(np.abs((p - drawn) @ belongs).sum(1) / len(p), bootstrap.confidence)
    over = estimate(ratio(excess, one), ones, bootstrap, bounds=(-0.5, 1), span=1.5)
    diagram = tuple(_bin(b, bins, p[place == b], y[place == b]) for b in range(bins))
    return Calibration(*brier, *error, float(luck), *over, diagram, int((~parsed).sum()))


def _bin(index: int, bins: int, p: Floats, y: Floats) -> Bin:
    low, high = index / bins, (index + 1) / bins
    return Bin(low, high, len(p), *((float(p.mean()), float(y.mean())) if len(p) else (np.nan, np.nan)))


def _in_unit(name: str, values: Any, *, failures: bool) -> Floats:
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    for i, value in enumerate(listed):
        fine = (value is None and failures) or (isinstance(value, (int, float)) and 0 <= value <= 1)
        if not fine:
            raise UserError(f"{name}, row {i + 1}: {value!r} is not between 0 and 1: give a number there")
    return np.array([np.nan if value is None else value for value in listed], np.float64)
