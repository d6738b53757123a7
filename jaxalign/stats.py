"""Statistics: bootstrap, Wilson and Student intervals, agreement of raters, and the area under a ROC curve.

A bootstrap statistic is a function of weights: it maps weights over M outcomes, ``[R, M]``, to R values. ``ratio`` and
``kappa`` make such functions, and ``estimate`` evaluates one on the data and on resamples of it::

    value, (low, high) = estimate(ratio(wins, np.ones(len(wins))), counts, Bootstrap())
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError

Floats: TypeAlias = NDArray[np.float64]
# Labels as integers from 0; FAILURE is a missing one.
Codes: TypeAlias = NDArray[np.int64]
# Lower and upper end.
Interval: TypeAlias = tuple[float, float]
# The code of a missing label. It equals no label, not even another missing one.
FAILURE = -1
# Resampled data sets are drawn in blocks of at most this many numbers, which bounds memory to 32 MiB.
BLOCK_SIZE = 1 << 22
# Resamples for the interval of an AUC.
AUC_RESAMPLES = 1000


class Bootstrap(NamedTuple):
    """Settings of bootstrap intervals: percentiles of a statistic over data sets drawn with replacement.

    Attributes:
        confidence: probability that the interval covers the truth, in (0, 1).
        resamples: number of data sets drawn.
        seed: seed of the draws.

    Source: Efron 1979, https://doi.org/10.1214/aos/1176344552.
    """

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0


DEFAULT = Bootstrap()


def estimate(
    statistic: Callable[[Floats], Floats],
    counts: Sequence[int] | NDArray[Any],
    bootstrap: Bootstrap,
    *,
    bounds: Interval = (-math.inf, math.inf),
    span: float = 1.0,
) -> tuple[float, Interval]:
    """Evaluates a statistic on the data, with its bootstrap interval.

    If all n data are equal, all resamples agree, and percentiles would give an interval of width 0. The interval then
    reaches span · (1 - (α/2)^(1/n)) to each side, within the bounds. This is Clopper and Pearson's limit: an outcome
    that n data do not contain has at most that share.

    Args:
        statistic: maps weights ``[R, M]`` over the M outcomes to its values ``[R]``.
        counts: number of times each outcome was seen, ``[M]``.
        bootstrap: confidence, resamples and seed.
        bounds: smallest and largest possible value of the statistic.
        span: change of the statistic if a share of 1 of the data changes.

    Returns:
        ``(value, (low, high))``. The interval is NaN if the value is, or if no resample gives a finite value.

    Raises:
        UserError: if the confidence is not in (0, 1), or the number of resamples is below 1.

    >>> wins, counts = np.array([1.0, 0.0]), [3, 1]
    >>> estimate(ratio(wins, np.ones(2)), counts, Bootstrap(resamples=100), bounds=(0, 1))[0]
    0.75
    """
    counts = np.asarray(counts, float)
    value = float(statistic(counts[None])[0])
    resampled = np.concatenate([statistic(block) for block in _resample(counts, bootstrap)])
    resampled = resampled[np.isfinite(resampled)]
    if not math.isfinite(value) or not len(resampled):
        return value, (math.nan, math.nan)
    tail = (1 - bootstrap.confidence) / 2
    if np.ptp(resampled) < 1e-12:
        margin = span * (1 - tail ** (1 / counts.sum()))
        return value, (float(max(bounds[0], value - margin)), float(min(bounds[1], value + margin)))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return value, (float(low), float(high))


def ratio(numerator: Any, denominator: Any) -> Callable[[Floats], Floats]:
    """Returns the statistic Σ w·numerator / Σ w·denominator.

    Equal ratios give that ratio, up to rounding. The value is NaN where the weighted denominator is not above 0.

    Args:
        numerator: a number per outcome, ``[M]``.
        denominator: a number per outcome, ``[M]``.

    Returns:
        a function of weights ``[R, M]`` to values ``[R]``.

    >>> ratio([1, 0], [1, 1])(np.array([[3.0, 1.0]]))
    array([0.75])
    """
    over, under = np.asarray(numerator, float), np.asarray(denominator, float)

    def statistic(weight: Floats) -> Floats:
        total = weight @ under
        return np.divide(weight @ over, total, out=np.full(len(weight), np.nan), where=total > 0)

    return statistic


def kappa(a: Codes, b: Codes) -> Callable[[Floats], Floats]:
    """Returns the statistic κ of two raters, the agreement beyond chance.

        κ = (p_o - p_e) / (1 - p_e)

    A failure agrees with nothing. If all labels of both raters are equal, p_e is 1 and κ is NaN.

    Args:
        a: the first rater's code of each outcome, ``[M]``.
        b: the second rater's, ``[M]``.

    Returns:
        a function of weights ``[R, M]`` to values ``[R]``.

    >>> kappa(np.array([0, 1, 1]), np.array([0, 1, 0]))(np.array([[2.0, 2.0, 0.0]]))
    array([1.])

    Source: Cohen 1960, https://doi.org/10.1177/001316446002000104, eq. 1.
    """
    match = (a == b) & (a != FAILURE)
    size = int(max(a.max(), b.max())) + 1

    def statistic(weight: Floats) -> Floats:
        total = weight.sum(1)
        observed = weight @ match.astype(float) / total
        expected = np.sum(_weight_by_code(weight, a, size) * _weight_by_code(weight, b, size), axis=1) / total**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)

    return statistic


def wilson(share: float, count: int, z: float = 1.96) -> Interval:
    """Computes the Wilson score interval of a share p of n independent trials.

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Equal trials (p = 0 or 1) still give an interval of positive width. Without trials it is (0, 1).

    Args:
        share: p, in [0, 1].
        count: n.
        z: quantile of the normal distribution; 1.96 gives 95%.

    Returns:
        ``(low, high)``, within [0, 1].

    >>> low, high = wilson(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    if count == 0:
        return 0.0, 1.0
    spread = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    middle, scale = share + z**2 / (2 * count), 1 + z**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def student(values: np.ndarray) -> tuple[float, float, float]:
    """Computes the mean of independent values, such as one per seed, with Student's 95% interval.

        mean ± t_{0.975, n-1} s / √n

    Equal values give an interval of width 0, up to rounding. The ends are NaN for a single value.

    Args:
        values: the values, ``[n]``.

    Returns:
        ``(mean, low, high)``, the mean and the ends of its interval.

    >>> mean, low, high = student(np.array([1.0, 2.0, 3.0]))
    >>> mean, round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)

    Source: Student 1908, https://doi.org/10.2307/2331554.
    """
    # SciPy's statistics take a second to import, and most callers of this module do not need them.
    from scipy.stats import t  # type: ignore[import-untyped]

    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


@dataclasses.dataclass(frozen=True)
class Separation:
    """Area under the ROC curve of liked against other answers.

    Attributes:
        auc: P(a liked answer scores above another one), a tie counts half; NaN unless both kinds are present.
        auc_ci: 95% interval by resampling prompts, because answers to one prompt are not independent.
        liked: number of liked answers.
        others: number of other answers.
        prompts: number of distinct prompts.
    """

    auc: float
    auc_ci: Interval
    liked: int
    others: int
    prompts: int


def separation(
    scores: Sequence[float], liked: Sequence[bool], prompts: Sequence[Hashable], seed: int = 0
) -> Separation:
    """Computes how well scores separate liked from other answers, with a bootstrap interval over prompts.

        AUC = mean over pairs of [s_liked > s_other] + ½ [s_liked = s_other]

    Equal scores give ½, with an interval of width 0.

    Args:
        scores: score of each answer, ``[N]``.
        liked: True for a liked answer, ``[N]``.
        prompts: prompt of each answer, ``[N]``.
        seed: seed of the resamples.

    Returns:
        the area, its interval and the counts.

    >>> separation([2.0, 1.0, 1.0, 0.0], [True, True, False, False], ["a", "b", "c", "d"]).auc
    0.875

    Source: Mann and Whitney 1947, https://doi.org/10.1214/aoms/1177730491.
    """
    values, label = np.asarray(scores, float), np.asarray(liked, bool)
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    owner = np.array([numbers[prompt] for prompt in prompts], int)
    # Ranks of equal scores are equal. A liked answer is above all others of lower rank, and half of those of its own.
    _, rank, sizes = np.unique(values, return_inverse=True, return_counts=True)

    def area(weight: Floats) -> float:
        up = np.bincount(rank, weight * label, len(sizes))
        down = np.bincount(rank, weight * ~label, len(sizes))
        total = up.sum() * down.sum()
        return float(up @ (np.cumsum(down) - down / 2) / total) if total else math.nan

    blocks = _resample(np.ones(len(numbers)), Bootstrap(resamples=AUC_RESAMPLES, seed=seed))
    areas = [area(weight[owner]) for block in blocks for weight in block]
    low, high = (math.nan, math.nan) if np.all(np.isnan(areas)) else np.nanquantile(areas, [0.025, 0.975])
    count = int(label.sum())
    return Separation(area(np.ones(len(values))), (float(low), float(high)), count, len(values) - count, len(numbers))


def _resample(counts: Floats, bootstrap: Bootstrap) -> Iterator[Floats]:
    """Yields resampled data sets in blocks ``[resamples, M]``: how often each outcome occurs in each."""
    confidence, resamples, seed = bootstrap
    if not 0 < confidence < 1 or resamples < 1:
        raise UserError(f"{bootstrap} gives no interval. Give a confidence between 0 and 1 and at least one resample.")
    generator = np.random.default_rng(seed)
    size = max(1, BLOCK_SIZE // len(counts))
    total = int(counts.sum())
    for start in range(0, resamples, size):
        block = generator.multinomial(total, counts / total, size=min(size, resamples - start))
        yield block.astype(np.float64)


def _weight_by_code(weight: Floats, codes: Codes, size: int) -> Floats:
    """Sums the weights of each code, ``[R, size]``; failures are omitted."""
    out = np.zeros((size, len(weight)))
    labelled = codes != FAILURE
    np.add.at(out, codes[labelled], weight[:, labelled].T)  # without a [R, M, size] array
    return out.T
