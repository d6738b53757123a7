"""Win rates of one model's answers against another's, to the same prompts; raw, and with the length held fixed."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from jaxalign.errors import UserError
from jaxalign.evals.outcome import Estimate, Outcome
from jaxalign.judges.bias import logistic
from jaxalign.judges.pairwise import FIRST, TIE, Verdicts, parse_labels
from jaxalign.stats import DEFAULT, Bootstrap, Floats, estimate


def wins_of_scores(scores: Float[np.ndarray, " N"], baseline: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """1 where an answer scores higher than the baseline's, ½ where both score the same, 0 otherwise.

    >>> wins_of_scores(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    array([1. , 0.5, 0. ])
    """
    return (np.sign(np.asarray(scores) - np.asarray(baseline)) + 1) / 2


def wins_of_verdicts(winners: Verdicts) -> Float[np.ndarray, " N"]:
    """The same of a judge's verdicts on both orders (``judges.combine_orders``), where the model's answer is the first.

    A verdict that changes with the order is a tie; a failure is one too: it favours nobody.

    >>> wins_of_verdicts(["first", "second", "tie", None])
    array([1. , 0. , 0.5, 0.5])
    """
    codes = parse_labels("verdicts", winners)
    return np.where(codes == FIRST, 1.0, np.where((codes == TIE) | (codes < 0), 0.5, 0.0))


def win_rate(name: str, wins: Float[np.ndarray, " N"]) -> list[Outcome]:
    """The mean of wins, in which a tie is half a win; ½ is even."""
    return [Outcome.mean(f"{name}/win_rate", wins, share=True)]


def length_controlled_win_rate(
    wins: Float[np.ndarray, " N"] | Float[np.ndarray, "N K"],
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    bootstrap: Bootstrap = DEFAULT,
) -> Estimate:
    """What the win rate would be if the answers were as long as the baseline's: σ(a) of a logistic regression

        P(win) = σ(a + b tanh((l - l₀) / std(l - l₀)))

    Source: Dubois et al. 2024, arXiv:2404.04475, eq. 2, without its term for the difficulty of an instruction, which
    needs many models' answers.

    Args:
        wins: 1, ½ or 0 an item, or for each of K answers to it, which are resampled together.
        lengths, baseline_lengths: of the answers, in any one unit, in the shape of the wins.
        bootstrap: of the interval.

    Returns:
        the rate, NaN where the data leave it open: one side's answers are all longer, or equal length lies between all
        that won and all that lost. Where more than a tail of the resamples is like that, the interval is NaN.

    Raises:
        UserError: if the shapes differ or there is no item.

    >>> result = length_controlled_win_rate(np.array([1.0, 0.0] * 50), [5] * 100, [5] * 100)
    >>> round(result.value, 3)
    0.5
    """
    won, mine, theirs = (np.asarray(each, np.float64) for each in (wins, lengths, baseline_lengths))
    if not won.size or not won.shape == mine.shape == theirs.shape:
        raise UserError(f"win rate: {won.size} verdicts, {mine.size} and {theirs.size} lengths: one of each per answer")
    longer = (mine - theirs).ravel()
    scale = longer.std()
    column = np.tanh(longer / scale) if scale > 0 else np.sign(longer)
    design = np.stack([np.ones(len(column)), column], axis=1)
    items = len(won)
    without: list[bool] = []

    def statistic(weight: Floats) -> Floats:
        each = np.repeat(weight, won.size // items, axis=1)
        rates = 1 / (1 + np.exp(-logistic(design, won.ravel(), each)[:, 0]))
        rates = _limits(rates, column, won.ravel(), each)
        without.extend(np.isnan(rates))
        return rates

    value, ci = estimate(statistic, np.ones(items), bootstrap, bounds=(0, 1))
    if np.mean(without) > (1 - bootstrap.confidence) / 2:
        ci = (np.nan, np.nan)
    return Estimate(value, ci, items)


def _limits(rates: Floats, column: Floats, won: Floats, weight: Floats) -> Floats:
    """The rates at 0, for each row of weights, with their limits where a threshold of the column parts wins and losses.

    Then the likelihood has no largest value (Albert and Anderson 1984, https://doi.org/10.1093/biomet/71.1.1): the
    slope goes to infinity, and the rate to 1 on one side of the threshold and to 0 on the other; NaN where 0 may be on
    either. NaN too where all of the column is on one side of 0.
    """
    some = weight > 0
    won_low, won_high, lost_low, lost_high = (
        end
        for of in (some & (won > 0), some & (won < 1))
        for end in (np.where(of, column, np.inf).min(axis=1), np.where(of, column, -np.inf).max(axis=1))
    )
    none_won, none_lost = won_high == -np.inf, lost_high == -np.inf
    up, down = won_low >= lost_high, lost_low >= won_high
    meet = ((won_low == 0) & (lost_high == 0)) | ((lost_low == 0) & (won_high == 0))  # at 0, where the rate is fitted
    open_ = (up & (lost_high < 0) & (won_low > 0)) | (down & (won_high < 0) & (lost_low > 0))
    one = (up & (won_low <= 0)) | (down & (won_high >= 0))
    zero = (up & (lost_high >= 0)) | (down & (lost_low <= 0))
    found = np.select([none_lost, none_won, meet, open_, one, zero], [1.0, 0.0, rates, np.nan, 1.0, 0.0], rates)
    one_sided = (np.minimum(won_low, lost_low) > 0) | (np.maximum(won_high, lost_high) < 0)
    return np.where(one_sided, np.nan, found)
