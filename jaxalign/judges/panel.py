"""A panel at work: raters of any kind, and every verdict as a line of JSON that can be stored and audited."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from jaxalign.judges.endpoint import Messages, Reply, summarise_replies
from jaxalign.judges.hashing import uniform_hash
from jaxalign.judges.items import How, Item
from jaxalign.judges.judge import Ask, get_replies, judge_pairs, judge_rankings, make_question, prompt_hash, read_score
from jaxalign.judges.pairwise import NAMES, OPPOSITE, favoured_side
from jaxalign.judges.prompts import PAIRWISE, POINTWISE, RANKING, Principle, draw_principle

Grade: TypeAlias = Callable[[Sequence[Messages]], list[tuple[float | None, Reply]]]
Score: TypeAlias = Callable[[Sequence[Item]], Sequence[Sequence[float]]]
Case: TypeAlias = tuple[Item, Principle | None]
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

    def options(self, cases: Sequence[Case]) -> dict[str, Any]:
        """Returns the arguments that the functions asking about pairs and rankings have in common."""
        return {
            "principles": [principle for _, principle in cases],
            # The same for the same item and seed.
            "both_orders": [uniform_hash(self.seed, "orders", item.key) < self.both_orders for item, _ in cases],
            "template": self.template or TEMPLATES[self.how],
            "think": self.think,
        }


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
        return [
            _line(rater, (item, None), "score", **_scored(rater, [float(score) for score in row]))
            for item, row in zip(items, scores, strict=True)
        ]
    cases = [
        (item, principle)
        for item in items
        for principle in task.principles_for(item)
        if not is_done(item.key, principle.id if principle else None)
    ]
    judge = {"pairwise": _judge_pairs, "pointwise": _judge_answers, "ranking": _judge_rankings}[task.how]
    return judge(rater, cases, task) if cases else []


def _judge_pairs(rater: Rater, cases: Sequence[Case], task: JudgingTask) -> list[dict[str, Any]]:
    assert rater.pairs is not None
    prompts, first, second = zip(*((item.prompt, *item.answers[:2]) for item, _ in cases), strict=True)
    judged = judge_pairs(rater.pairs, prompts, first, second, **task.options(cases))
    lines = []
    for case, pair in zip(cases, judged, strict=True):
        verdicts: dict[str, Any] = {name: getattr(pair, name) for name in ("first_order", "second_order", "winner")}
        verdicts |= {"probability": pair.first_is_better, "probabilities": list(pair.probabilities)}
        lines.append(_line(rater, case, task.how, pair.replies, pair.prompt_hash, **verdicts))
    return lines


def _judge_answers(rater: Rater, cases: Sequence[Case], task: JudgingTask) -> list[dict[str, Any]]:
    assert rater.grade is not None
    template = task.template or POINTWISE
    questions = [
        make_question(template, principle, prompt=item.prompt, response=answer, think=task.think)
        for item, principle in cases
        for answer in item.answers
    ]
    graded = iter(zip(questions, rater.grade(questions), strict=True))
    lines = []
    for case in cases:
        asked, grades = zip(*islice(graded, len(case[0].answers)), strict=True)
        scores, replies = zip(*grades, strict=True)
        scored = _scored(rater, scores)
        lines.append(_line(rater, case, task.how, replies, prompt_hash(asked[0]), **scored))
    return lines


def _judge_rankings(rater: Rater, cases: Sequence[Case], task: JudgingTask) -> list[dict[str, Any]]:
    assert rater.rank is not None
    lines: dict[int, dict[str, Any]] = {}
    # A local judge has one set of labels for each number of answers, so items of one size are judged together.
    for size in sorted({len(item.answers) for item, _ in cases}):
        indices = [i for i, (item, _) in enumerate(cases) if len(item.answers) == size]
        part = [cases[i] for i in indices]
        prompts, answers = [item.prompt for item, _ in part], [item.answers for item, _ in part]
        judged = judge_rankings(rater.rank(size), prompts, answers, **task.options(part))
        for i, case, ranked in zip(indices, part, judged, strict=True):
            scored = _scored(rater, ranked.scores or [None] * size)
            scored["rankings"] = [None if ranking is None else list(ranking) for ranking in ranked.rankings]
            if size == 2:  # the audit reads it as a pair
                sides = [None if ranking is None else NAMES[ranking[0]] for ranking in ranked.rankings]
                scored |= {"first_order": sides[0], "second_order": OPPOSITE[sides[1]] if len(sides) > 1 else None}
            lines[i] = _line(rater, case, task.how, ranked.replies, ranked.prompt_hash, **scored)
    return [lines[i] for i in range(len(cases))]


def _line(
    rater: Rater, case: Case, how: str, replies: Sequence[Reply] = (), question_hash: str | None = None, **verdicts: Any
) -> dict[str, Any]:
    item, principle = case
    return {
        "key": item.key,
        "judge": rater.name,
        "how": how,
        "principle": principle.id if principle else None,
        "weight": rater.weight * (principle.weight if principle else 1.0),
        "prompt": item.prompt,
        "answers": list(item.answers),
        "human": item.human,
        "by": list(item.by),
        "prompt_hash": question_hash,
        "orders": len(replies) or 2,
        "said": [reply.text for reply in replies],
        **summarise_replies(replies),
        **dict.fromkeys(("first_order", "second_order", "winner", "probability", "scores")),
        "probabilities": [None, None],
        **verdicts,
    }


def _scored(rater: Rater, scores: Sequence[float | None]) -> dict[str, Any]:
    """Returns scores and, for two answers, the verdict that they give in either order."""
    line: dict[str, Any] = {"scores": list(scores)}
    if len(scores) != 2 or scores[0] is None or scores[1] is None:
        return line
    gap = scores[0] - scores[1]
    winner = favoured_side(gap, rater.margin)
    if rater.log_odds:
        # Two forms of the sigmoid: exp of a large positive number would overflow.
        p = 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))
        line |= {"probability": p, "probabilities": [p, 1 - p]}
    return line | {"winner": winner, "first_order": winner, "second_order": OPPOSITE[winner]}
