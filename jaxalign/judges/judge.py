"""Pairs and single responses put to a judge: every pair in both orders, every answer parsed or counted as a failure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from jaxalign.errors import UserError
from jaxalign.judges.endpoint import Endpoint, Messages, Reply, ask
from jaxalign.judges.pairwise import Verdict, combine_orders
from jaxalign.judges.prompts import PAIRWISE, POINTWISE, Principle, render
from jaxalign.judges.verdict import parse_score, parse_verdict
from jaxalign.judges.votes import score_expectation, verdict_probability

Ask: TypeAlias = Callable[[Sequence[Messages]], list[Reply]]
"""Questions in, replies out: :func:`endpoint_judge` makes one, and any function of this kind is a judge."""


@dataclass(frozen=True)
class JudgedPair:
    """One pair in both orders, or in one; verdicts name the position shown."""

    first_order: Verdict | None
    second_order: Verdict | None
    """None where the judge failed, and where this order was not asked about (one reply, then)."""
    replies: tuple[Reply, ...]
    probabilities: tuple[float | None, float | None]
    """P(the response shown first is better) in either order, where the judge gave log-probabilities."""
    prompt_hash: str
    """Of what the judge was asked in the first order."""
    principle: str | None = None

    @property
    def winner(self) -> Verdict | None:
        """The verdict of all orders that were asked about: a tie where they differ, None where one failed."""
        if len(self.replies) == 1:
            return self.first_order
        return combine_orders([self.first_order], [self.second_order])[0]

    @property
    def first_is_better(self) -> float | None:
        """P(the first response is better): the mean over the orders; None unless each has a probability."""
        one, two = self.probabilities
        if one is None or (two is None and len(self.replies) == 2):
            return None
        return one if two is None else (one + 1 - two) / 2


def endpoint_judge(endpoint: Endpoint) -> Ask:
    """The judge behind an endpoint, as a function of questions.

    Args:
        endpoint: where and how to ask.

    Returns:
        the function.

    >>> endpoint_judge(Endpoint("any", key_env=None))([])
    []
    """
    return partial(ask, endpoint)


def judge_pairs(
    judge: Ask,
    prompts: Sequence[str],
    responses_first: Sequence[str],
    responses_second: Sequence[str],
    *,
    principles: Sequence[Principle | None] | None = None,
    template: str | Path = PAIRWISE,
    think: bool = False,
    both_orders: Sequence[bool] | None = None,
) -> list[JudgedPair]:
    """Asks which response is better, for each pair in both orders.

    Args:
        judge: from questions to replies.
        prompts, responses_first, responses_second: one of each per pair, ``[n]``.
        principles: what to judge each pair by; None for the template's own words.
        template: a file as :func:`~jaxalign.judges.render` reads it.
        think: ask for reasons before the verdict.
        both_orders: False for the pairs to ask about once only, in the order given (which should be a random one), for
            half the price; None for both orders always.

    Returns:
        the verdicts in both orders with what they were read from, ``[n]``.

    Raises:
        UserError: if the lists differ in length or the template is broken, or for what the judge refuses.

    >>> def longer(questions):
    ...     shown_first = [q[0]["content"].split("<response_b>")[0] for q in questions]
    ...     return [Reply("Verdict: A" if "long answer" in text else "?") for text in shown_first]
    >>> pair, = judge_pairs(longer, ["Why?"], ["long answer"], ["no"])
    >>> pair.first_order, pair.second_order
    ('first', None)
    """
    principles = [None] * len(prompts) if principles is None else principles
    twice = [True] * len(prompts) if both_orders is None else both_orders
    same_number(prompts, responses_first, responses_second, principles, *([] if both_orders is None else [both_orders]))
    questions = []
    rows = zip(prompts, responses_first, responses_second, principles, twice, strict=True)
    for prompt, one, two, principle, swapped_too in rows:
        for a, b in ((one, two), (two, one))[: 1 + swapped_too]:
            text = "" if principle is None else principle.text
            content = render(template, prompt=prompt, response_a=a, response_b=b, principle=text, think=think)
            questions.append([{"role": "user", "content": content}])
    replies = answers(judge, questions) if questions else []
    judged = []
    start = 0
    for principle, swapped_too in zip(principles, twice, strict=True):
        mine = tuple(replies[start : start + 1 + swapped_too])
        verdicts = [parse_verdict(reply.text) for reply in mine] + [None]
        p = [
            verdict_probability(reply.logprobs, said) if said is not None and reply.logprobs else None
            for reply, said in zip(mine, verdicts, strict=False)
        ] + [None]
        name = None if principle is None else principle.id
        judged.append(JudgedPair(verdicts[0], verdicts[1], mine, (p[0], p[1]), prompt_hash(questions[start]), name))
        start += len(mine)
    return judged


def prompt_hash(question: Messages) -> str:
    """SHA-256 of what a judge was asked.

    >>> prompt_hash([{"role": "user", "content": "Which?"}])[:8]
    'f04329d6'
    """
    content = "\0".join(message["content"] for message in question)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def judge_scores(
    judge: Ask,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    principle: Principle | None = None,
    template: str | Path = POINTWISE,
    think: bool = False,
) -> list[float | None]:
    """Asks for a score from 1 to 10 for each response: what the judge writes, or with log-probabilities expects.

    Args:
        judge: from questions to replies.
        prompts, responses: one of each per item, ``[n]``.
        principle: what to judge by; None for the template's own words.
        template: a file as :func:`~jaxalign.judges.render` reads it.
        think: ask for reasons before the score.

    Returns:
        the scores, None where the answer holds none, ``[n]``.

    Raises:
        UserError: if the lists differ in length or the template is broken, or for what the judge refuses.

    >>> judge_scores(lambda questions: [Reply("Score: 7"), Reply("Great!")], ["Why?", "Who?"], ["So.", "Me."])
    [7.0, None]
    """
    same_number(prompts, responses)
    text = "" if principle is None else principle.text
    questions = [
        [{"role": "user", "content": render(template, prompt=p, response=r, principle=text, think=think)}]
        for p, r in zip(prompts, responses, strict=True)
    ]
    return [read_score(reply) for reply in answers(judge, questions)]


def read_score(reply: Reply) -> float | None:
    """The score of an answer from 1 to 10: its expectation where there are log-probabilities, or as it is written.

    >>> read_score(Reply("Score: 7")), read_score(Reply("7", logprobs=({"7": -0.6931, "8": -0.6931},)))
    (7.0, 7.5)
    """
    written = parse_score(reply.text)
    expected = score_expectation(reply.logprobs, written) if written is not None and reply.logprobs else None
    return written if expected is None else expected


def answers(judge: Ask, questions: Sequence[Messages]) -> list[Reply]:
    """Replies to questions, one for each."""
    replies = judge(questions)
    if len(replies) != len(questions):
        raise UserError(f"the judge gave {len(replies)} replies to {len(questions)} questions: return one for each")
    return replies


def same_number(*columns: Sequence[object]) -> None:
    """Raises unless all columns have the same number of entries."""
    if len({len(column) for column in columns}) != 1:
        sizes = ", ".join(str(len(column)) for column in columns)
        raise UserError(
            f"prompts, responses and what goes with them are {sizes} in number: give one of each for every item"
        )
