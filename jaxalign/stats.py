"""Statistics: bootstrap intervals of audits and ratios, Wilson and Student intervals, the area under a ROC curve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
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


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share of ``count`` independent trials, 95% by default.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)   (Wilson 1927)

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if count == 0:
        return 0.0, 1.0
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    middle, scale = share + z**2 / (2 * count), 1 + z**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def student(values: np.ndarray) -> tuple[float, float, float]:
    """The mean of one value for each seed, with Student's 95 % interval, which one value does not have."""
    from scipy.stats import t  # type: ignore[import-untyped]  # takes a second to import

    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Separation:
    """The area under the ROC curve, P(a liked answer scores above another one), ties half; NaN without both kinds.

    Attributes:
        auc: of all pairs of a liked and another answer.
        auc_ci: 95% by resampling prompts, as answers to one prompt are not independent.
        liked, others: how many answers of each kind.
        prompts: how many prompts they answer.
    """

    auc: float
    auc_ci: tuple[float, float]
    liked: int
    others: int
    prompts: int


def separation(
    scores: Sequence[float], liked: Sequence[bool], prompts: Sequence[Hashable], seed: int = 0
) -> Separation:
    """The separation of answers ``[N]`` by their scores (Mann and Whitney 1947), bootstrapped over their prompts.

    >>> found = separation([2.0, 1.0, 1.0, 0.0], [True, True, False, False], ["a", "b", "c", "d"])
    >>> found.auc
    0.875
    """
    values, label = np.asarray(scores, float), np.asarray(liked, bool)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    owner = np.array([numbers[prompt] for prompt in prompts], int)
    # Places in the order of scores; a liked answer leads those before its place, and half of those that share it.
    _, place, sizes = np.unique(values, return_inverse=True, return_counts=True)

    def area(weight: np.ndarray) -> float:
        up = np.bincount(place, weight * label, len(sizes))
        down = np.bincount(place, weight * ~label, len(sizes))
        total = up.sum() * down.sum()
        return float(up @ (np.cumsum(down) - down / 2) / total) if total else float("nan")

    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=RESAMPLES)
    found = [area(draw[owner].astype(float)) for draw in draws]
    low, high = np.nanquantile(found, [0.025, 0.975]) if not np.all(np.isnan(found)) else (np.nan, np.nan)
    count = int(label.sum())
    return Separation(area(np.ones(len(values))), (float(low), float(high)), count, len(values) - count, len(numbers))
