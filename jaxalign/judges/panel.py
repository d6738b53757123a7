"""A panel at work: raters of any kind, and every verdict as a line of JSON that can be stored and audited."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from jaxalign.judges.endpoint import Messages, Reply
from jaxalign.judges.hashing import uniform_hash
from jaxalign.judges.items import How, Item
from jaxalign.judges.judge import Ask, get_replies, judge_pairs, make_question, prompt_hash, read_score
from jaxalign.judges.pairwise import OPPOSITE, Verdict
from jaxalign.judges.prompts import PAIRWISE, POINTWISE, Principle, draw_principle
from jaxalign.judges.ranking import RANKING, judge_rankings

Grade: TypeAlias = Callable[[Sequence[Messages]], list[tuple[float | None, Reply]]]
Score: TypeAlias = Callable[[Sequence[Item]], Sequence[Sequence[float]]]
TEMPLATES: dict[How, str] = {"pairwise": PAIRWISE, "pointwise": POINTWISE, "ranking": RANKING}


@dataclass(frozen=True)
class Rater:
    """A judge of any kind: it answers questions (``pairs``, ``grade``, ``rank``), or only scores (``score``).

    Attributes:
        name: The name in its verdicts.
        weight: The weight of its vote.
        pairs: Answers questions about two responses.
        grade: Answers questions about one response, with a score for each.
        rank: Returns the function that answers questions about a given number of responses.
        score: Scores the answers of items without a question.
        margin: Maximum difference between two scores that is a tie.
        log_odds: Whether a difference of scores is the log-odds of a preference, as a reward model's is.
    """

    name: str
    weight: float = 1.0
    pairs: Ask | None = None
    grade: Grade | None = None
    rank: Callable[[int], Ask] | None = None
    score: Score | None = None
    margin: float = 0.0
    log_odds: bool = False

    @classmethod
    def of(cls, name: str, judge: Ask, **options: Any) -> Rater:
        """Returns a rater that puts every kind of question to one judge.

        >>> rater = Rater.of("me", lambda questions: [Reply("Score: 7")])
        >>> rater.grade([[{"role": "user", "content": "How good?"}]])[0][0]
        7.0
        """

        def grade(questions: Sequence[Messages]) -> list[tuple[float | None, Reply]]:
            return [(read_score(reply), reply) for reply in get_replies(judge, questions)]

        return cls(name, pairs=judge, grade=grade, rank=lambda number: judge, **options)


@dataclass(frozen=True)
class JudgingTask:
    """What raters are asked about every item.

    Attributes:
        how: About pairs in both orders, about each answer alone, or about all answers at once in both orders.
        template: The file of the prompt; None for the one that belongs to ``how``.
        principles: Principles of a constitution; empty for the template's own words.
        all_principles: Whether to ask by every principle, whose weights then vote, or by one drawn for each prompt.
        think: Whether to ask for reasons first.
        both_orders: Share of the items that are shown in both orders. The others are shown in one.
        seed: Another seed draws other principles, and other items to show in both orders.
    """

    how: How = "pairwise"
    template: str | Path | None = None
    principles: tuple[Principle, ...] = ()
    all_principles: bool = True
    think: bool = False
    both_orders: float = 1.0
    seed: int = 0

    def principles_for(self, item: Item) -> list[Principle | None]:
        """Returns the principles to judge an item by."""
        if not self.principles:
            return [None]
        if self.all_principles:
            return list(self.principles)
        return [draw_principle(self.principles, item.prompt, seed=self.seed)]

    def in_both_orders(self, item: Item) -> bool:
        """Returns whether an item is shown in both orders: the same for the same item and seed."""
        return uniform_hash(self.seed, "orders", item.key) < self.both_orders

    def options(self, principles: Sequence[Principle | None]) -> dict[str, Any]:
        """Returns the arguments that the functions asking a judge have in common."""
        return {"principles": principles, "template": self.template or TEMPLATES[self.how], "think": self.think}


def judge_items(
    rater: Rater,
    items: Sequence[Item],
    task: JudgingTask,
    is_done: Callable[[str, str | None], bool] = lambda key, principle: False,
) -> list[dict[str, Any]]:
    """Returns a line for each item and principle: what was asked, what the rater replied, and what it cost.

    The fields of a line:

    - ``key``, ``prompt``, ``answers``, ``human``, ``by``: the item.
    - ``judge``, ``weight``, ``principle``, ``how`` (``score`` for a rater that needs no question), ``prompt_hash``.
    - ``first_order``, ``second_order``: verdicts on two answers, which name the position shown.
    - ``orders``: how many orders were shown.
    - ``winner``, ``probability`` that the first answer is better, ``probabilities`` in each order.
    - ``scores`` of the answers, ``said`` (the replies), ``error``.
    - ``prompt_tokens``, ``completion_tokens``: the cost of the replies when they were first given.

    Args:
        rater: Who judges.
        items: What to judge.
        task: How to judge. A rater with ``score`` is not asked; it scores each item once.
        is_done: Whether an item, by its key, was judged by a principle before. Such an item makes no line.

    Returns:
        The lines, item by item.

    Raises:
        UserError: If the judge or the template fails.

    >>> rater = Rater("length", score=lambda items: [[3.0, 2.0]])
    >>> line, = judge_items(rater, [Item.of("Why?", "So.", "No.")], JudgingTask())
    >>> line["first_order"], line["second_order"], line["winner"], line["scores"]
    ('first', 'second', 'first', [3.0, 2.0])
    """
    if rater.score is not None:
        items = [item for item in items if not is_done(item.key, None)]
        scores = rater.score(items) if items else []
        rows = zip(items, scores, strict=True)
        return [_line(rater, item, None, "score") | _scored(rater, [float(s) for s in row]) for item, row in rows]
    cases = [
        (item, principle)
        for item in items
        for principle in task.principles_for(item)
        if not is_done(item.key, None if principle is None else principle.id)
    ]
    judge = {"pairwise": _judge_pairs, "pointwise": _judge_answers, "ranking": _judge_rankings}[task.how]
    return judge(rater, cases, task) if cases else []


Cases: TypeAlias = Sequence[tuple[Item, Principle | None]]


def _judge_pairs(rater: Rater, cases: Cases, task: JudgingTask) -> list[dict[str, Any]]:
    assert rater.pairs is not None
    judged = judge_pairs(
        rater.pairs,
        [item.prompt for item, _ in cases],
        [item.answers[0] for item, _ in cases],
        [item.answers[1] for item, _ in cases],
        both_orders=[task.in_both_orders(item) for item, _ in cases],
        **task.options([principle for _, principle in cases]),
    )
    lines = []
    for (item, principle), pair in zip(cases, judged, strict=True):
        verdicts: dict[str, Any] = {
            "first_order": pair.first_order,
            "second_order": pair.second_order,
            "winner": pair.winner,
        }
        verdicts |= {"probability": pair.first_is_better, "probabilities": list(pair.probabilities), "scores": None}
        lines.append(_line(rater, item, principle, task.how) | verdicts | _replied(pair.replies, pair.prompt_hash))
    return lines


def _judge_answers(rater: Rater, cases: Cases, task: JudgingTask) -> list[dict[str, Any]]:
    assert rater.grade is not None
    template = task.template or POINTWISE
    questions = [
        make_question(template, principle, prompt=item.prompt, response=answer, think=task.think)
        for item, principle in cases
        for answer in item.answers
    ]
    graded = rater.grade(questions)
    lines = []
    start = 0
    for item, principle in cases:
        part = graded[start : start + len(item.answers)]
        scored = _scored(rater, [score for score, _ in part])
        replied = _replied([reply for _, reply in part], prompt_hash(questions[start]))
        lines.append(_line(rater, item, principle, task.how) | scored | replied)
        start += len(part)
    return lines


def _judge_rankings(rater: Rater, cases: Cases, task: JudgingTask) -> list[dict[str, Any]]:
    assert rater.rank is not None
    lines: dict[int, dict[str, Any]] = {}
    # A local judge has one set of labels for each number of answers, so items of one size are judged together.
    for size in sorted({len(item.answers) for item, _ in cases}):
        indices = [i for i, (item, _) in enumerate(cases) if len(item.answers) == size]
        part = [cases[i] for i in indices]
        judged = judge_rankings(
            rater.rank(size),
            [item.prompt for item, _ in part],
            [item.answers for item, _ in part],
            both_orders=[task.in_both_orders(item) for item, _ in part],
            **task.options([principle for _, principle in part]),
        )
        for i, (item, principle), ranked in zip(indices, part, judged, strict=True):
            scored = _scored(rater, ranked.scores or [None] * size)
            scored["rankings"] = [None if ranking is None else list(ranking) for ranking in ranked.rankings]
            if size == 2:  # the audit reads it as a pair
                first: list[Verdict | None] = [
                    None if ranking is None else ("first" if ranking[0] == 0 else "second")
                    for ranking in ranked.rankings
                ]
                scored |= {"first_order": first[0], "second_order": OPPOSITE[first[1]] if len(first) > 1 else None}
            lines[i] = _line(rater, item, principle, task.how) | scored | _replied(ranked.replies, ranked.prompt_hash)
    return [lines[i] for i in range(len(cases))]


def _line(rater: Rater, item: Item, principle: Principle | None, how: str) -> dict[str, Any]:
    return {
        "key": item.key,
        "judge": rater.name,
        "how": how,
        "principle": None if principle is None else principle.id,
        "weight": rater.weight * (1.0 if principle is None else principle.weight),
        "prompt": item.prompt,
        "answers": list(item.answers),
        "human": item.human,
        "by": list(item.by),
        "prompt_hash": None,
        "orders": 2,
        "said": [],
        "error": None,
        "prompt_tokens": 0,
        "completion_tokens": 0,
    }


def _scored(rater: Rater, scores: Sequence[float | None]) -> dict[str, Any]:
    """Returns scores and, for two answers, the verdict that they give in either order."""
    line: dict[str, Any] = {"scores": list(scores), "first_order": None, "second_order": None, "winner": None}
    line |= {"probability": None, "probabilities": [None, None]}
    if len(scores) != 2 or scores[0] is None or scores[1] is None:
        return line
    gap = scores[0] - scores[1]
    winner: Verdict = "tie" if abs(gap) <= rater.margin else "first" if gap > 0 else "second"
    if rater.log_odds:
        # Two forms of the sigmoid: exp of a large positive number would overflow.
        p = 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))
        line |= {"probability": p, "probabilities": [p, 1 - p]}
    return line | {"winner": winner, "first_order": winner, "second_order": OPPOSITE[winner]}


def _replied(replies: Sequence[Reply], question_hash: str) -> dict[str, Any]:
    return {
        "prompt_hash": question_hash,
        "orders": len(replies),
        "said": [reply.text for reply in replies],
        "error": next((reply.error for reply in replies if reply.text is None), None),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }
