"""What judging is for: preference data, a reward, and revised answers to imitate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.judges.endpoint import Messages, Reply
from jaxalign.judges.judge import Ask, JudgedPair, answers, prompt_hash, same_number
from jaxalign.judges.prompts import Principle, render

CRITIQUE = "jaxalign:assets/judge/critique.txt"
REVISE = "jaxalign:assets/judge/revise.txt"


class Labelled(NamedTuple):
    """Preference rows for the data layer, and how many pairs gave none."""

    rows: list[dict[str, Any]]
    ties: int
    failures: int


@dataclass(frozen=True)
class Revision:
    """A draft, what was said about it, and what became of it; None where the judge gave nothing that can be used."""

    prompt: str
    draft: str
    principle: str
    critique: str | None
    revision: str | None
    replies: tuple[Reply, ...] = ()
    """What both were read from; one, if there was no critique to revise by."""
    prompt_hash: str = ""
    """Of what was asked for the critique."""

    @property
    def error(self) -> str | None:
        """Why a question had no answer, if one had none; it is worth asking again."""
        return next((reply.error for reply in self.replies if reply.text is None), None)

    def row(self) -> dict[str, str] | None:
        """The pair of prompt and completion to fine-tune on, if there is a revision."""
        return None if self.revision is None else {"prompt": self.prompt, "completion": self.revision}


def preference_rows(
    prompts: Sequence[str],
    responses_first: Sequence[str],
    responses_second: Sequence[str],
    judged: Sequence[JudgedPair],
    *,
    judge: str,
) -> Labelled:
    """Rows ``prompt``, ``chosen``, ``rejected``, as ``jaxalign dpo`` and ``reward`` read them, with their origin.

    The choice is that of both orders (:func:`~jaxalign.judges.combine_orders`): ties, disagreements between the orders
    and failures make no row. Further columns: ``judge``, ``prompt_hash``, ``principle``, ``first_order``,
    ``second_order``, ``probability`` that the chosen one is better and ``label_smoothing``, at most ½ (both None
    without log-probabilities), ``prompt_tokens`` and ``completion_tokens`` of the answers.

    Args:
        prompts, responses_first, responses_second, judged: one of each per pair, ``[n]``.
        judge: its name.

    Returns:
        the rows in order, and how many pairs were ties or failures.

    Raises:
        UserError: if the lists differ in length.

    >>> from jaxalign.judges import judge_pairs
    >>> judged = judge_pairs(lambda q: [Reply("Verdict: A"), Reply("Verdict: B")], ["Why?"], ["So."], ["No."])
    >>> row = preference_rows(["Why?"], ["So."], ["No."], judged, judge="me").rows[0]
    >>> row["chosen"], row["rejected"], row["second_order"]
    ('So.', 'No.', 'second')
    """
    same_number(prompts, responses_first, responses_second, judged)
    chosen = [pair.winner for pair in judged]
    rows = []
    for i, (verdict, pair) in enumerate(zip(chosen, judged, strict=True)):
        if verdict not in ("first", "second"):
            continue
        sides = (responses_first[i], responses_second[i])
        p = pair.first_is_better
        p = p if p is None or verdict == "first" else 1 - p
        rows.append(
            {
                "prompt": prompts[i],
                "chosen": sides[verdict == "second"],
                "rejected": sides[verdict == "first"],
                "judge": judge,
                "prompt_hash": pair.prompt_hash,
                "principle": pair.principle,
                "first_order": pair.first_order,
                "second_order": pair.second_order,
                "probability": p,
                "label_smoothing": None if p is None else min(0.5, 1 - p),
                "prompt_tokens": sum(reply.prompt_tokens for reply in pair.replies),
                "completion_tokens": sum(reply.completion_tokens for reply in pair.replies),
            }
        )
    counts = Counter(chosen)
    return Labelled(rows, counts["tie"], counts[None])


def critique_and_revise(
    judge: Ask,
    prompts: Sequence[str],
    drafts: Sequence[str],
    principles: Sequence[Principle],
    *,
    critique: str | Path = CRITIQUE,
    revise: str | Path = REVISE,
) -> list[Revision]:
    """The supervised stage of Constitutional AI: draft → critique by a principle → revision.

    Source: Bai et al. 2022, arXiv:2212.08073, sec. 3.1. For several rounds, put the revisions in as drafts.

    Args:
        judge: from questions to replies; it writes the critiques and the revisions.
        prompts, drafts, principles: one of each per item, ``[n]``.
        critique, revise: template files.

    Returns:
        what became of each draft, ``[n]``.

    Raises:
        UserError: if the lists differ in length or a template is broken, or for what the judge refuses.

    >>> def judge(questions):
    ...     revising = "<critique>" in questions[0][0]["content"]
    ...     return [Reply("<revision>Kindly.</revision>" if revising else "It is rude.")] * len(questions)
    >>> critique_and_revise(judge, ["How?"], ["Shut up."], [Principle("kind", "Be kind.")])[0].row()
    {'prompt': 'How?', 'completion': 'Kindly.'}
    """
    same_number(prompts, drafts, principles)
    items = list(zip(prompts, drafts, principles, strict=True))
    ask = [_question(critique, prompt=p, response=d, principle=rule.text) for p, d, rule in items]
    hashes = [prompt_hash(question) for question in ask]
    criticised = answers(judge, ask)
    critiques = [_text(reply) for reply in criticised]
    known = [i for i, text in enumerate(critiques) if text is not None]
    ask = [
        _question(revise, prompt=p, response=d, principle=rule.text, critique=critiques[i])
        for i, (p, d, rule) in enumerate(items)
        if i in set(known)
    ]
    revised = dict(zip(known, answers(judge, ask) if ask else [], strict=True))
    found = []
    for i, (p, d, rule) in enumerate(items):
        replies = (criticised[i], *([revised[i]] if i in revised else []))
        revision = _revision(revised[i]) if i in revised else None
        found.append(Revision(p, d, rule.id, critiques[i], revision, replies, hashes[i]))
    return found


def _question(template: str | Path, **values: Any) -> Messages:
    return [{"role": "user", "content": render(template, **values)}]


def _text(reply: Reply) -> str | None:
    return reply.text.strip() or None if reply.text is not None else None


def _revision(reply: Reply) -> str | None:
    """What stands between the tags, once; an answer cut off before the end tag is none."""
    found = re.findall(r"(?s)<revision>(.*?)</revision>", reply.text or "")
    return found[0].strip() or None if len(found) == 1 else None
