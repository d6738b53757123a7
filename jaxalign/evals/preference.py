"""Win rates of one side's answers over another's to the same prompts, by scores or judges: raw, and at equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from jaxalign.errors import UserError
from jaxalign.evals.outcome import Estimate, Outcome, figure
from jaxalign.judges.audit import Verdicts
from jaxalign.judges.bias import logistic
from jaxalign.judges.pairwise import OPPOSITE, VerdictColumn, parse_labels
from jaxalign.stats import DEFAULT, Bootstrap, Floats, estimate


def wins_of_scores(scores: Float[np.ndarray, " N"], baseline: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Returns 1 where an answer scores higher than the baseline's, ½ where both score the same, 0 otherwise.

    >>> wins_of_scores(np.array([2.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    array([1. , 0.5, 0. ])
    """
    return (np.sign(np.asarray(scores) - np.asarray(baseline)) + 1) / 2


def wins_of_verdicts(winners: VerdictColumn) -> Float[np.ndarray, " N"]:
    """Returns the wins of the first answers by a judge's verdicts on both orders (``judges.combine_orders``).

    A verdict that changes with the order is a tie. A failure counts as a tie too, because it favours neither side.

    >>> wins_of_verdicts(["first", "second", "tie", None])
    array([1. , 0. , 0.5, 0.5])
    """
    # By code: first, second, tie, and the last for -1, a failure.
    return np.array([1.0, 0.0, 0.5, 0.5])[parse_labels("verdicts", winners)]


def win_rate(name: str, wins: Float[np.ndarray, " N"]) -> list[Outcome]:
    """Returns ``name/win_rate``, the mean of the wins. A tie is half a win."""
    return [Outcome.mean(f"{name}/win_rate", wins, share=True)]


