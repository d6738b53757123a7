"""One label from several verdicts: a panel's vote, and verdicts and scores from log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.pairwise import NAMES, TIE, Verdict, VerdictColumn, parse_labels
from jaxalign.judges.raters import same_length

# Minimum probability of all labels together. Below it the judge was not choosing between them.
MINIMUM_MASS = 0.5


def panel_vote(
    verdicts: Mapping[str, VerdictColumn], weights: Mapping[str, float] | None = None, *, least_share: float = 0.5
) -> list[Verdict | None]:
    """Returns a panel's verdicts: argmax_v Σ_j w_j [verdict_j = v], and a tie if several v have the maximum.

    Failures do not vote. Source: a panel of judges, Verga et al. 2024, arXiv:2404.18796.

    Args:
        verdicts: Each judge's verdicts by its name, naming responses, ``[n]``.
        weights: Weights of the judges by name, not negative. By default all are 1 (a majority vote).
        least_share: Minimum share of the weight that must be behind parsed verdicts. Below it the panel has failed.

    Returns:
        The panel's verdicts, None where it failed, ``[n]``.

    Raises:
        UserError: If the panel is empty, names and weights do not match, verdicts are unknown, or lengths differ.

    >>> panel_vote({"a": ["first", "first", None], "b": ["second", "first", None], "c": ["first", "tie", "tie"]})
    ['first', 'first', None]
    >>> panel_vote({"a": ["first"], "b": ["second"]}, {"a": 1, "b": 2}), panel_vote({"a": ["first"], "b": ["second"]})
    (['second'], ['tie'])
    """
    if not verdicts:
        raise UserError("The panel has no judge. Give the verdicts of at least one.")
    weights = dict.fromkeys(verdicts, 1.0) if weights is None else weights
    if unmatched := sorted(set(verdicts) ^ set(weights)):
        lacks = "weight" if unmatched[0] in verdicts else "verdicts"
        raise UserError(f"panel: judge {unmatched[0]!r} has no {lacks}. Give both for each judge.")
    if bad := [name for name, weight in weights.items() if not 0 <= weight < math.inf]:
        raise UserError(f"The weight of judge {bad[0]!r} is {weights[bad[0]]}. Give a finite number, 0 or more.")
    if not sum(weights.values()):
        raise UserError("The weights of all judges are 0. Give one judge a weight above 0.")
    codes = {name: parse_labels(f"judge {name}", column) for name, column in verdicts.items()}
    same_length(codes)
    votes = np.array([[weights[name] * (column == v) for v in range(3)] for name, column in codes.items()]).sum(0)
    leaders = votes >= votes.max(0) - 1e-9
    winner = np.where(leaders.sum(0) > 1, TIE, votes.argmax(0))
    cast = votes.sum(0)
    failed = (cast == 0) | (cast < least_share * sum(weights.values()) - 1e-9)
    return [None if bad else NAMES[code] for code, bad in zip(winner, failed, strict=True)]


def verdict_probability(logprobs: Sequence[Mapping[str, float]], verdict: Verdict | None = None) -> float | None:
    """Returns P(first) = p(A) / (p(A) + p(B)) at the last token of an answer that is one of the labels A and B.

    Args:
        logprobs: Alternatives and their log-probabilities for every token of the answer, the API's ``top_logprobs``.
        verdict: The verdict of the answer as a whole. A token with the other label is skipped ("A is wordy" after
            "Verdict: B"). None takes the last label.

    Returns:
        The probability, or None if no token chooses, or if the labels together have less than ``MINIMUM_MASS``.

    >>> verdict_probability([{"Verdict": -0.01}, {":": -0.01}, {" A": -0.22314, " B": -1.60944}])
    0.8...
    """
    wanted = {None: "AB", "first": "A", "second": "B", "tie": ""}[verdict]
    shares = _last_choice(logprobs, list(wanted), ["A", "B"])
    mass = [sum(p for name, p in shares if name == label) for label in "AB"]
    return mass[0] / sum(mass) if sum(mass) >= MINIMUM_MASS else None


def score_expectation(logprobs: Sequence[Mapping[str, float]], written: float | None = None) -> float | None:
    """Returns Σ_s s p(s) / Σ_s p(s) over the scores s from 1 to 10 at the last token that is a score.

    Source: Liu et al. 2023, arXiv:2303.16634, eq. 1.

    Args:
        logprobs: Alternatives and their log-probabilities for every token of the answer.
        written: The score in the answer. A token with another number is skipped (the "1" of a "10" in two tokens, or a
            number in a remark). None takes the last number.

    Returns:
        The expectation, or None if no token scores, or if the scores together have less than ``MINIMUM_MASS``.

    >>> score_expectation([{"Score": -0.01}, {":": -0.01}, {" 7": -0.6931, " 8": -0.6931}])
    7.5
    >>> score_expectation([{"Score": -0.01}, {":": -0.01}, {" 1": -0.01}, {"0": -0.01}], written=10) is None
    True
    """
    scale = {str(score): score for score in range(1, 11)}
    wanted = [label for label, score in scale.items() if written in (None, score)]
    shares = _last_choice(logprobs, wanted, scale)
    total = sum(p for _, p in shares)
    return sum(scale[label] * p for label, p in shares) / total if total >= MINIMUM_MASS else None


def _last_choice(
    logprobs: Sequence[Mapping[str, float]], wanted: Collection[str], labels: Collection[str]
) -> list[tuple[str, float]]:
    """Returns the labels and their probabilities at the last token whose likeliest alternative is wanted, if any."""
    for token in reversed(logprobs):
        if token and max(token, key=lambda name: token[name]).strip() in wanted:
            return [(name.strip(), math.exp(value)) for name, value in token.items() if name.strip() in labels]
    return []
