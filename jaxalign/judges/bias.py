"""What a judge favours besides quality: longer answers, its own family's; and what of that humans favour too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.pairwise import FIRST, TIE, Verdicts, parse_labels
from jaxalign.judges.raters import same_length
from jaxalign.stats import DEFAULT, FAILURE, Bootstrap, Codes, Floats, Interval, estimate, ratio


@dataclass(frozen=True)
class Favour:
    """How often a judge prefers one kind of response over the other. Intervals are by bootstrap over the pairs."""

    pairs: int
    """Pairs of which exactly one response is of the kind."""
    wins: float
    """Share of these pairs won by the response of the kind; with losses, ties and failures it makes 1."""
    wins_ci: Interval
    losses: float
    losses_ci: Interval
    bias: float
    """wins - losses; 0 is even."""
    bias_ci: Interval
    excess: float | None = None
    """bias minus the humans' bias on the same pairs, where there are human labels: what quality does not explain."""
    excess_ci: Interval | None = None
    slope: float = np.nan
    """Log-odds of preferring a response of the kind (for length: per unit that it is longer), ties aside, the human
    labels held fixed where given. A judge that merely errs has an excess where humans favour the other kind; its slope
    is 0."""
    slope_ci: Interval = (np.nan, np.nan)


def verbosity_bias(
    winners: Verdicts, length_difference: Any, human: Verdicts | None = None, *, bootstrap: Bootstrap = DEFAULT
) -> Favour:
    """Win rate of the longer response, and the slope b of logit P(first wins) = a + b·Δlength (+ c·human).

    Ties and failures are in every denominator, but not in the slope: given that there is no tie, Davidson's model of
    ties is this one. The intercept takes up position bias. Source: Dubois et al. 2024, arXiv:2404.04475, eq. 2 (a
    regression on length and quality); Davidson 1970, https://doi.org/10.1080/01621459.1970.10481082.

    Args:
        winners: "first", "second", "tie", or None for a failure, naming responses, ``[n]``; combined or of one order.
        length_difference: length of the first response minus that of the second, in any unit, ``[n]``.
        human: the human labels, likewise, ``[n]``; None where there is none.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        the bias for the longer response, its excess over that of the humans, and the slope.

    Raises:
        UserError: if lengths differ or are not finite, no pair differs in length, or a verdict is unknown.

    >>> result = verbosity_bias(["first", "first", "second", "tie"], [50, 30, 10, -20])
    >>> result.wins, result.losses, result.bias
    (0.5, 0.25, 0.25)
    """
    try:
        difference = np.asarray(length_difference, np.float64)
    except (TypeError, ValueError):
        raise UserError("length_difference: not a list of numbers: give one difference for each pair") from None
    if difference.ndim != 1 or not np.isfinite(difference).all():
        raise UserError("length_difference: it holds something not finite: give one number for each pair")
    favoured = np.where(difference > 0, 1, np.where(difference < 0, -1, 0))
    return _favour(winners, favoured, difference, human, "length_difference is 0 in every pair", bootstrap)


def self_preference(
    winners: Verdicts, own: Verdicts, human: Verdicts | None = None, *, bootstrap: Bootstrap = DEFAULT
) -> Favour:
    """How often a judge prefers its own family's response: bias = wins - losses, and its excess over the humans' bias.

    Source: Panickssery et al. 2024, arXiv:2404.13076.

    Args:
        winners: "first", "second", "tie", or None for a failure, naming responses, ``[n]``.
        own: which response is of the judge's family, "first" or "second"; "tie" if both are and None if neither.
        human: the human labels, ``[n]``; None where there is none. Without them, a judge whose family is simply better
            looks biased.
        bootstrap: confidence, resamples and seed of the intervals.

    Returns:
        the bias for the judge's own, and its excess.

    Raises:
        UserError: if lengths differ, a verdict is unknown, or no pair has exactly one response of the judge's family.

    >>> result = self_preference(["first", "first", "tie"], ["first", "first", "second"], ["first", "second", "tie"])
    >>> round(result.bias, 3), round(result.excess, 3)
    (0.667, 0.667)
    """
    codes = parse_labels("own", own)
    favoured = np.select([codes == FIRST, (codes == TIE) | (codes == FAILURE)], [1, 0], -1)
    return _favour(winners, favoured, favoured, human, "own names one response in no pair", bootstrap)


