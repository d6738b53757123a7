"""Win rates of one model's answers against another's, to the same prompts; raw, and with the length held fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxalign.errors import UserError
from jaxalign.evals.outcome import Estimate, Outcome
from jaxalign.judges.bias import logistic
from jaxalign.judges.bootstrap import DEFAULT, Bootstrap, Floats, estimate
from jaxalign.judges.pairwise import FIRST, TIE, Verdicts, combine_orders, parse_labels


def wins_of_scores(scores: Float[np.ndarray, " N"], baseline: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """1 where an answer scores higher than the baseline's, ½ where both score the same, 0 otherwise.

    >>> wins_of_scores(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    array([1. , 0.5, 0. ])
    """
    return (np.sign(np.asarray(scores) - np.asarray(baseline)) + 1) / 2


def wins_of_verdicts(first_order: Verdicts, second_order: Verdicts) -> Float[np.ndarray, " N"]:
    """The same of a judge asked in both orders, the first of which showed the model's answer first.

    A verdict that changes with the order is a tie; a failure is one too: it favours nobody.

    >>> wins_of_verdicts(["first", "first", "tie"], ["second", "first", None])
    array([1. , 0.5, 0.5])
    """
    codes = parse_labels("verdicts", combine_orders(first_order, second_order))
    return np.where(codes == FIRST, 1.0, np.where((codes == TIE) | (codes < 0), 0.5, 0.0))


def win_rate(name: str, wins: Float[np.ndarray, " N"]) -> list[Outcome]:
    """The mean of wins, in which a tie is half a win; ½ is even."""
    return [Outcome.mean(f"{name}/win_rate", wins, share=True)]


def length_controlled_win_rate(
    wins: Float[np.ndarray, " N"],
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    *,
    bootstrap: Bootstrap = DEFAULT,
) -> Estimate:
    """What the win rate would be if the answers were as long as the baseline's: σ(a) of a logistic regression

        P(win) = σ(a + b tanh((l - l₀) / std(l - l₀)))

    Source: Dubois et al. 2024, arXiv:2404.04475, eq. 2, without its term for the difficulty of an instruction, which
    needs many models' answers.

    Args:
        wins: 1, ½ or 0 an item.
        lengths, baseline_lengths: of the answers, in any one unit.
        bootstrap: of the interval.

    Raises:
        UserError: if the lists differ in length or are empty.

    >>> result = length_controlled_win_rate(np.array([1.0, 0.0] * 50), [5] * 100, [5] * 100)
    >>> round(result.value, 3)
    0.5
    """
    if not len(wins) or not len(wins) == len(lengths) == len(baseline_lengths):
        raise UserError(
            f"win rate: {len(wins)} verdicts, {len(lengths)} and {len(baseline_lengths)} lengths: one of each per item"
        )
    longer = np.asarray(lengths, np.float64) - np.asarray(baseline_lengths, np.float64)
    scale = longer.std()
    column = np.tanh(longer / scale) if scale > 0 else np.zeros(len(longer))
    design = np.stack([np.ones(len(column)), column], axis=1)

    def statistic(weight: Floats) -> Floats:
        return 1 / (1 + np.exp(-logistic(design, np.asarray(wins, np.float64), weight)[:, 0]))

    return Estimate(*estimate(statistic, np.ones(len(wins)), bootstrap, bounds=(0, 1)), len(wins))