def length_controlled_win_rate(
    wins: Float[np.ndarray, " N"] | Float[np.ndarray, "N K"],
    lengths: ArrayLike,
    baseline_lengths: ArrayLike,
    *,
    bootstrap: Bootstrap = DEFAULT,
) -> Estimate:
    """Estimates the win rate at equal length: σ(a) of a logistic regression on the difference in length.

        P(win) = σ(a + b tanh((l - l₀) / std(l - l₀)))

    Source: Dubois et al. 2024, arXiv:2404.04475, eq. 2, without its term for the difficulty of an instruction, which
    needs many models' answers.

    Args:
        wins: 1, ½ or 0 for each item, ``[N]``, or for each of K answers to it, ``[N, K]``. Answers to one item are
            resampled together.
        lengths: of the answers, in the shape of the wins and any unit.
        baseline_lengths: of the baseline's answers, likewise.
        bootstrap: settings of the interval.

    Returns:
        The rate. It is NaN if the data do not determine it: one side's answers are all longer, or equal length lies
        between all wins and all losses. The interval is NaN if that holds for too many resamples.

    Raises:
        UserError: if the shapes differ or the items are missing.

    >>> result = length_controlled_win_rate(np.array([1.0, 0.0] * 50), [5] * 100, [5] * 100)
    >>> round(result.value, 3)
    0.5
    """
    won, own, other = (np.asarray(values, np.float64) for values in (wins, lengths, baseline_lengths))
    if not won.size or not won.shape == own.shape == other.shape:
        raise UserError(
            f"Win rate: {won.size} verdicts, {own.size} lengths and {other.size} baseline lengths. "
            "Give one of each per answer."
        )
    longer = (own - other).ravel()
    scale = longer.std()
    column = np.tanh(longer / scale) if scale > 0 else np.sign(longer)
    design = np.stack([np.ones(len(column)), column], axis=1)
    items = len(won)
    undetermined: list[bool] = []

    def statistic(weight: Floats) -> Floats:
        weights = np.repeat(weight, won.size // items, axis=1)
        rates = 1 / (1 + np.exp(-logistic(design, won.ravel(), weights)[:, 0]))
        rates = _limits(rates, column, won.ravel(), weights)
        undetermined.extend(np.isnan(rates))
        return rates

    value, ci = estimate(statistic, np.ones(items), bootstrap, bounds=(0, 1))
    if np.mean(undetermined) > (1 - bootstrap.confidence) / 2:
        ci = (np.nan, np.nan)
    return Estimate(value, ci, items)


def _limits(rates: Floats, column: Floats, won: Floats, weight: Floats) -> Floats:
    """Returns the rates at equal length, or their limits if a threshold of the column separates wins from losses.

    In that case the likelihood has no maximum (Albert and Anderson 1984, https://doi.org/10.1093/biomet/71.1.1). The
    slope goes to infinity, and the rate to 1 on one side of the threshold and to 0 on the other. The limit is NaN if 0
    may be on either side, or if the whole column is on one side of 0.
    """
    some = weight > 0
    won_low, won_high, lost_low, lost_high = (
        end
        for side in (some & (won > 0), some & (won < 1))
        for end in (np.where(side, column, np.inf).min(axis=1), np.where(side, column, -np.inf).max(axis=1))
    )
    none_won, none_lost = won_high == -np.inf, lost_high == -np.inf
    up, down = won_low >= lost_high, lost_low >= won_high
    meet = ((won_low == 0) & (lost_high == 0)) | ((lost_low == 0) & (won_high == 0))  # at 0, where the rate is fitted
    open_ = (up & (lost_high < 0) & (won_low > 0)) | (down & (won_high < 0) & (lost_low > 0))
    one = (up & (won_low <= 0)) | (down & (won_high >= 0))
    zero = (up & (lost_high >= 0)) | (down & (lost_low <= 0))
    limits = np.select([none_lost, none_won, meet, open_, one, zero], [1.0, 0.0, rates, np.nan, 1.0, 0.0], rates)
    one_sided = (np.minimum(won_low, lost_low) > 0) | (np.maximum(won_high, lost_high) < 0)
    return np.where(one_sided, np.nan, limits)


@dataclass(frozen=True)
class WinsReport:
    """Win rates of the answers of one side.

    Attributes:
        of: name of the side.
        judges: by judge, ``win_rate`` and, if lengths are known, ``length_controlled_win_rate``.
    """

    of: str
    judges: dict[str, dict[str, Estimate]]

    def plain(self) -> dict[str, Any]:
        """Returns the rates for JSON."""
        judges = {judge: {name: rate.plain() for name, rate in rates.items()} for judge, rates in self.judges.items()}
        return {"of": self.of, "judges": judges}


def measure_wins(verdicts: Mapping[str, Verdicts], of: str, *, bootstrap: Bootstrap = DEFAULT) -> WinsReport:
    """Counts how often the answers of one side win.

    A verdict that changes with the order, a tie and a failure count half.

    Args:
        verdicts: by judge. ``own`` is the side of the answer that is counted. For a panel, whose ``own`` is None, the
            sides come from the judges by ``keys``.
        of: name of the side.
        bootstrap: settings of the intervals.

    Raises:
        UserError: if a pair does not have exactly one answer of that side.
    """
    sides = {
        key: side
        for judged in verdicts.values()
        for key, side in zip(judged.keys or (), judged.own or (), strict=False)
    }
    judges = {}
    for judge, judged in verdicts.items():
        own = [sides.get(key) for key in judged.keys or ()]
        if unknown := sum(side not in ("first", "second") for side in own):
            raise UserError(
                f"{unknown} of {len(own)} pairs of {judge} do not have exactly one answer by {of!r}. Give a name that "
                "the rows' field by (or answer_a_by, answer_b_by) contains."
            )
        judges[judge] = _win_rates(judged, own, bootstrap)
    return WinsReport(of, judges)


def _win_rates(verdicts: Verdicts, sides: Sequence[str | None], bootstrap: Bootstrap) -> dict[str, Estimate]:
    # Verdicts are turned so that "first" means the side that is counted.
    rows = zip(verdicts.combined or (), sides, strict=True)
    wins = wins_of_verdicts([OPPOSITE[verdict] if side == "second" else verdict for verdict, side in rows])
    rates = {"win_rate": figure(*win_rate("judge", wins), bootstrap=bootstrap)}
    if verdicts.length_difference is not None:
        longer = np.array(verdicts.length_difference) * [-1 if side == "second" else 1 for side in sides]
        equal = np.zeros(len(longer))
        rates["length_controlled_win_rate"] = length_controlled_win_rate(wins, longer, equal, bootstrap=bootstrap)
    return rates
