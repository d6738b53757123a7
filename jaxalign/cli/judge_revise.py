"""``jaxalign judge revise``: drafts, criticised and rewritten by principles, as answers to fine-tune on."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from jaxalign.checkpoint import check_writable
from jaxalign.cli.judge import CACHE, check_resumable, fingerprint
from jaxalign.cli.judge_items import JudgeDataSection, read_items
from jaxalign.cli.judge_panel import JudgeSection, check_panel, name_of, open_writer
from jaxalign.errors import UserError
from jaxalign.judges.decide import answer_row
from jaxalign.judges.journal import Journal
from jaxalign.judges.judge import Ask
from jaxalign.judges.label import CRITIQUE, REVISE, Revision, critique_and_revise
from jaxalign.judges.panel import Item
from jaxalign.judges.prompts import CONSTITUTION, Principle, draw_principle, load_constitution
from jaxalign.paths import write_whole
from jaxalign.recipes import run_directory as runs
from jaxalign.settings import check_ranges

VERDICTS, REVISIONS = "verdicts.jsonl", "revisions.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """Have a judge criticise answers by principles and rewrite them: data for `jaxalign sft`, the supervised stage of
    Constitutional AI (Bai et al. 2022, arXiv:2212.08073). The same command goes on where a stopped run was.

    Args:
        data: prompts and drafts, as for `jaxalign judge`; every answer of a row is a draft
        output: directory for verdicts.jsonl (all that was said) and revisions.jsonl (to train on)
        judge: who writes critiques and revisions: a model, an endpoint or a function
        constitution: a YAML file of principles, or package:file
        rounds: how often each draft is rewritten, by a principle drawn anew
        critique: a file of your own with the prompt that asks for a critique
        revise: a file of your own with the prompt that asks for a revision
        max_new_tokens: longest critique or revision of a model of ours
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
class Draft:
    """One answer of an item."""

    item: Item
    number: int

    @property
    def key(self) -> str:
        """That of the item, and which answer."""
        return f"{self.item.key}/{self.number}"


def run(config: Config) -> None:
    """The whole job. What can be wrong is found before anything is written."""
    check_ranges(config, dict.fromkeys(("rounds", "max_new_tokens", "save_every", "data.limit"), (1, math.inf)))
    check_panel([config.judge], "pointwise")
    output = Path(config.output).expanduser()
    check_writable(output)
    console = Console(highlight=False, soft_wrap=True)
    principles = load_constitution(config.constitution)
    asked = fingerprint({"critique": config.critique, "revise": config.revise, "constitution": config.constitution})
    settings = {**runs.settings(config), "asked": asked}
    check_resumable(output, settings)
    journal = Journal(output / VERDICTS)
    read = read_items(config.data, "pointwise", config.seed)
    console.print(f"{config.data.path}: {read.report}", markup=False)
    writer = open_writer(
        config.judge,
        cache=str(output / CACHE),
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
        console=console,
    )
    runs.write_settings(output, settings)
    every = [Draft(item, number) for item in read.items for number in range(len(item.answers))]
    drafts = {draft.key: draft for draft in every}
    name = name_of(config.judge)
    todo = [draft for draft in drafts.values() if not journal.is_done(draft.key, name, None)]
    console.print(f"{name}: {len(drafts) - len(todo)} of {len(drafts)} drafts rewritten before", markup=False)
    try:
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(name, total=len(todo))
            for start in range(0, len(todo), config.save_every):
                chunk = todo[start : start + config.save_every]
                journal.add(rewrite(config, writer, chunk, principles))
                progress.advance(task, len(chunk))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{len(journal.lines)} drafts are kept, and the same command goes on") from None
    lines = [journal.lines[key, name, None] for key in drafts]
    tell(output, [*drafts.values()], lines, console)


def rewrite(
    config: Config, writer: Ask, drafts: Sequence[Draft], principles: Sequence[Principle]
) -> list[dict[str, Any]]:
    """A line for each draft: what was said of it in every round, and the last revision."""
    prompts = [draft.item.prompt for draft in drafts]
    texts: list[str | None] = [draft.item.answers[draft.number] for draft in drafts]
    said: list[list[Revision]] = [[] for _ in drafts]
    for turn in range(config.rounds):
        going = [i for i, text in enumerate(texts) if text is not None]
        chosen = [draw_principle(principles, prompts[i], seed=config.seed + turn) for i in going]
        found = critique_and_revise(
            writer,
            [prompts[i] for i in going],
            [str(texts[i]) for i in going],
            chosen,
            critique=config.critique,
            revise=config.revise,
        )
        for i, revision in zip(going, found, strict=True):
            said[i].append(revision)
            texts[i] = revision.revision
    return [_line(config, draft, rounds) for draft, rounds in zip(drafts, said, strict=True)]


def _line(config: Config, draft: Draft, rounds: Sequence[Revision]) -> dict[str, Any]:
    replies = [reply for revision in rounds for reply in revision.replies]
    return {
        "key": draft.key,
        "judge": name_of(config.judge),
        "principle": None,
        "prompt": rounds[0].prompt,
        "draft": rounds[0].draft,
        "principles": [revision.principle for revision in rounds],
        "critiques": [revision.critique for revision in rounds],
        "revisions": [revision.revision for revision in rounds],
        "prompt_hash": rounds[0].prompt_hash,
        "error": next((revision.error for revision in rounds if revision.error is not None), None),
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }


def tell(output: Path, drafts: Sequence[Draft], lines: Sequence[dict[str, Any]], console: Console) -> None:
    """The revisions, in the format of the rows they come from, and a few lines about them."""
    rows = []
    for draft, line in zip(drafts, lines, strict=True):
        if line["error"] is not None or line["revisions"][-1] is None:
            continue
        record = draft.item.record
        text = f" {line['revisions'][-1]}" if record.format == "transcript" else line["revisions"][-1]
        item = dataclasses.replace(draft.item, record=dataclasses.replace(record, ranked=(text,)))
        names = ("judge", "draft", "principles", "critiques", "prompt_hash", "prompt_tokens", "completion_tokens")
        rows.append(answer_row(item, 0) | {name: line[name] for name in names})
    unheard = sum(line["error"] is not None for line in lines)
    told = f"{len(rows)} of {len(lines)} drafts rewritten, {len(lines) - len(rows) - unheard} without a usable revision"
    console.print(told)
    if unheard:
        why = next(line["error"] for line in lines if line["error"] is not None)
        console.print(f"{unheard} had no answer ({why}); the same command asks again", markup=False)
    if not rows:
        raise UserError(
            f"{output / VERDICTS}: there is no revision to train on ({told}): see there what the judge says"
        )
    write_whole(output / REVISIONS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    console.print(f"The revisions are in {output / REVISIONS}: jaxalign sft trains on them.", markup=False)
