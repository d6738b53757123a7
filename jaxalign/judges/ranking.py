"""Rankings: a judge orders several responses at once, shown as given and in reverse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from jaxalign.errors import UserError
from jaxalign.judges.endpoint import Messages, Reply
from jaxalign.judges.judge import Ask, ask_in_orders, check_same_number, make_question, prompt_hash
from jaxalign.judges.prompts import Principle
from jaxalign.judges.verdict import strip_reasoning

RANKING = "jaxalign:assets/judge/ranking.txt"
_RANKING = re.compile(r"\branking[\"'*_]*\s*(?:is\b|[:=])\s*(?P<rest>[^\n]*)", re.I)


@dataclass(frozen=True)
class JudgedRanking:
    """K responses ranked in both orders, or in one.

    Attributes:
        rankings: A ranking for each order shown, best first, by places in the given order; None for a failure.
        replies: A reply for each order shown.
        prompt_hash: Hash of the question in the first order.
        principle: The principle that the responses were judged by.
    """

    rankings: tuple[tuple[int, ...] | None, ...]
    replies: tuple[Reply, ...]
    prompt_hash: str
    principle: str | None = None

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
    for texts, principle, asked, replies in zip(responses, principles, questions, replied, strict=True):
        rankings = [parse_ranking(reply.text, len(texts)) for reply in replies]
        if len(rankings) == 2 and rankings[1] is not None:
            rankings[1] = tuple(len(texts) - 1 - k for k in rankings[1])
        name = None if principle is None else principle.id
        judged.append(JudgedRanking(tuple(rankings), replies, prompt_hash(asked[0]), name))
    return judged


def parse_ranking(text: str | None, number: int) -> tuple[int, ...] | None:
    """Returns the ranking at the end of a judge's answer: "Ranking: B > A" is (1, 0).

    The last such line counts. It must contain every letter once, separated by ``>``. Reasoning in ``<think>`` tags
    does not count.

    Args:
        text: The answer, if there was one.
        number: K, how many responses were shown.

    Returns:
        The indices of the responses, best first, or None if the answer is not certain.

    >>> parse_ranking("A is clear.\\n**Ranking: [[C]] > A > B.**", 3)
    (2, 0, 1)
    >>> parse_ranking("Ranking: A > B", 3), parse_ranking("Ranking: A = B > C", 3)
    (None, None)
    """
    answer = strip_reasoning(text)
    marks = list(_RANKING.finditer(answer))
    lines = [line for line in answer.splitlines() if line.strip()]
    rest = marks[-1]["rest"] if marks else lines[-1] if lines else ""
    letters = [part.strip(" \t.*_`\"'[](){}").upper() for part in rest.split(">")]
    if sorted(letters) != list(ascii_uppercase[:number]):
        return None
    return tuple(ascii_uppercase.index(letter) for letter in letters)
