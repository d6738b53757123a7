"""Questions to a judge: pairs and rankings in both orders, and single responses. Unparsed replies are failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeAlias

from jaxalign.errors import UserError
from jaxalign.judges.endpoint import Endpoint, Messages, Reply, ask
from jaxalign.judges.hashing import text_hash
from jaxalign.judges.pairwise import Verdict, combine_orders
from jaxalign.judges.prompts import PAIRWISE, POINTWISE, RANKING, Principle, render
from jaxalign.judges.verdict import parse_ranking, parse_score, parse_verdict, score_expectation, verdict_probability

# A judge: any function from questions to replies, one for each. `endpoint_judge` makes one.
Ask: TypeAlias = Callable[[Sequence[Messages]], list[Reply]]


@dataclass(frozen=True)
class JudgedPair:
    """One pair in both orders, or in one. Verdicts name the position shown.

    Attributes:
        first_order: The verdict in the first order; None for a failure.
        second_order: The verdict in the second order; None for a failure, and where this order was not shown.
        replies: One reply for each order shown.
        probabilities: P(the response shown first is better) in either order, if the judge gave log-probabilities.
        prompt_hash: Hash of the question in the first order.
        principle: The principle that the pair was judged by.
    """

    first_order: Verdict | None
    second_order: Verdict | None
    replies: tuple[Reply, ...]
    probabilities: tuple[float | None, float | None]
    prompt_hash: str
    principle: str | None = None

    @property
    def winner(self) -> Verdict | None:
        """The verdict of all orders shown: a tie if they differ, None if one failed."""
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


@dataclass(frozen=True)
class JudgedRanking:
    """K responses ranked in both orders, or in one.

    Attributes:
        rankings: A ranking for each order shown, best first, by places in the given order; None for a failure.
        replies: A reply for each order shown.
        prompt_hash: Hash of the question in the first order.
    """

    rankings: tuple[tuple[int, ...] | None, ...]
    replies: tuple[Reply, ...]
    prompt_hash: str

    @property
    def scores(self) -> list[float] | None:
        """How many responses each one beats, as the mean over the orders; None if an order failed.

        K - 1 is best, 0 worst. Source: the count of Borda, 1784.
        """
        if not all(self.rankings):
            return None
        known = [ranking for ranking in self.rankings if ranking is not None]
        size = len(known[0])
        return [sum(size - 1 - ranking.index(k) for ranking in known) / len(known) for k in range(size)]


def endpoint_judge(endpoint: Endpoint) -> Ask:
    """Returns the judge behind an endpoint.

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
    """Asks which of two responses is better, for each pair in both orders.

    Args:
        judge: Function from questions to replies.
        prompts: A prompt for each pair, ``[n]``.
        responses_first: The first response of each pair, ``[n]``.
        responses_second: The second response of each pair, ``[n]``.
        principles: What to judge each pair by, ``[n]``; None for the template's own words.
        template: A file, as :func:`~jaxalign.judges.render` reads it.
        think: Whether to ask for reasons before the verdict.
        both_orders: False for the pairs to show in the given order only, at half the cost. That order should be a
            random one. None shows all pairs in both orders.

    Returns:
        The verdicts in both orders with the replies, ``[n]``.

    Raises:
        UserError: If the lists differ in length, the template is broken or the judge fails.

    >>> def longer(questions):
    ...     shown_first = [q[0]["content"].split("<response_b>")[0] for q in questions]
    ...     return [Reply("Verdict: A" if "long answer" in text else "?") for text in shown_first]
    >>> pair, = judge_pairs(longer, ["Why?"], ["long answer"], ["no"])
    >>> pair.first_order, pair.second_order
    ('first', None)
    """
    principles = [None] * len(prompts) if principles is None else principles
    twice = [True] * len(prompts) if both_orders is None else both_orders
    check_same_number(prompts, responses_first, responses_second, principles, twice)
    columns = zip(prompts, responses_first, responses_second, principles, twice, strict=True)
    cases = [(prompt, rule, ((a, b), (b, a))[: 1 + both]) for prompt, a, b, rule, both in columns]
    questions = [
        [make_question(template, rule, prompt=prompt, response_a=a, response_b=b, think=think) for a, b in orders]
        for prompt, rule, orders in cases
    ]
    judged = []
    for asked, replies, principle in zip(questions, ask_in_orders(judge, questions), principles, strict=True):
        verdicts = [parse_verdict(reply.text) for reply in replies]
        p = [None if v is None else verdict_probability(r.logprobs, v) for r, v in zip(replies, verdicts, strict=True)]
        second, second_p = (verdicts[1], p[1]) if len(replies) == 2 else (None, None)
        name = None if principle is None else principle.id
        judged.append(JudgedPair(verdicts[0], second, replies, (p[0], second_p), prompt_hash(asked[0]), name))
    return judged


