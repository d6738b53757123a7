"""A panel at work: items to judge, raters of any kind, and every verdict as a line that can be kept and audited."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jaxalign.data.kinds import Ranking
from jaxalign.judges.endpoint import Messages, Reply
from jaxalign.judges.judge import Ask, answers, judge_pairs, prompt_hash, read_score
from jaxalign.judges.pairwise import Verdict
from jaxalign.judges.prompts import PAIRWISE, POINTWISE, Principle, draw_principle, render
from jaxalign.judges.ranking import RANKING, judge_rankings

How: TypeAlias = Literal["pairwise", "pointwise", "ranking"]
Grade: TypeAlias = Callable[[Sequence[Messages]], list[tuple[float | None, Reply]]]
TEMPLATES: dict[How, str] = {"pairwise": PAIRWISE, "pointwise": POINTWISE, "ranking": RANKING}
OPPOSITE: dict[Verdict | None, Verdict | None] = {"first": "second", "second": "first", "tie": "tie", None: None}


@dataclass(frozen=True)
class Item:
    """A prompt and the answers to compare."""

    prompt: str
    """As a judge reads it."""
    answers: tuple[str, ...]
    record: Ranking
    """The same as the data layer holds it, answers in the same order."""
    human: Verdict | None = None
    """Which of two answers people prefer, where that is known."""
    by: tuple[str, ...] = ()
    """Which model wrote each answer, where that is known."""

    @property
    def key(self) -> str:
        """SHA-256 of the prompt and the answers in this order."""
        text = "\0".join((self.prompt, *self.answers))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Rater:
    """A judge of any kind: asked (``pairs``, ``grade``, ``rank``), or scoring unasked (``score``)."""

    name: str
    weight: float = 1.0
    pairs: Ask | None = None
    grade: Grade | None = None
    rank: Callable[[int], Ask] | None = None
    """From the number of answers to a judge of rankings."""
    score: Callable[[Sequence[Item]], Sequence[Sequence[float]]] | None = None
    margin: float = 0.0
    """Scores no further apart than this are a tie."""
    log_odds: bool = False
    """Whether a difference of scores is the log-odds of a preference, as a reward model's is."""


@dataclass(frozen=True)
class Question:
    """What raters are asked about every item.

    Args:
        how: about pairs in both orders, about each answer alone, or about all answers at once in both orders.
        template: file of the prompt.
        principles: of the constitution; none for the template's own words.
        each: ask by each principle (and let their weights vote), or by one drawn for each prompt.
        think: ask for reasons first.
        both_orders: share of the items that are shown in both orders, drawn by their content; the others in one.
        seed: of these draws.
    """

    how: How = "pairwise"
    template: str | Path = PAIRWISE
    principles: tuple[Principle, ...] = ()
    each: bool = True
    think: bool = False
    both_orders: float = 1.0
    seed: int = 0

    def principles_for(self, item: Item) -> list[Principle | None]:
        """What an item is judged by."""
        if not self.principles:
            return [None]
        if self.each:
            return list(self.principles)
        return [draw_principle(self.principles, item.prompt, seed=self.seed)]

    def in_both_orders(self, item: Item) -> bool:
        """Whether an item is shown in both orders: the same for the same item and seed."""
        return draw(self.seed, "orders", item.key) < self.both_orders


