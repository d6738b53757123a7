"""One label from several verdicts: a panel's vote, and verdicts and scores from log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.pairwise import NAMES, TIE, Verdict, Verdicts, parse_labels
from jaxalign.judges.raters import same_length


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