def judge_rankings(
    judge: Ask,
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    *,
    principles: Sequence[Principle | None] | None = None,
    template: str | Path = RANKING,
    think: bool = False,
    both_orders: Sequence[bool] | None = None,
) -> list[JudgedRanking]:
    """Asks a judge to order K responses, shown as given and in reverse.

    Args:
        judge: Function from questions to replies.
        prompts: A prompt for each item, ``[n]``.
        responses: 2 to 26 responses for each item, ``[n]``.
        principles: As for :func:`~jaxalign.judges.judge_pairs`.
        template: As for :func:`~jaxalign.judges.judge_pairs`.
        think: As for :func:`~jaxalign.judges.judge_pairs`.
        both_orders: As for :func:`~jaxalign.judges.judge_pairs`.

    Returns:
        The rankings, ``[n]``.

    Raises:
        UserError: If the lists differ in length, an item has too few or too many responses, or the template is broken.

    >>> judge = lambda questions: [Reply("Ranking: B > A > C"), Reply("Ranking: B > C > A")]
    >>> ranked, = judge_rankings(judge, ["Why?"], [["so", "thus", "hence"]])
    >>> ranked.rankings, ranked.scores
    (((1, 0, 2), (1, 0, 2)), [1.0, 2.0, 0.0])
    """
    principles = [None] * len(prompts) if principles is None else principles
    twice = [True] * len(prompts) if both_orders is None else both_orders
    check_same_number(prompts, responses, principles, twice)
    questions: list[list[Messages]] = []
    for i, (prompt, texts, principle, both) in enumerate(zip(prompts, responses, principles, twice, strict=True)):
        if not 2 <= len(texts) <= len(ascii_uppercase):
            raise UserError(f"Row {i + 1}: {len(texts)} responses. Give from 2 to {len(ascii_uppercase)}.")
        lettered = [list(zip(ascii_uppercase, shown, strict=False)) for shown in (texts, texts[::-1])[: 1 + both]]
        questions.append(
            [make_question(template, principle, prompt=prompt, responses=shown, think=think) for shown in lettered]
        )
    judged = []
    replied = ask_in_orders(judge, questions)
    for texts, asked, replies in zip(responses, questions, replied, strict=True):
        rankings = [parse_ranking(reply.text, len(texts)) for reply in replies]
        if len(rankings) == 2 and rankings[1] is not None:
            rankings[1] = tuple(len(texts) - 1 - k for k in rankings[1])
        judged.append(JudgedRanking(tuple(rankings), replies, prompt_hash(asked[0])))
    return judged


def judge_scores(
    judge: Ask,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    principle: Principle | None = None,
    template: str | Path = POINTWISE,
    think: bool = False,
) -> list[float | None]:
    """Asks for a score from 1 to 10 for each response: the expected score if the judge gives log-probabilities.

    Args:
        judge: Function from questions to replies.
        prompts: A prompt for each response, ``[n]``.
        responses: The responses, ``[n]``.
        principle: What to judge by; None for the template's own words.
        template: A file, as :func:`~jaxalign.judges.render` reads it.
        think: Whether to ask for reasons before the score.

    Returns:
        The scores, None where the reply contains none, ``[n]``.

    Raises:
        UserError: If the lists differ in length, the template is broken or the judge fails.

    >>> judge_scores(lambda questions: [Reply("Score: 7"), Reply("Great!")], ["Why?", "Who?"], ["So.", "Me."])
    [7.0, None]
    """
    questions = score_questions(prompts, responses, template, principle, think)
    return [read_score(reply) for reply in get_replies(judge, questions)]


def score_questions(
    prompts: Sequence[str], responses: Sequence[str], template: str | Path, principle: Principle | None, think: bool
) -> list[Messages]:
    """Returns a question about each response, with the arguments of :func:`judge_scores`."""
    check_same_number(prompts, responses)
    pairs = zip(prompts, responses, strict=True)
    return [make_question(template, principle, prompt=p, response=response, think=think) for p, response in pairs]


def make_question(template: str | Path, principle: Principle | None, **values: Any) -> Messages:
    """Returns a chat of one message: a template filled in with a principle and further values."""
    text = "" if principle is None else principle.text
    return [{"role": "user", "content": render(template, principle=text, **values)}]


def prompt_hash(question: Messages) -> str:
    """Returns the SHA-256 of a question.

    >>> prompt_hash([{"role": "user", "content": "Which?"}])[:8]
    'f04329d6'
    """
    return text_hash(*(message["content"] for message in question))


def read_score(reply: Reply) -> float | None:
    """Returns a reply's score from 1 to 10: its expectation if there are log-probabilities, or as written.

    >>> read_score(Reply("Score: 7")), read_score(Reply("7", logprobs=({"7": -0.6931, "8": -0.6931},)))
    (7.0, 7.5)
    """
    written = parse_score(reply.text)
    expected = score_expectation(reply.logprobs, written) if written is not None and reply.logprobs else None
    return written if expected is None else expected


def get_replies(judge: Ask, questions: Sequence[Messages]) -> list[Reply]:
    """Returns a judge's replies to questions, and raises UserError unless there is one for each."""
    replies = judge(questions) if questions else []
    if len(replies) != len(questions):
        raise UserError(f"The judge gave {len(replies)} replies to {len(questions)} questions. Return one for each.")
    return replies


def ask_in_orders(judge: Ask, questions: Sequence[Sequence[Messages]]) -> list[tuple[Reply, ...]]:
    """Puts all items' questions to a judge at once, and returns the replies item by item."""
    replies = iter(get_replies(judge, [question for orders in questions for question in orders]))
    return [tuple(next(replies) for _ in orders) for orders in questions]


def check_same_number(*columns: Sequence[object]) -> None:
    """Raises UserError unless all columns have the same number of entries."""
    if len({len(column) for column in columns}) != 1:
        sizes = ", ".join(str(len(column)) for column in columns)
        raise UserError(f"Prompts, responses and their options are {sizes} in number. Give one of each for every item.")
