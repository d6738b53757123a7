"""Biases of a judge: towards longer responses, and towards those of its own family, beyond what humans share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.pairwise import FIRST, SECOND, VerdictColumn, parse_labels
from jaxalign.judges.raters import estimate_mean, same_length
from jaxalign.stats import DEFAULT, FAILURE, Bootstrap, Codes, Floats, Interval, estimate


@dataclass(frozen=True)
class Favour:
    """How often a judge prefers one kind of response over the other. Intervals are by bootstrap over the pairs.

    Attributes:
        pairs: Number of pairs of which exactly one response is of the kind.
        wins: Share of these pairs won by the response of the kind. Wins, losses, ties and failures sum to 1.
        wins_ci: Its interval.
        losses: Share of these pairs won by the other response.
        losses_ci: Its interval.
        bias: wins - losses. 0 is even.
        bias_ci: Its interval.
        excess: bias minus the humans' bias on the same pairs: what quality does not explain. None without human labels.
        excess_ci: Its interval.
        slope: Log-odds of preferring a response of the kind (for length, per unit that it is longer), without ties, at
            fixed human labels if there are any. A judge that merely errs has an excess if humans favour the other kind,
            but its slope is 0.
        slope_ci: Its interval.
    """

    pairs: int
    wins: float
    wins_ci: Interval
    losses: float
    losses_ci: Interval
    bias: float
    bias_ci: Interval
    excess: float | None = None
    excess_ci: Interval | None = None
    slope: float = np.nan
    slope_ci: Interval = (np.nan, np.nan)


def verbosity_bias(
    winners: VerdictColumn,
    length_difference: Any,
    human: VerdictColumn | None = None,
    *,
    bootstrap: Bootstrap = DEFAULT,
) -> Favour:
    """Computes the win rate of the longer response, and the slope b of logit P(first wins) = a + b·Δlength (+ c·human).

    Ties and failures are in every denominator, but not in the slope: without a tie, Davidson's model of
    ties is this one. The intercept takes up position bias. Source: Dubois et al. 2024, arXiv:2404.04475, eq. 2 (a
    regression on length and quality); Davidson 1970, https://doi.org/10.1080/01621459.1970.10481082.

    Args:
        winners: "first", "second", "tie", or None for a failure, naming responses, ``[n]``. They may be combined or of
            one order.
        length_difference: Length of the first response minus that of the second, in any unit, ``[n]``.
        human: The human labels, ``[n]``; None where there is none.
        bootstrap: Settings of the intervals.

    Returns:
        The bias for the longer response, its excess over that of the humans, and the slope.

    Raises:
        UserError: If lengths differ or are not finite, no pair differs in length, or a verdict is unknown.

    >>> result = verbosity_bias(["first", "first", "second", "tie"], [50, 30, 10, -20])
    >>> result.wins, result.losses, result.bias
    (0.5, 0.25, 0.25)
    """
    try:
        difference = np.asarray(length_difference, np.float64)
    except (TypeError, ValueError):
        raise UserError("length_difference is not a list of numbers. Give one difference for each pair.") from None
    if difference.ndim != 1 or not np.isfinite(difference).all():
        raise UserError("length_difference contains a value that is not finite. Give one number for each pair.")
    return _favour(winners, difference, human, "length_difference is 0 in every pair", bootstrap)


def self_preference(
    winners: VerdictColumn, own: VerdictColumn, human: VerdictColumn | None = None, *, bootstrap: Bootstrap = DEFAULT
) -> Favour:
    """Computes how often a judge prefers its own family's response: bias = wins - losses, and its excess over humans.

    Source: Panickssery et al. 2024, arXiv:2404.13076.

    Args:
        winners: "first", "second", "tie", or None for a failure, naming responses, ``[n]``.
        own: Which response is of the judge's family: "first", "second", "tie" for both, None for neither, ``[n]``.
        human: The human labels, ``[n]``; None where there is none. Without them, a judge whose family is simply better
            looks biased.
        bootstrap: Settings of the intervals.

    Returns:
        The bias for the judge's own responses, and its excess.

    Raises:
        UserError: If lengths differ, a verdict is unknown, or no pair has exactly one response of the judge's family.

    >>> result = self_preference(["first", "first", "tie"], ["first", "first", "second"], ["first", "second", "tie"])
    >>> round(result.bias, 3), round(result.excess, 3)
    (0.667, 0.667)
    """
    difference = _signs(parse_labels("own", own)).astype(np.float64)
    return _favour(winners, difference, human, "own: no pair has exactly one response of the family", bootstrap)


def _favour(
    winners: VerdictColumn, difference: Floats, human: VerdictColumn | None, problem: str, bootstrap: Bootstrap
) -> Favour:
    """Computes the preference for one kind of response.

    Args:
        winners: The verdicts.
        difference: How much more the first response is of the kind than the second. Pairs with 0 are omitted.
        human: The human labels.
        problem: The message if all pairs are omitted.
        bootstrap: Settings of the intervals.
    """
    verdicts = parse_labels("winners", winners)
    favoured = np.sign(difference).astype(int)
    truth = np.full(len(verdicts), FAILURE) if human is None else parse_labels("human", human)
    same_length({"winners": verdicts, "the other argument": favoured, "human": truth})
    if not favoured.any():
        raise UserError(f"{problem}, so there is nothing to compare. Omit this measurement.")
    columns = np.stack([_signs(verdicts) * favoured, _signs(truth) * favoured, truth != FAILURE], axis=1)
    outcomes, counts = np.unique(columns[favoured != 0], axis=0, return_counts=True)
    judge_side, human_side, labelled = outcomes.T
    favour = (
        int(counts.sum()),
        *estimate_mean(judge_side == 1, counts, bootstrap),
        *estimate_mean(judge_side == -1, counts, bootstrap),
        *estimate_mean(judge_side, counts, bootstrap, (-1, 1)),
    )
    known = labelled == 1
    excess: tuple[Any, Any] = (None, None)
    if known.any():
        excess = estimate_mean((judge_side - human_side)[known], counts[known], bootstrap, (-2, 2))
    slope = _slope(verdicts, difference, None if human is None else truth, bootstrap)
    return Favour(*favour, *excess, *slope)


def _slope(verdicts: Codes, difference: Floats, truth: Codes | None, bootstrap: Bootstrap) -> tuple[float, Interval]:
    used = (verdicts == FIRST) | (verdicts == SECOND)
    columns = [np.ones(len(verdicts)), difference]
    if truth is not None:
        used &= truth != FAILURE
        columns.append(_signs(truth).astype(float))
    if not used.any() or not np.ptp(difference[used]):
        return np.nan, (np.nan, np.nan)
    design = np.stack(columns, axis=1)[used]
    scale = np.sqrt(np.mean(design**2, axis=0))
    design = design / np.where(scale > 0, scale, 1)
    wins = (_signs(verdicts)[used] + 1) / 2

    return estimate(lambda weight: logistic(design, wins, weight)[:, 1] / scale[1], np.ones(used.sum()), bootstrap)


def logistic(design: Floats, outcome: Floats, weight: Floats, *, ridge: float = 1e-3, steps: int = 50) -> Floats:
    """Fits logistic regressions by Newton's method, one for each row of weights ``[R, n]``.

    Returns:
        The coefficients, ``[R, p]``. The ridge keeps them finite if a column separates the outcomes perfectly.
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
        # Steps are at most 2 long, because a Newton step overshoots where the curve is flat.
        beta += step * np.minimum(1, 2 / np.maximum(length, 1e-300))
        if length.max() < 1e-8:
            break
    return beta


def _signs(codes: Codes) -> Codes:
    """Returns 1 for the first response, -1 for the second, 0 for a tie or a failure."""
    return np.array([1, -1, 0, 0])[codes]
