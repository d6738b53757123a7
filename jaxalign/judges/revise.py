"""A revision run: a judge criticises and rewrites a file of answers, and every reply is stored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError
from jaxalign.judges.aggregate import answer_row
from jaxalign.judges.critique import CRITIQUE, REVISE, Revision, critique_and_revise
from jaxalign.judges.endpoint import summarise_replies
from jaxalign.judges.items import Item, JudgeDataSection, read_items, select_answers
from jaxalign.judges.journal import CACHE, open_journal, write_rows
from jaxalign.judges.judge import Ask
from jaxalign.judges.open import JudgeSection, check_judges, name_of, open_writer
from jaxalign.judges.prompts import CONSTITUTION, Principle, draw_principle, load_constitution
from jaxalign.reporting import Report, silent
from jaxalign.settings import check_ranges

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


@dataclasses.dataclass(frozen=True)
class Revisions:
    """What a revision run returns.

    Attributes:
        rows: The revised answers, for the data layer.
        file: The file with the rows.
    """

    rows: list[dict[str, Any]]
    file: Path


def revise_answers(config: RevisionConfig, report: Report = silent) -> Revisions:
    """Rewrites answers by principles. Nothing is written before the settings and the data are checked.

    Args:
        config: What to revise, by whom, and how.
        report: Receives a line about each step.

    Returns:
        The revisions, which are also in the output directory.

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
    writer = open_writer(
        config.judge,
        cache=str(journal.output / CACHE),
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        report=report,
    )
    journal.write_settings()
    name = name_of(config.judge)
    # A draft is an item with one answer.
    drafts = {f"{item.key}/{k}": select_answers(item, [k]) for item in read.items for k in range(len(item.answers))}
    todo = [key for key in drafts if not journal.is_done(key, name, None)]
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
    file = journal.output / REVISIONS
    write_rows(file, rows)
    return Revisions(rows, file)


def rewrite(
    config: RevisionConfig, writer: Ask, drafts: Mapping[str, Item], principles: Sequence[Principle]
) -> list[dict[str, Any]]:
    """Returns a line for each draft, by its key, with the critiques and revisions of every round."""
    texts = {key: draft.answers[0] for key, draft in drafts.items()}
    rounds: dict[str, list[Revision]] = {key: [] for key in drafts}
    for turn in range(config.rounds):
        prompts = [drafts[key].prompt for key in texts]
        revisions = critique_and_revise(
            writer,
            prompts,
            list(texts.values()),
            [draw_principle(principles, prompt, seed=config.seed + turn) for prompt in prompts],
            critique=config.critique,
            revise=config.revise,
        )
        for key, revision in zip(texts, revisions, strict=True):
            rounds[key].append(revision)
        # A draft whose revision failed takes no part in further rounds.
        results = zip(texts, (revision.revision for revision in revisions), strict=True)
        texts = {key: text for key, text in results if text is not None}
    name = name_of(config.judge)
    return [_line(key, name, revisions) for key, revisions in rounds.items()]


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
