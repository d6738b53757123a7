"""Constitutional AI's supervised stage: a judge criticises drafts by principles and rewrites them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxalign.judges.endpoint import Reply
from jaxalign.judges.judge import Ask, check_same_number, get_replies, make_question, prompt_hash
from jaxalign.judges.prompts import Principle

CRITIQUE = "jaxalign:assets/judge/critique.txt"
REVISE = "jaxalign:assets/judge/revise.txt"


@dataclass(frozen=True)
class Revision:
    """A draft with its critique and revision; each is None if the judge gave nothing usable.

    Attributes:
        prompt: The prompt.
        draft: The answer to revise.
        principle: The principle's id.
        critique: The judge's critique.
        revision: The judge's revision.
        replies: The replies that both come from: one if there was no critique.
        prompt_hash: Hash of the question for the critique.
    """

    prompt: str
    draft: str
    principle: str
    critique: str | None
    revision: str | None
    replies: tuple[Reply, ...] = ()
    prompt_hash: str = ""

    def row(self) -> dict[str, str] | None:
        """Returns the prompt and completion to fine-tune on, if there is a revision."""
        return None if self.revision is None else {"prompt": self.prompt, "completion": self.revision}


def critique_and_revise(
    judge: Ask,
    prompts: Sequence[str],
    drafts: Sequence[str],
    principles: Sequence[Principle],
    *,
    critique: str | Path = CRITIQUE,
    revise: str | Path = REVISE,
) -> list[Revision]:
    """Asks for a critique of each draft by a principle, and then for a revision.

    Source: Bai et al. 2022, arXiv:2212.08073, sec. 3.1. For several rounds, pass the revisions as drafts.

    Args:
        judge: Function from questions to replies. It writes the critiques and the revisions.
        prompts: A prompt for each draft, ``[n]``.
        drafts: The answers to revise, ``[n]``.
        principles: A principle for each draft, ``[n]``.
        critique: Template file of the question for a critique.
        revise: Template file of the question for a revision.

    Returns:
        A revision for each draft, ``[n]``.

    Raises:
        UserError: If the lists differ in length, a template is broken or the judge fails.

    >>> def judge(questions):
    ...     revising = "<critique>" in questions[0][0]["content"]
    ...     return [Reply("<revision>Kindly.</revision>" if revising else "It is rude.")] * len(questions)
    >>> critique_and_revise(judge, ["How?"], ["Shut up."], [Principle("kind", "Be kind.")])[0].row()
    {'prompt': 'How?', 'completion': 'Kindly.'}
    """
    check_same_number(prompts, drafts, principles)
    cases = list(zip(prompts, drafts, principles, strict=True))
    questions = [make_question(critique, rule, prompt=prompt, response=draft) for prompt, draft, rule in cases]
    criticised = get_replies(judge, questions)
    critiques = [(reply.text or "").strip() or None for reply in criticised]
    revising = {
        i: make_question(revise, rule, prompt=prompt, response=draft, critique=critiques[i])
        for i, (prompt, draft, rule) in enumerate(cases)
        if critiques[i] is not None
    }
    revised = dict(zip(revising, get_replies(judge, list(revising.values())), strict=True))
    revisions = []
    for i, (prompt, draft, rule) in enumerate(cases):
        replies = (criticised[i], *([revised[i]] if i in revised else []))
        text = _tagged_text(revised[i]) if i in revised else None
        revisions.append(Revision(prompt, draft, rule.id, critiques[i], text, replies, prompt_hash(questions[i])))
    return revisions


def _tagged_text(reply: Reply) -> str | None:
    """Returns the text between revision tags. An answer without exactly one pair of tags has none."""
    texts = re.findall(r"(?s)<revision>(.*?)</revision>", reply.text or "")
    return texts[0].strip() or None if len(texts) == 1 else None
