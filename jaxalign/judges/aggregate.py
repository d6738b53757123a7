"""Combines all verdicts on an item into labelled rows of the data layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from jaxalign.errors import UserError
from jaxalign.judges.items import Item
from jaxalign.judges.pairwise import NAMES, TIE, Verdict, VerdictColumn, favoured_side, parse_labels
from jaxalign.judges.raters import same_length

Write: TypeAlias = Literal["preference", "binary", "score", "ranking"]
By: TypeAlias = Literal["verdicts", "probabilities"]
Lines: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Combined:
    """All verdicts on an item as one.

    Attributes:
        winner: The better one of two answers; None for a failure.
        probability: P(the first of two is better), if every judge with a verdict gave one.
        scores: The mean score of each answer over the judges, by weight; None without a score.
    """

    winner: Verdict | None
    probability: float | None
    scores: tuple[float | None, ...]


def combine_verdicts(item: Item, lines: Lines, by: By = "verdicts") -> Combined:
    """Combines verdicts by a weighted vote, and probabilities and scores by weighted means.

    Args:
        item: What was judged.
        lines: Its lines of :func:`~jaxalign.judges.judge_items`, by all judges and principles.
        by: What makes one of two answers the winner. In the vote, a judge that contradicts itself in the two orders
            counts as a tie. The mean probability over the orders cancels a constant position bias.

    Returns:
        The winner, its probability and the scores.

    >>> line = {"winner": "first", "weight": 2.0, "probability": 0.8, "scores": None}
    >>> other = {"winner": "second", "weight": 1.0, "probability": 0.1, "scores": None}
    >>> combine_verdicts(Item.of("p", "a", "b"), [line, other])
    Combined(winner='first', probability=0.56..., scores=(None, None))
    """
    winner: Verdict | None = None
    probability = None
    if len(item.answers) == 2:
        winner = vote_on(lines, "winner")
        voters = [line for line in lines if line["winner"] is not None and line["weight"] > 0]
        if voters and all(line["probability"] is not None for line in voters):
            probability = weighted_mean((line["probability"], line["weight"]) for line in voters)
        if by == "probabilities":
            winner = None if probability is None else favoured_side(probability - 0.5, 1e-12)
    scored = [line for line in lines if line["scores"] is not None]
    scores = (weighted_mean((line["scores"][k], line["weight"]) for line in scored) for k in range(len(item.answers)))
    return Combined(winner, probability, tuple(scores))


def label_rows(
    items: Sequence[Item],
    lines: Sequence[Lines],
    write: Write,
    *,
    margin: float = 0.0,
    threshold: float | None = None,
    by: By = "verdicts",
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Returns labelled rows, in the format of the record that each item comes from, and counts of items.

    - ``preference``: the winner of two answers, or the best and the worst of several by score.
    - ``binary``: two rows for a pair, or with a ``threshold`` one for each scored answer.
    - ``score``: one row for each answer.
    - ``ranking``: the answers from best to worst; of answers with one score the first.

    Args:
        items: What was judged.
        lines: The verdicts on each item.
        write: The kind of rows.
        margin: Maximum difference between two scores that is a tie.
        threshold: Score from which an answer is good; None labels the two answers of a pair by their winner.
        by: As for :func:`combine_verdicts`.

    Returns:
        The rows, and counts of "labelled", "tied" and "failed" items.

    >>> from jaxalign.judges import JudgingTask, Rater, judge_items
    >>> items = [Item.of("Why?", "So.", "Because.")]
    >>> lines = judge_items(Rater("length", score=lambda items: [[3.0, 8.0]]), items, JudgingTask())
    >>> rows, counts = label_rows(items, [lines], "preference")
    >>> rows[0]["chosen"], rows[0]["rejected"], counts["labelled"]
    ('Because.', 'So.', 1)
    """
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(labelled=0, tied=0, failed=0)
    for item, verdicts in zip(items, lines, strict=True):
        combined = combine_verdicts(item, verdicts, by)
        if write == "score" or (write == "binary" and threshold is not None):
            labelled, outcome = _by_score(item, verdicts, combined, threshold if write == "binary" else None)
        elif write == "ranking" or len(item.answers) > 2:
            labelled, outcome = _by_rank(item, verdicts, combined, write, margin)
        else:
            labelled, outcome = _by_winner(item, verdicts, combined, write)
        rows += labelled
        counts[outcome] += 1
    if write == "preference" and any(row["label_smoothing"] is None for row in rows):
        for row in rows:  # a data set has soft labels for all of its pairs or for none
            del row["label_smoothing"]
    return rows, counts


