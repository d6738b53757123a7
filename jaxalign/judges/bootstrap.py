"""Intervals by resampling the pairs of an audit, as weights over its distinct outcomes: fast for any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError

Floats: TypeAlias = NDArray[np.float64]
Codes: TypeAlias = NDArray[np.int64]
Interval: TypeAlias = tuple[float, float]
FAILURE = -1
"""The code of a label that is missing; it equals no label, itself included."""


class Bootstrap(NamedTuple):
    """How intervals are made: percentiles of the statistic over data sets drawn with replacement.

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552.
    """

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0


DEFAULT = Bootstrap()


def weights(counts: Sequence[int] | NDArray[Any], bootstrap: Bootstrap, *, room: int = 1 << 22) -> Iterator[Floats]:
    """Resampled data sets, each as how often every outcome occurs in it, in blocks ``[resamples, outcomes]``."""
    confidence, resamples, seed = bootstrap
    if not 0 < confidence < 1 or resamples < 1:
        raise UserError(f"{bootstrap}: give a confidence between 0 and 1 and at least one resample")
    counts = np.asarray(counts, float)
    generator = np.random.default_rng(seed)
    size = max(1, room // len(counts))
    total = int(counts.sum())
    for start in range(0, resamples, size):
        block = generator.multinomial(total, counts / total, size=min(size, resamples - start))
        yield block.astype(np.float64)


def estimate(
    statistic: Callable[[Floats], Floats],
    counts: Sequence[int] | NDArray[Any],
    bootstrap: Bootstrap,
    *,
    bounds: Interval = (-math.inf, math.inf),
    span: float = 1.0,
) -> tuple[float, Interval]:
    """A statistic of the data and its interval.

    Args:
        statistic: from weights ``[R, M]`` over the M outcomes to its values ``[R]``.
        counts: how often each outcome was seen, ``[M]``.
        bootstrap: how to resample.
        bounds: what the statistic cannot leave.
        span: how much the statistic moves if a share of 1 of the data changes. Needed where all resamples agree, as
            with no failure in n pairs: outcomes unseen in n have a share of at most 1 - (α/2)^(1/n), Clopper and
            Pearson's bound, so the interval is that wide and not of width zero.
    """
    counts = np.asarray(counts, float)
    value = float(statistic(counts[None])[0])
    drawn = np.concatenate([statistic(block) for block in weights(counts, bootstrap)])
    drawn = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or not len(drawn):
        return value, (math.nan, math.nan)
    tail = (1 - bootstrap.confidence) / 2
    if np.ptp(drawn) < 1e-12:
        doubt = span * (1 - tail ** (1 / counts.sum()))
        return value, (float(max(bounds[0], value - doubt)), float(min(bounds[1], value + doubt)))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return value, (float(low), float(high))


def ratio(numerator: Any, denominator: Any) -> Callable[[Floats], Floats]:
    """The statistic Σ w·numerator / Σ w·denominator, NaN where nothing is below."""
    over, under = np.asarray(numerator, float), np.asarray(denominator, float)

    def statistic(weight: Floats) -> Floats:
        below = weight @ under
        return np.divide(weight @ over, below, out=np.full(len(weight), np.nan), where=below > 0)

    return statistic


def kappa(a: Codes, b: Codes) -> Callable[[Floats], Floats]:
    """The statistic κ = (p_o - p_e) / (1 - p_e) of two raters' codes; a failure agrees with nothing."""
    match = (a == b) & (a != FAILURE)
    size = int(max(a.max(), b.max())) + 1

    def statistic(weight: Floats) -> Floats:
        total = weight.sum(1)
        observed = weight @ match.astype(float) / total
        expected = np.sum(_shares(weight, a, size) * _shares(weight, b, size), axis=1) / total**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)

    return statistic


def _shares(weight: Floats, codes: Codes, size: int) -> Floats:
    """The weight of each code, ``[R, size]``."""
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] != FAILURE]
    out = np.zeros((len(weight), max(size, 1)))
    if len(order):
        present, starts = np.unique(codes[order], return_index=True)
        out[:, present] = np.add.reduceat(weight[:, order], starts, axis=1)
    return out
