"""``jaxalign judge``: answers in, preferences out; ``jaxalign judge audit`` says whether to believe them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from jaxalign.checkpoint import check_writable
from jaxalign.cli.judge_items import JudgeDataSection, read_items
from jaxalign.cli.judge_panel import JudgeSection, check_panel, name_of, open_rater
from jaxalign.errors import UserError
from jaxalign.judges.decide import label_rows
from jaxalign.judges.journal import Journal
from jaxalign.judges.panel import TEMPLATES, Item, Question, Rater, judge_items
from jaxalign.judges.prompts import load_constitution
from jaxalign.paths import resolve_path, write_whole
from jaxalign.recipes import run_directory as runs
from jaxalign.settings import check_ranges

TASKS = {"audit": "jaxalign.cli.judge_audit", "revise": "jaxalign.cli.judge_revise"}
VERDICTS, CACHE = "verdicts.jsonl", "cache.sqlite"
FILES = {"preference": "preferences", "binary": "labels", "score": "scores", "ranking": "rankings"}
# What may change between a run and its resumption: none of it changes a verdict.
FREE = ("output", "save_every", "write", "decide", "threshold", "data.limit", "data.on_error", "data.path")
ENDPOINT_FREE = ("concurrency", "requests_per_minute", "timeout", "retries", "backoff", "cache", "key_env")


@dataclasses.dataclass(frozen=True)
class Config:
    """Label answers with AI judges; `jaxalign judge audit RUN` then says whether to believe them, and
    `jaxalign judge revise` has a judge rewrite answers by principles.

    The same command goes on where a stopped run was: every verdict is kept as soon as it was had.

    Args:
        data: prompts and answers
        output: directory for verdicts.jsonl (every verdict, to audit) and the labelled data (preferences.jsonl,
            labels.jsonl, scores.jsonl or rankings.jsonl, to train on)
        judge: the judge
        panel: further judges, a list like judge, who vote with it
        how: compare pairs in both orders, score each answer from 1 to 10, or order all answers of a prompt at once
        write: preferences (for dpo, reward and sft), binary labels (for kto), scores, or rankings (for reward)
        constitution: a YAML file of principles to judge by, or package:file
        principles: ask by each principle, whose weights then vote, or by one drawn for each prompt
        template: a file of your own with the judge's prompt, in place of that in jaxalign/assets/judge
        think: ask for reasons before the verdict
        both_orders: share of the items that are shown in both orders, the others in one; only those can be audited for
            position bias
        decide: which of two answers is better by verdicts (a tie where the two orders contradict each other), or by the
            mean of the probabilities in both orders, which cancels a constant position bias: for judges that give
            probabilities, weak ones above all
        threshold: score from which an answer is labelled good (how=pointwise, write=binary)
        save_every: items between two writes; what was not yet written is judged again after a kill (not of an endpoint,
            whose answers are kept one by one)
        seed: of the places, orders and principles that are drawn
    """

    data: JudgeDataSection
    output: str
    judge: JudgeSection = dataclasses.field(default_factory=JudgeSection)
    panel: list[JudgeSection] = dataclasses.field(default_factory=list)
    how: Literal["pairwise", "pointwise", "ranking"] = "pairwise"
    write: Literal["preference", "binary", "score", "ranking"] = "preference"
    constitution: str | None = None
    principles: Literal["each", "sampled"] = "each"
    template: str | None = None
    think: bool = False
    both_orders: float = 1.0
    decide: Literal["verdicts", "probabilities"] = "verdicts"
    threshold: float = 5.5
    save_every: int = 16
    seed: int = 0


def run(config: Config) -> None:
    """The whole job. What can be wrong is found before anything is written."""
    panel = [config.judge, *config.panel]
    check(config, panel)
    output = Path(config.output).expanduser()
    check_writable(output)
    console = Console(highlight=False, soft_wrap=True)
    template = config.template or TEMPLATES[config.how]
    question = Question(
        how=config.how,
        template=template,
        principles=() if config.constitution is None else load_constitution(config.constitution),
        each=config.principles == "each",
        think=config.think,
        both_orders=config.both_orders,
        seed=config.seed,
    )
    files = {"template": template} | ({} if config.constitution is None else {"constitution": config.constitution})
    settings = {**runs.settings(config), "asked": fingerprint(files)}
    check_resumable(output, settings)
    journal = Journal(output / VERDICTS)
    pairs = config.how == "pairwise" and config.write in ("preference", "binary")
    read = read_items(config.data, config.how, config.seed, pairs=pairs)
    renew(journal, read.items)
    console.print(f"{config.data.path}: {read.report}", markup=False)
    if read.alike:
        console.print(f"{read.alike} items left out, whose answers are the same")
    cache = str(output / CACHE)
    raters = [open_rater(judge, cache=cache, template=config.data.template, console=console) for judge in panel]
    runs.write_settings(output, settings)
    try:
        for rater in raters:
            ask_all(rater, read.items, question, journal, config.save_every, console)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{len(journal.lines)} verdicts are kept, and the same command goes on") from None
    write(config, output, read.items, raters, question, journal, console)


def check(config: Config, panel: Sequence[JudgeSection]) -> None:
    """Raise for settings that make no sense, before anything is read."""
    check_panel(panel, config.how)
    ranges = {"both_orders": (0, 1), "save_every": (1, math.inf), "data.limit": (1, math.inf), "threshold": (1, 10)}
    check_ranges(config, ranges)
    scored = all(judge.reward is not None or judge.score_function is not None for judge in panel)
    if config.write == "score" and config.how != "pointwise" and not scored:
        raise UserError("write=score needs scores: ask with how=pointwise.")
    if config.write == "ranking" and config.how == "pairwise" and not scored:
        raise UserError("write=ranking needs all answers of a prompt at once: ask with how=ranking or how=pointwise.")
    if config.decide == "probabilities":
        for judge in panel:
            if judge.ties:
                raise UserError("judge.ties gives verdicts without a probability of either side: leave it out, or "
                                "decide=verdicts.")  # fmt: skip
            asked = judge.model is not None or (judge.endpoint is not None and judge.endpoint.top_logprobs > 0)
            if config.how != "pairwise" or not (asked or judge.reward is not None):
                raise UserError(
                    f"decide=probabilities is for pairs and judges that give probabilities, and {name_of(judge)} gives "
                    "none: take a model, a reward model or an endpoint with top_logprobs, or decide=verdicts."
                )
    if config.write == "binary" and config.how == "ranking":
        raise UserError("write=binary needs a winner or scores: ask with how=pairwise or how=pointwise.")


def fingerprint(files: Mapping[str, str]) -> dict[str, str]:
    """Hashes of the files that say what is asked: verdicts on other words must not be mixed with these."""
    found = {}
    for what, path in files.items():
        try:
            found[what] = hashlib.sha256(resolve_path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from None
    return found


def check_resumable(output: Path, wanted: dict[str, Any]) -> None:
    """Raise if ``output`` holds verdicts that were had in another way.

    Raises:
        UserError: naming the settings that differ.
    """
    if not (output / VERDICTS).exists():
        return
    was, now = (runs.flat(_told(tree)) for tree in (runs.read_settings(output), wanted))
    changed = [key for key in sorted(was | now) if was.get(key) != now.get(key) and not _is_free(key)]
    if changed:
        what = ", ".join(f"{key} (was {was.get(key)}, now {now.get(key)})" for key in changed)
        raise UserError(
            f"{output} holds verdicts of other settings: {what}; give another output, or these settings again."
        )


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """The panel by number, so that settings can be compared one by one."""
    return {**settings, "panel": {str(i): judge for i, judge in enumerate(settings.get("panel") or [])}}


def _is_free(key: str) -> bool:
    return key in FREE or (".endpoint." in key and key.rpartition(".")[2] in ENDPOINT_FREE)


def renew(journal: Journal, items: Sequence[Item]) -> None:
    """What the data say of items now (human labels, who wrote what), in the verdicts that are kept."""
    known = {item.key: {"human": item.human, "by": list(item.by)} for item in items}
    old = [line for line in journal.lines.values() if line["key"] in known]
    new = [line | known[line["key"]] for line in old]
    journal.add(line for line, was in zip(new, old, strict=True) if line != was)


def ask_all(
    rater: Rater, items: Sequence[Item], question: Question, journal: Journal, every: int, console: Console
) -> None:
    """Put everything to a judge that it has not judged, and keep each verdict."""

    def names(item: Item) -> list[str | None]:
        if rater.score is not None:
            return [None]
        return [None if principle is None else principle.id for principle in question.principles_for(item)]

    distinct = {item.key: item for item in items}
    todo = [item for key, item in distinct.items() if not all(journal.is_done(key, rater.name, n) for n in names(item))]
    console.print(f"{rater.name}: {len(distinct) - len(todo)} of {len(distinct)} items judged before", markup=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(rater.name, total=len(todo))
        for start in range(0, len(todo), every):
            chunk = todo[start : start + every]
            journal.add(judge_items(rater, chunk, question, functools.partial(is_done, journal, rater.name)))
            progress.advance(task, len(chunk))


def is_done(journal: Journal, judge: str, key: str, principle: str | None) -> bool:
    """Whether a judge has judged an item by a principle."""
    return journal.is_done(key, judge, principle)


def write(
    config: Config,
    output: Path,
    items: Sequence[Item],
    raters: Sequence[Rater],
    question: Question,
    journal: Journal,
    console: Console,
) -> None:
    """The labelled data, and a few lines about them."""
    wanted = {item.key for item in items}
    by_item: dict[str, list[dict[str, Any]]] = {key: [] for key in wanted}
    for line in journal.lines.values():
        if line["key"] in wanted:
            by_item[line["key"]].append(line)
    lines = [by_item[item.key] for item in items]
    margin = max(rater.margin for rater in raters)
    threshold = config.threshold if question.how == "pointwise" else None
    rows, counts = label_rows(items, lines, config.write, margin=margin, threshold=threshold, by=config.decide)
    unheard = Counter(line["error"] for mine in by_item.values() for line in mine if line["error"] is not None)
    told = f"{counts['labelled']} of {len(items)} items labelled, {counts['tied']} tied, {counts['failed']} failed"
    console.print(told)
    if unheard:
        (why, _), *_ = unheard.most_common(1)
        told_why = f"{unheard.total()} questions had no answer (most often: {why}); the same command asks them again"
        console.print(told_why, markup=False)
    kept = [line for mine in by_item.values() for line in mine]
    tokens = {name: sum(line[name] for line in kept) for name in ("prompt_tokens", "completion_tokens")}
    if any(tokens.values()):
        console.print(f"{tokens['prompt_tokens']} prompt and {tokens['completion_tokens']} completion tokens in all")
    if not rows:
        raise UserError(
            f"{output / VERDICTS}: the judge left nothing to train on ({told}): see what it says with "
            f"jaxalign judge audit {output}"
        )
    file = output / f"{FILES[config.write]}.jsonl"
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    told = f"The labelled data are in {file}; whether to believe them: jaxalign judge audit {output}"
    console.print(told, markup=False)