def _by_winner(item: Item, lines: Lines, combined: Combined, write: Write) -> tuple[list[dict[str, Any]], str]:
    if combined.winner is None:
        return [], "failed"
    if combined.winner == "tie":
        return [], "tied"
    best = 0 if combined.winner == "first" else 1
    if write == "binary":
        rows = [answer_row(item, k) | {"label": k == best} | _origin(lines) for k in (best, 1 - best)]
        return rows, "labelled"
    p = combined.probability if combined.probability is None or best == 0 else 1 - combined.probability
    return [_pair(item, lines, best, 1 - best, p) | {"winner": combined.winner}], "labelled"


def _by_score(
    item: Item, lines: Lines, combined: Combined, threshold: float | None
) -> tuple[list[dict[str, Any]], str]:
    known = [(k, score) for k, score in enumerate(combined.scores) if score is not None]
    rows = []
    for k, score in known:
        label = {} if threshold is None else {"label": score >= threshold}
        rows.append(answer_row(item, k) | label | {"score": score} | _origin(lines))
    return rows, "labelled" if rows else "failed"


def _by_rank(
    item: Item, lines: Lines, combined: Combined, write: Write, margin: float
) -> tuple[list[dict[str, Any]], str]:
    scores = [score for score in combined.scores if score is not None]
    if len(scores) < len(combined.scores):
        return [], "failed"
    levels: list[int] = []
    for k in sorted(range(len(scores)), key=lambda k: -scores[k]):
        if not levels or scores[levels[-1]] - scores[k] > margin:
            levels.append(k)
    if len(levels) < 2:
        return [], "tied"
    if write == "ranking":
        prompt, texts = _texts(item, levels)
        ranked = {**prompt, "completions": texts, "scores": [scores[k] for k in levels]}
        return [ranked | _origin(lines)], "labelled"
    return [_pair(item, lines, levels[0], levels[-1], None) | {"scores": scores}], "labelled"


def _pair(item: Item, lines: Lines, best: int, worst: int, p: float | None) -> dict[str, Any]:
    prompt, (chosen, rejected) = _texts(item, [best, worst])
    doubt = {"probability": p, "label_smoothing": None if p is None else min(0.5, 1 - p)}
    return {**prompt, "chosen": chosen, "rejected": rejected} | doubt | {"human": item.human} | _origin(lines)


def answer_row(item: Item, k: int) -> dict[str, Any]:
    """Returns an answer with its prompt, in the record's format."""
    prompt, (text,) = _texts(item, [k])
    return {**prompt, "completion": text}


def _texts(item: Item, which: Sequence[int]) -> tuple[dict[str, Any], list[Any]]:
    """Returns the prompt's field and some answers, in the record's format."""
    record = item.record
    texts = [record.completions[k] for k in which]
    if record.format == "transcript":  # whole conversations, which contain their prompt
        return {}, [f"{record.prompt}{text}" for text in texts]
    if not isinstance(record.prompt, str):
        prompt = [message._asdict() for message in record.prompt]
        return {"prompt": prompt}, [[{"role": "assistant", "content": text}] for text in texts]
    return {"instruction" if record.format == "instruction" else "prompt": record.prompt}, list(texts)


def _origin(lines: Lines) -> dict[str, Any]:
    """Returns where a label comes from: plain values for one judge, lists for a panel."""
    names = ("judge", "principle", "prompt_hash", "first_order", "second_order", "orders", "probabilities")
    cost = {name: sum(line[name] for line in lines) for name in ("prompt_tokens", "completion_tokens")}
    if len(lines) == 1:
        return {name: lines[0][name] for name in names} | cost
    return {name: [line[name] for line in lines] for name in names} | cost


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
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise UserError(f"panel: the weights are {dict(weights)}. Give finite numbers, 0 or more, and one above 0.")
    codes = {name: parse_labels(f"judge {name}", column) for name, column in verdicts.items()}
    same_length(codes)
    votes = np.array([[weights[name] * (column == v) for v in range(3)] for name, column in codes.items()]).sum(0)
    leaders = votes >= votes.max(0) - 1e-9
    winner = np.where(leaders.sum(0) > 1, TIE, votes.argmax(0))
    cast = votes.sum(0)
    failed = (cast == 0) | (cast < least_share * sum(weights.values()) - 1e-9)
    return [None if bad else NAMES[code] for code, bad in zip(winner, failed, strict=True)]


def vote_on(lines: Lines, field: str) -> Verdict | None:
    """Returns the vote of several lines on one item, by their weights."""
    weights = {str(i): line["weight"] for i, line in enumerate(lines)}
    return panel_vote({str(i): [line[field]] for i, line in enumerate(lines)}, weights)[0]


def weighted_mean(weighted: Iterable[tuple[float | None, float]]) -> float | None:
    """Returns the mean of (value, weight) tuples without the missing values; None if the weights sum to 0.

    >>> weighted_mean([(1.0, 3.0), (5.0, 1.0), (None, 2.0)])
    2.0
    """
    known = [(value, weight) for value, weight in weighted if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total > 0 else None
