"""Combines all verdicts on an item into labelled rows of the data layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxalign.judges.items import Item
from jaxalign.judges.pairwise import Verdict, favoured_side
from jaxalign.judges.votes import panel_vote

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
