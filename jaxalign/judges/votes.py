"""One label out of several verdicts: a panel's vote, both orders' probabilities, soft labels for DPO."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError
from jaxalign.judges.pairwise import NAMES, TIE, Verdict, Verdicts, parse_labels
from jaxalign.judges.raters import same_length
from jaxalign.stats import FAILURE


class SoftLabels(NamedTuple):
    """Preferences with doubt."""

    first: NDArray[np.float64]
    """P(the first response is better), NaN for a failure, ``[n]``."""
    chosen: list[Verdict | None]
    """The likelier side; a tie at ½."""
    label_smoothing: NDArray[np.float64]
    """e = min(p, 1 - p), the chance that the label is wrong: per-example ``label_smoothing`` of ``losses.dpo``."""


def panel_vote(
    verdicts: Mapping[str, Verdicts], weights: Mapping[str, float] | None = None, *, least_share: float = 0.5
) -> list[Verdict | None]:
    """A panel's verdict: argmax_v Σ_j w_j [verdict_j = v], and a tie if the leaders are level.

    Failures do not vote. Source: a panel of judges, Verga et al. 2024, arXiv:2404.18796.

    Args:
        verdicts: each judge's verdicts by its name, naming responses, ``[n]``.
        weights: of the judges, by name, not negative; 1 each by default (a majority vote).
        least_share: if less than this share of the weight is behind parsed verdicts, the panel has failed.

    Returns:
        the panel's verdicts, None where it failed, ``[n]``.

    Raises:
        UserError: if there is no judge, names and weights do not match, or verdicts are unknown or of different number.

    >>> panel_vote({"a": ["first", "first", None], "b": ["second", "first", None], "c": ["first", "tie", "tie"]})
    ['first', 'first', None]
    >>> panel_vote({"a": ["first"], "b": ["second"]}, {"a": 1, "b": 2}), panel_vote({"a": ["first"], "b": ["second"]})
    (['second'], ['tie'])
    """
    if not verdicts:
        raise UserError("the panel has no judge: name at least one")
    weights = dict.fromkeys(verdicts, 1.0) if weights is None else weights
    if odd := sorted(set(verdicts) ^ set(weights)):
        raise UserError(
            f"panel: {odd[0]!r} has no {'weight' if odd[0] in verdicts else 'verdicts'}: name each judge once"
        )
    if bad := [name for name, w in weights.items() if not 0 <= w < math.inf] or (not sum(weights.values()) and ["all"]):
        raise UserError(f"panel: the weight of {bad[0]!r} cannot be used: give one that is positive and finite")
    codes = {name: parse_labels(f"judge {name}", column) for name, column in verdicts.items()}
    same_length(codes)
    votes = np.array([[weights[name] * (column == v) for v in range(3)] for name, column in codes.items()]).sum(0)
    leaders = votes >= votes.max(0) - 1e-9
    winner = np.where(leaders.sum(0) > 1, TIE, votes.argmax(0))
    cast = votes.sum(0)
    failed = (cast == 0) | (cast < least_share * sum(weights.values()) - 1e-9)
    return [None if bad else NAMES[code] for code, bad in zip(winner, failed, strict=True)]


def soft_labels(first_order: Any, second_order: Any, *, one_order: bool = False) -> SoftLabels:
    """P(first response better) out of both orders: p = (p₁ + 1 - p₂) / 2, which cancels a constant position bias.

    Args:
        first_order: P(the response shown first is better) in the first order, in [0, 1], None for a failure, ``[n]``.
        second_order: the same of the second order, in which the responses are exchanged.
        one_order: make do with the other order where one failed; otherwise such a pair has failed.

    Returns:
        probabilities, the chosen sides, and the label smoothing that they amount to.

    Raises:
        UserError: if the lists differ in length, are empty, or hold something else.

    >>> labels = soft_labels([0.9, 0.8, None], [0.3, 0.8, 0.5])
    >>> labels.chosen, labels.label_smoothing.round(3).tolist()
    (['first', 'tie', None], [0.2, 0.5, nan])
    """
    one, two = _probabilities("first_order", first_order), 1 - _probabilities("second_order", second_order)
    same_length({"first_order": one, "second_order": two})
    p = (one + two) / 2
    if one_order:
        p = np.where(np.isnan(one), two, np.where(np.isnan(two), one, p))
    level = np.isclose(p, 0.5, rtol=0, atol=1e-12)
    code = np.where(np.isnan(p), FAILURE, np.where(level, TIE, np.where(p > 0.5, 0, 1)))
    chosen = [None if c == FAILURE else NAMES[c] for c in code]
    return SoftLabels(p, chosen, np.minimum(p, 1 - p))


def verdict_probability(
    logprobs: Sequence[Mapping[str, float]],
    verdict: Verdict | None = None,
    *,
    first: str = "A",
    second: str = "B",
    least_mass: float = 0.5,
) -> float | None:
    """P(first) = p(A) / (p(A) + p(B)) at the last token of an answer that is one of the two labels.

    Args:
        logprobs: for every token of the answer, alternatives and their log-probabilities, the API's ``top_logprobs``.
        verdict: what the answer says as a whole; a token that says otherwise ("A is wordy", behind "Verdict: B") is not
            the one that chose. None takes the last label.
        first, second: the labels; white space around a token does not matter.
        least_mass: below this much probability on both labels together, the judge was not choosing between them.

    Returns:
        the probability, or None where no token chooses.

    >>> verdict_probability([{"Verdict": -0.01}, {":": -0.01}, {" A": -0.22314, " B": -1.60944}])
    0.8...
    """
    wanted = {None: (first, second), "first": (first,), "second": (second,), "tie": ()}[verdict]
    for token in reversed(logprobs):
        if not token or max(token, key=lambda name: token[name]).strip() not in wanted:
            continue
        mass = [
            sum(math.exp(value) for name, value in token.items() if name.strip() == label) for label in (first, second)
        ]
        return mass[0] / sum(mass) if sum(mass) >= least_mass else None
    return None


def score_expectation(
    logprobs: Sequence[Mapping[str, float]],
    written: float | None = None,
    *,
    low: int = 1,
    high: int = 10,
    least_mass: float = 0.5,
) -> float | None:
    """Σ_s s p(s) / Σ_s p(s) over the scores among the alternatives at the last token that is a score.

    Source: Liu et al. 2023, arXiv:2303.16634, eq. 1.

    Args:
        logprobs: for every token of the answer, alternatives and their log-probabilities.
        written: the score that the answer gives; a token that is another number (the "1" of a "10" in two tokens, one
            in a remark) is not that score. None takes the last number.
        low, high: the scale.
        least_mass: below this much probability on scores together, the judge was not scoring.

    Returns:
        the expectation, or None where no token scores.

    >>> score_expectation([{"Score": -0.01}, {":": -0.01}, {" 7": -0.6931, " 8": -0.6931}])
    7.5
    >>> score_expectation([{"Score": -0.01}, {":": -0.01}, {" 1": -0.01}, {"0": -0.01}], written=10) is None
    True
    """
    scale = {str(score): score for score in range(low, high + 1)}
    for token in reversed(logprobs):
        likeliest = max(token, key=lambda name: token[name]).strip() if token else ""
        if likeliest not in scale or written not in (None, scale[likeliest]):
            continue
        mass = [(scale[name.strip()], math.exp(value)) for name, value in token.items() if name.strip() in scale]
        total = sum(p for _, p in mass)
        return sum(score * p for score, p in mass) / total if total >= least_mass else None
    return None


def _probabilities(name: str, values: Any) -> NDArray[np.float64]:
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    for i, value in enumerate(listed):
        fine = value is None or (isinstance(value, (int, float)) and (math.isnan(value) or 0 <= value <= 1))
        if not fine:
            raise UserError(f"{name}, row {i + 1}: {value!r} is no probability: give a number from 0 to 1, or None")
    return np.array([math.nan if value is None else value for value in listed], np.float64)
