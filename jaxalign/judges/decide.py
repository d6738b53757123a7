"""What all verdicts on an item amount to, as rows of the data layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jaxalign.judges.pairwise import Verdict
from jaxalign.judges.panel import Item
from jaxalign.judges.votes import panel_vote

Write: TypeAlias = Literal["preference", "binary", "score", "ranking"]
By: TypeAlias = Literal["verdicts", "probabilities"]
Lines: TypeAlias = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Decision:
    """The panel's word on an item."""

    winner: Verdict | None
    """Of two answers; None for a failure."""
    probability: float | None
    """P(the first of two is better), where every judge that had a verdict gave one."""
    scores: tuple[float | None, ...]
    """Of each answer: the mean over the judges, by weight; None where nobody scored."""


def decide(item: Item, lines: Lines, by: By = "verdicts") -> Decision:
    """A vote by weight over verdicts, and weighted means over probabilities and scores.

    Args:
        item: what was judged.
        lines: its lines of :func:`~jaxalign.judges.panel.judge_items`, of all judges and principles.
        by: what decides which of two answers is better: the vote, to which a judge that contradicts itself in the two
            orders adds a tie; or the probability, whose mean over the orders cancels a constant position bias.

    Returns:
        the decision.

    >>> from jaxalign.data.kinds import Ranking
    >>> line = {"winner": "first", "weight": 2.0, "probability": 0.8, "scores": None}
    >>> other = {"winner": "second", "weight": 1.0, "probability": 0.1, "scores": None}
    >>> decide(Item("p", ("a", "b"), Ranking("p", ("a", "b"), "text")), [line, other])
    Decision(winner='first', probability=0.56..., scores=(None, None))
    """
    winner: Verdict | None = None
    probability = None
    if len(item.answers) == 2:
        votes = {str(i): [line["winner"]] for i, line in enumerate(lines)}
        weights = {str(i): line["weight"] for i, line in enumerate(lines)}
        winner = panel_vote(votes, weights)[0]
        heard = [line for line in lines if line["winner"] is not None and line["weight"] > 0]
        if heard and all(line["probability"] is not None for line in heard):
            probability = _mean([(line["probability"], line["weight"]) for line in heard])
        if by == "probabilities":
            winner = None if probability is None else _side(probability)
    scores = []
    for k in range(len(item.answers)):
        known = [(line["scores"][k], line["weight"]) for line in lines if line["scores"] is not None]
        scores.append(_mean([(score, weight) for score, weight in known if score is not None]))
    return Decision(winner, probability, tuple(scores))


def label_rows(
    items: Sequence[Item],
    lines: Sequence[Lines],
    write: Write,
    *,
    margin: float = 0.0,
    threshold: float | None = None,
    by: By = "verdicts",
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Rows for the data layer, in the format of the record each item came from, and what became of the others.

    A ``preference`` is the winner of two answers, or the best against the worst of several by score; ``binary`` makes
    two rows of a pair, or with a ``threshold`` one of each scored answer, liked from there on; ``score`` has one row
    for each answer; ``ranking`` the answers from the best on, of those level one.

    Args:
        items: what was judged.
        lines: the verdicts on each.
        write: what to make.
        margin: scores no further apart are a tie.
        threshold: score from which an answer is a good one; None to label the two of a pair by their winner.
        by: as for :func:`decide`.

    Returns:
        the rows, and counts of "labelled", "tied" and "failed" items.
    """
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter(labelled=0, tied=0, failed=0)
    for item, mine in zip(items, lines, strict=True):
        found = decide(item, mine, by)
        if write == "score" or (write == "binary" and threshold is not None):
            made, outcome = _by_score(item, mine, found, threshold if write == "binary" else None)
        elif write == "ranking" or len(item.answers) > 2:
            made, outcome = _by_rank(item, mine, found, write, margin)
        else:
            made, outcome = _by_winner(item, mine, found, write)
        rows += made
        counts[outcome] += 1
    if write == "preference" and any(row["label_smoothing"] is None for row in rows):
        for row in rows:  # soft labels are for all pairs of a data set or for none
            del row["label_smoothing"]
    return rows, counts


def _by_winner(item: Item, lines: Lines, found: Decision, write: Write) -> tuple[list[dict[str, Any]], str]:
    if found.winner is None:
        return [], "failed"
    if found.winner == "tie":
        return [], "tied"
    best = 0 if found.winner == "first" else 1
    if write == "binary":
        rows = [answer_row(item, k) | {"label": k == best} | _origin(lines) for k in (best, 1 - best)]
        return rows, "labelled"
    p = found.probability if found.probability is None or best == 0 else 1 - found.probability
    return [_pair(item, lines, best, 1 - best, p) | {"winner": found.winner}], "labelled"


def _by_score(item: Item, lines: Lines, found: Decision, threshold: float | None) -> tuple[list[dict[str, Any]], str]:
    known = [(k, score) for k, score in enumerate(found.scores) if score is not None]
    rows = []
    for k, score in known:
        label = {} if threshold is None else {"label": score >= threshold}
        rows.append(answer_row(item, k) | label | {"score": score} | _origin(lines))
    return rows, "labelled" if rows else "failed"


def _by_rank(
    item: Item, lines: Lines, found: Decision, write: Write, margin: float
) -> tuple[list[dict[str, Any]], str]:
    scores = [score for score in found.scores if score is not None]
    if len(scores) < len(found.scores):
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
    """An answer with its prompt, written as the record's format has them."""
    prompt, (text,) = _texts(item, [k])
    return {**prompt, "completion": text}


def _texts(item: Item, which: Sequence[int]) -> tuple[dict[str, Any], list[Any]]:
    """The prompt's field, and answers, written as the record's format has them."""
    record = item.record
    texts = [record.completions[k] for k in which]
    if record.format == "transcript":  # whole conversations, which hold their prompt
        return {}, [f"{record.prompt}{text}" for text in texts]
    if not isinstance(record.prompt, str):
        prompt = [message._asdict() for message in record.prompt]
        return {"prompt": prompt}, [[{"role": "assistant", "content": text}] for text in texts]
    return {"instruction" if record.format == "instruction" else "prompt": record.prompt}, list(texts)


def _origin(lines: Lines) -> dict[str, Any]:
    """Where a label comes from: plain values for one judge, lists for a panel."""
    names = ("judge", "principle", "prompt_hash", "first_order", "second_order", "orders", "probabilities")
    cost = {name: sum(line[name] for line in lines) for name in ("prompt_tokens", "completion_tokens")}
    if len(lines) == 1:
        return {name: lines[0][name] for name in names} | cost
    return {name: [line[name] for line in lines] for name in names} | cost


def _side(probability: float) -> Verdict:
    return "tie" if abs(probability - 0.5) < 1e-12 else "first" if probability > 0.5 else "second"


def _mean(weighted: Sequence[tuple[float, float]]) -> float | None:
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / total if total > 0 else None