def _favour(
    winners: Verdicts, favoured: Codes, difference: Any, human: Verdicts | None, nothing: str, bootstrap: Bootstrap
) -> Favour:
    """``favoured``: 1 if the first response is of the kind, -1 if the second, 0 to leave the pair out; ``difference``:
    by how much it is more of it than the second."""
    verdicts, truth = _columns(winners, favoured, human)
    kept = favoured != 0
    if not kept.any():
        raise UserError(f"{nothing}: there is nothing to compare, leave this measurement out")
    judged, said = _sign(verdicts)[kept] * favoured[kept], _sign(truth)[kept] * favoured[kept]
    known = truth[kept] != FAILURE
    outcomes, counts = np.unique(np.stack([judged, said, known], axis=1), axis=0, return_counts=True)
    judged, said, known = outcomes.T
    every = np.ones(len(counts))
    wins = estimate(ratio(judged == 1, every), counts, bootstrap, bounds=(0, 1))
    losses = estimate(ratio(judged == -1, every), counts, bootstrap, bounds=(0, 1))
    bias = estimate(ratio(judged, every), counts, bootstrap, bounds=(-1, 1), span=2)
    favour = (int(counts.sum()), *wins, *losses, *bias)
    slope = _slope(verdicts, np.asarray(difference, np.float64), human, bootstrap)
    if not known.any():
        return Favour(*favour, None, None, *slope)
    known = known == 1
    gap = estimate(ratio((judged - said)[known], every[known]), counts[known], bootstrap, bounds=(-2, 2), span=4)
    return Favour(*favour, *gap, *slope)


def _slope(verdicts: Codes, difference: Floats, human: Verdicts | None, bootstrap: Bootstrap) -> tuple[float, Interval]:
    kept = (verdicts != FAILURE) & (verdicts != TIE)
    columns = [np.ones(len(verdicts)), difference]
    if human is not None:
        truth = parse_labels("human", human)
        kept &= truth != FAILURE
        columns.append(_sign(truth).astype(float))
    if not kept.any() or not np.ptp(difference[kept]):
        return np.nan, (np.nan, np.nan)
    design = np.stack(columns, axis=1)[kept]
    scale = np.sqrt(np.mean(design**2, axis=0))
    design = design / np.where(scale > 0, scale, 1)
    wins = (_sign(verdicts)[kept] + 1) / 2

    def statistic(weight: Floats) -> Floats:
        return logistic(design, wins, weight)[:, 1] / scale[1]

    return estimate(statistic, np.ones(kept.sum()), bootstrap)


def logistic(design: Floats, outcome: Floats, weight: Floats, *, ridge: float = 1e-3, steps: int = 50) -> Floats:
    """Logistic regressions by Newton's method, one per row of weights ``[R, n]``: coefficients ``[R, p]``.

    The slight ridge keeps them finite where a column parts the outcomes perfectly.
    """
    _, width = design.shape
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), width * width)
    beta = np.zeros((len(weight), width))
    for _ in range(steps):
        mean = 1 / (1 + np.exp(-np.clip(beta @ design.T, -500, 500)))
        gradient = (weight * (outcome - mean)) @ design - ridge * beta
        hessian = ((weight * mean * (1 - mean)) @ products).reshape(-1, width, width) + ridge * np.eye(width)
        step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        length = np.linalg.norm(step, axis=1, keepdims=True)
        beta += step * np.minimum(1, 2 / np.maximum(length, 1e-300))  # no leap where the curve is flat
        if length.max() < 1e-8:
            break
    return beta


def _columns(winners: Verdicts, favoured: Codes, human: Verdicts | None) -> tuple[Codes, Codes]:
    verdicts = parse_labels("winners", winners)
    truth = np.full(len(verdicts), FAILURE) if human is None else parse_labels("human", human)
    same_length({"winners": verdicts, "the other argument": favoured, "human": truth})
    return verdicts, truth


def _sign(codes: Codes) -> Codes:
    """1 for the first response, -1 for the second, 0 for a tie or a failure."""
    return np.array([1, -1, 0, 0])[codes]
