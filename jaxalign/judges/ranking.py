"""Several responses at once: a judge puts them in order, in the order shown and in the reverse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from jaxalign.errors import UserError
from jaxalign.judges.endpoint import Messages, Reply
from jaxalign.judges.judge import Ask, answers, prompt_hash, same_number
from jaxalign.judges.prompts import Principle, render
from jaxalign.judges.verdict import spoken

RANKING = "jaxalign:assets/judge/ranking.txt"
_RANKING = re.compile(r"\branking[\"'*_]*\s*(?:is\b|[:=])\s*(?P<rest>[^\n]*)", re.I)


@dataclass(frozen=True)
class JudgedRanking:
    """K responses in both orders, or in one. Rankings are of the responses as they were given, the best first."""

    rankings: tuple[tuple[int, ...] | None, ...]
    """One for each order asked about; None where the judge failed."""
    replies: tuple[Reply, ...]
    prompt_hash: str
    principle: str | None = None

    @property
    def scores(self) -> list[float] | None:
        """Responses beaten, the mean over the orders: K - 1 is best, 0 worst; None if an order failed.

        Source: the count of Borda, 1784.
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
    """Asks to order K responses, shown as given and in reverse.

    Args:
        judge: from questions to replies.
        prompts, responses: one prompt and 2 to 26 responses per item, ``[n]``.
        principles, template, think, both_orders: as for :func:`~jaxalign.judges.judge_pairs`.

    Returns:
        the rankings, ``[n]``.

    Raises:
        UserError: if the lists differ in length, an item has too few or too many responses, or the template is broken.

    >>> judge = lambda questions: [Reply("Ranking: B > A > C"), Reply("Ranking: B > C > A")]
    >>> found, = judge_rankings(judge, ["Why?"], [["so", "thus", "hence"]])
    >>> found.rankings, found.scores
    (((1, 0, 2), (1, 0, 2)), [1.0, 2.0, 0.0])
    """
    principles = [None] * len(prompts) if principles is None else principles
    twice = [True] * len(prompts) if both_orders is None else both_orders
    same_number(prompts, responses, principles, *([] if both_orders is None else [both_orders]))
    questions: list[Messages] = []
    for i, (prompt, texts, principle, reverse) in enumerate(zip(prompts, responses, principles, twice, strict=True)):
        if not 2 <= len(texts) <= len(ascii_uppercase):
            raise UserError(f"row {i + 1}: {len(texts)} responses: give from 2 to {len(ascii_uppercase)}")
        for shown in (list(texts), list(texts)[::-1])[: 1 + reverse]:
            lettered = list(zip(ascii_uppercase, shown, strict=False))
            text = "" if principle is None else principle.text
            content = render(template, prompt=prompt, responses=lettered, principle=text, think=think)
            questions.append([{"role": "user", "content": content}])
    replies = answers(judge, questions) if questions else []
    judged = []
    start = 0
    for texts, principle, reverse in zip(responses, principles, twice, strict=True):
        mine = tuple(replies[start : start + 1 + reverse])
        rankings = [parse_ranking(reply.text, len(texts)) for reply in mine]
        if len(rankings) == 2 and rankings[1] is not None:
            rankings[1] = tuple(len(texts) - 1 - k for k in rankings[1])
        name = None if principle is None else principle.id
        judged.append(JudgedRanking(tuple(rankings), mine, prompt_hash(questions[start]), name))
        start += len(mine)
    return judged


def parse_ranking(text: str | None, number: int) -> tuple[int, ...] | None:
    """The ranking that a judge's answer ends with: "Ranking: B > A" is (1, 0).

    The last line of the kind counts; every letter must be there once, apart by ``>``; reasoning in ``<think>`` tags
    does not count.

    Args:
        text: the answer; None where there was none.
        number: K, how many responses were shown.

    Returns:
        the numbers of the responses, the best first, or None where the answer does not say for certain.

    >>> parse_ranking("A is clear.\\n**Ranking: [[C]] > A > B.**", 3)
    (2, 0, 1)
    >>> parse_ranking("Ranking: A > B", 3), parse_ranking("Ranking: A = B > C", 3)
    (None, None)
    """
    said = spoken(text)
    found = list(_RANKING.finditer(said))
    lines = [line for line in said.splitlines() if line.strip()]
    rest = found[-1]["rest"] if found else lines[-1] if lines else ""
    letters = [part.strip(" \t.*_`\"'[](){}").upper() for part in rest.split(">")]
    if sorted(letters) != list(ascii_uppercase[:number]):
        return None
    return tuple(ascii_uppercase.index(letter) for letter in letters)
