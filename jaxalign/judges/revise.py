"""Constitutional AI's supervised stage: a judge criticises drafts by principles and rewrites them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.judges.aggregate import answer_row
from jaxalign.judges.endpoint import Reply, summarise_replies
from jaxalign.judges.items import Item, JudgeDataSection, read_items, select_answers
from jaxalign.judges.journal import CACHE, RunResult, open_journal
from jaxalign.judges.judge import Ask, check_same_number, get_replies, make_question, prompt_hash
from jaxalign.judges.open import JudgeSection, check_judges, name_of, open_writer
from jaxalign.judges.prompts import CONSTITUTION, Principle, draw_principle, load_constitution
from jaxalign.reporting import Report, silent
from jaxalign.settings import check_ranges

CRITIQUE = "jaxalign:assets/judge/critique.txt"
REVISE = "jaxalign:assets/judge/revise.txt"
REVISIONS = "revisions.jsonl"


@dataclasses.dataclass(frozen=True)
class RevisionConfig:
    """Have a judge criticise answers by principles and rewrite them: data for `jaxalign sft`.

    This is the supervised stage of Constitutional AI (Bai et al. 2022, arXiv:2212.08073). Rerun the same command to
    resume.

    Args:
        data: prompts and drafts, as for `jaxalign judge`; every answer of a row is a draft
        output: directory for verdicts.jsonl (all replies) and revisions.jsonl (to train on)
        judge: who writes critiques and revisions: a model, an endpoint or a function
        constitution: a YAML file of principles, or package:file
        rounds: how often each draft is rewritten, each time by another drawn principle
        critique: a file with your own prompt that asks for a critique
        revise: a file with your own prompt that asks for a revision
        max_new_tokens: maximum number of tokens of a local model's critique or revision
        save_every: drafts between two writes
        seed: of the principles that are drawn
    """

    data: JudgeDataSection
    output: str
    judge: JudgeSection = dataclasses.field(default_factory=JudgeSection)
    constitution: str = CONSTITUTION
    rounds: int = 1
    critique: str = CRITIQUE
    revise: str = REVISE
    max_new_tokens: int = 256
    save_every: int = 16
    seed: int = 0


def revise_answers(config: RevisionConfig, report: Report = silent) -> RunResult:
    """Rewrites answers by principles. Nothing is written before the settings and the data are checked.

    Args:
        config: What to revise, by whom, and how.
        report: Receives a line about each step.

    Returns:
        The revisions, which are also in the output directory, and counts of rewritten, unusable and unanswered drafts.

    Raises:
        UserError: If a setting, a row or the judge is unusable, the directory contains other verdicts, or no draft got
            a revision.
    """
    check_ranges(config, dict.fromkeys(("rounds", "max_new_tokens", "save_every", "data.limit"), (1, math.inf)))
    check_judges([config.judge], "pointwise")
    principles = load_constitution(config.constitution)
    files = {"critique": config.critique, "revise": config.revise, "constitution": config.constitution}
    journal = open_journal(config, files)
    read = read_items(config.data, "pointwise", config.seed)
    report(f"{config.data.path}: {read.report}")
    cache, tokens = str(journal.output / CACHE), config.max_new_tokens
    writer = open_writer(config.judge, cache=cache, max_new_tokens=tokens, seed=config.seed, report=report)
    journal.write_settings()
    name = name_of(config.judge)
    # A draft is an item with one answer.
    drafts = {f"{item.key}/{k}": select_answers(item, [k]) for item in read.items for k in range(len(item.answers))}
    todo = [key for key in drafts if not journal.is_done(name, key, None)]
    report(f"{name}: {len(drafts) - len(todo)} of {len(drafts)} drafts rewritten before")

    def judge(keys: Sequence[str]) -> list[dict[str, Any]]:
        return rewrite(config, writer, {key: drafts[key] for key in keys}, principles)

    journal.extend(todo, judge, config.save_every, report)
    lines = [journal.lines[key, name, None] for key in drafts]
    rows = revised_rows(list(drafts.values()), lines)
    unanswered = [line["error"] for line in lines if line["error"] is not None]
    unusable = len(lines) - len(rows) - len(unanswered)
    outcome = f"{len(rows)} of {len(lines)} drafts rewritten, {unusable} without a usable revision"
    report(outcome)
    if unanswered:
        report(f"{len(unanswered)} had no answer ({unanswered[0]}). Rerun to ask again.")
    if not rows:
        raise UserError(f"{journal.path}: the judge wrote nothing to train on ({outcome}). Read its replies there.")
    counts = Counter(rewritten=len(rows), unusable=unusable, unanswered=len(unanswered))
    return RunResult(rows, counts, journal.write_rows(REVISIONS, rows))


@dataclasses.dataclass(frozen=True)
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


def rewrite(
    config: RevisionConfig, writer: Ask, drafts: Mapping[str, Item], principles: Sequence[Principle]
) -> list[dict[str, Any]]:
    """Returns a line for each draft, by its key, with the critiques and revisions of every round."""
    texts = {key: draft.answers[0] for key, draft in drafts.items()}
    rounds: dict[str, list[Revision]] = {key: [] for key in drafts}
    for turn in range(config.rounds):
        prompts = [drafts[key].prompt for key in texts]
        rules = [draw_principle(principles, prompt, seed=config.seed + turn) for prompt in prompts]
        templates = {"critique": config.critique, "revise": config.revise}
        revisions = critique_and_revise(writer, prompts, list(texts.values()), rules, **templates)
        for key, revision in zip(texts, revisions, strict=True):
            rounds[key].append(revision)
        # A draft whose revision failed takes no part in further rounds.
        results = zip(texts, (revision.revision for revision in revisions), strict=True)
        texts = {key: text for key, text in results if text is not None}
    return [_line(key, name_of(config.judge), revisions) for key, revisions in rounds.items()]


def _line(key: str, judge: str, rounds: Sequence[Revision]) -> dict[str, Any]:
    replies = [reply for revision in rounds for reply in revision.replies]
    return {
        "key": key,
        "judge": judge,
        "principle": None,
        "prompt": rounds[0].prompt,
        "draft": rounds[0].draft,
        "principles": [revision.principle for revision in rounds],
        "critiques": [revision.critique for revision in rounds],
        "revisions": [revision.revision for revision in rounds],
        "prompt_hash": rounds[0].prompt_hash,
        **summarise_replies(replies),
    }


def revised_rows(drafts: Sequence[Item], lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the last revision of each draft, in the format of the row that the draft comes from."""
    names = ("judge", "draft", "principles", "critiques", "prompt_hash", "prompt_tokens", "completion_tokens")
    rows = []
    for draft, line in zip(drafts, lines, strict=True):
        if line["error"] is not None or line["revisions"][-1] is None:
            continue
        record = draft.record
        text = f" {line['revisions'][-1]}" if record.format == "transcript" else line["revisions"][-1]
        item = dataclasses.replace(draft, record=dataclasses.replace(record, ranked=(text,)))
        rows.append(answer_row(item, 0) | {name: line[name] for name in names})
    return rows