def draw(seed: int, *words: str) -> float:
    """A number in [0, 1) that depends on the arguments alone.

    >>> draw(0, "a") == draw(0, "a") != draw(1, "a")
    True
    """
    digest = hashlib.sha256("\0".join((str(seed), *words)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def grading(judge: Ask) -> Grade:
    """A judge that is asked as one that grades: the score it writes, or where there are log-probabilities, expects.

    >>> grading(lambda questions: [Reply("Score: 7")])([[{"role": "user", "content": "How good?"}]])[0][0]
    7.0
    """

    def grade(questions: Sequence[Messages]) -> list[tuple[float | None, Reply]]:
        return [(read_score(reply), reply) for reply in answers(judge, questions)]

    return grade


def judge_items(
    rater: Rater,
    items: Sequence[Item],
    question: Question,
    done: Callable[[str, str | None], bool] = lambda key, principle: False,
) -> list[dict[str, Any]]:
    """A line for each item and principle: what was asked of whom, what came back, what it cost.

    Lines hold ``key``, ``judge``, ``how`` (``score`` of a rater that is not asked), ``principle``, ``weight``,
    ``prompt``, ``answers``, ``human``, ``by``,
    ``prompt_hash``, ``first_order`` and ``second_order`` (of pairs; verdicts name the position shown), ``orders`` asked
    about, ``winner``, ``probability`` that the first answer is better, ``probabilities`` in each order, ``scores`` of
    the answers, ``said``, ``error``, and the tokens of the answers (``prompt_tokens``, ``completion_tokens``: what they
    cost when they were had, which for those out of the cache may have been in an earlier run).

    Args:
        rater: who judges.
        items: what.
        question: how; a rater that scores without a question is asked for its scores whatever it says.
        done: of an item's key and a principle, whether it is judged already and makes no line.

    Returns:
        the lines, item by item.

    Raises:
        UserError: for what the judge or the template refuses.

    >>> item = Item("Why?", ("So.", "No."), Ranking("Why?", ("So.", "No."), "text"))
    >>> line, = judge_items(Rater("length", score=lambda items: [[3.0, 2.0]]), [item], Question())
    >>> line["first_order"], line["second_order"], line["winner"], line["scores"]
    ('first', 'second', 'first', [3.0, 2.0])
    """
    if rater.score is not None:
        items = [item for item in items if not done(item.key, None)]
        if not items:
            return []
        rows = zip(items, rater.score(items), strict=True)
        return [_line(rater, item, None, "score") | _scored(rater, [float(s) for s in scores]) for item, scores in rows]
    asked = [
        (item, principle)
        for item in items
        for principle in question.principles_for(item)
        if not done(item.key, None if principle is None else principle.id)
    ]
    ask = {"pairwise": _ask_pairs, "pointwise": _ask_grades, "ranking": _ask_rankings}[question.how]
    return ask(rater, asked, question) if asked else []


Asked: TypeAlias = Sequence[tuple[Item, Principle | None]]


def _ask_pairs(rater: Rater, asked: Asked, question: Question) -> list[dict[str, Any]]:
    assert rater.pairs is not None
    judged = judge_pairs(
        rater.pairs,
        [item.prompt for item, _ in asked],
        [item.answers[0] for item, _ in asked],
        [item.answers[1] for item, _ in asked],
        both_orders=[question.in_both_orders(item) for item, _ in asked],
        **_options(asked, question),
    )
    lines = []
    for (item, principle), pair in zip(asked, judged, strict=True):
        verdicts = {"first_order": pair.first_order, "second_order": pair.second_order, "winner": pair.winner}
        said = {"probability": pair.first_is_better, "probabilities": list(pair.probabilities), "scores": None}
        lines.append(
            _line(rater, item, principle, question.how) | verdicts | said | _replied(pair.replies, pair.prompt_hash)
        )
    return lines


def _ask_grades(rater: Rater, asked: Asked, question: Question) -> list[dict[str, Any]]:
    assert rater.grade is not None
    questions: list[Messages] = []
    for item, principle in asked:
        text = "" if principle is None else principle.text
        for answer in item.answers:
            content = render(
                question.template, prompt=item.prompt, response=answer, principle=text, think=question.think
            )
            questions.append([{"role": "user", "content": content}])
    graded = rater.grade(questions)
    lines = []
    start = 0
    for item, principle in asked:
        mine = graded[start : start + len(item.answers)]
        scored = _scored(rater, [score for score, _ in mine])
        replied = _replied([reply for _, reply in mine], prompt_hash(questions[start]))
        lines.append(_line(rater, item, principle, question.how) | scored | replied)
        start += len(mine)
    return lines


def _ask_rankings(rater: Rater, asked: Asked, question: Question) -> list[dict[str, Any]]:
    assert rater.rank is not None
    lines: dict[int, dict[str, Any]] = {}
    for size in sorted({len(item.answers) for item, _ in asked}):
        mine = [i for i, (item, _) in enumerate(asked) if len(item.answers) == size]
        alike = [asked[i] for i in mine]
        judged = judge_rankings(
            rater.rank(size),
            [item.prompt for item, _ in alike],
            [item.answers for item, _ in alike],
            both_orders=[question.in_both_orders(item) for item, _ in alike],
            **_options(alike, question),
        )
        for i, (item, principle), found in zip(mine, alike, judged, strict=True):
            rankings = {"rankings": [None if r is None else list(r) for r in found.rankings]}
            scores: Sequence[float | None] = found.scores or [None] * size
            scored = _scored(rater, scores) | {"orders": len(found.replies)} | rankings
            if size == 2:  # a pair like any other, also to the audit
                first: list[Verdict | None] = [
                    None if r is None else ("first" if r[0] == 0 else "second") for r in found.rankings
                ]
                scored |= {"first_order": first[0], "second_order": OPPOSITE[first[1]] if len(first) > 1 else None}
            lines[i] = _line(rater, item, principle, question.how) | scored | _replied(found.replies, found.prompt_hash)
    return [lines[i] for i in range(len(asked))]


def _options(asked: Asked, question: Question) -> dict[str, Any]:
    principles = [principle for _, principle in asked]
    return {"principles": principles, "template": question.template, "think": question.think}


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
    """Scores, and of two answers what they say in either order."""
    line: dict[str, Any] = {"scores": list(scores), "first_order": None, "second_order": None, "winner": None}
    line |= {"probability": None, "probabilities": [None, None]}
    if len(scores) != 2 or scores[0] is None or scores[1] is None:
        return line
    gap = scores[0] - scores[1]
    winner: Verdict = "tie" if abs(gap) <= rater.margin else "first" if gap > 0 else "second"
    if rater.log_odds:
        p = 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))
        line |= {"probability": p, "probabilities": [p, 1 - p]}
    return line | {"winner": winner, "first_order": winner, "second_order": OPPOSITE[winner]}


def _replied(replies: Sequence[Reply], asked: str) -> dict[str, Any]:
    return {
        "prompt_hash": asked,
        "orders": len(replies),
        "said": [reply.text for reply in replies],
        "error": next((reply.error for reply in replies if reply.text is None), None),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }
