"""A labelling run: a panel of judges turns answers into preferences, binary labels, scores or rankings."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from jaxalign.errors import UserError
from jaxalign.judges.aggregate import label_rows
from jaxalign.judges.items import Item, JudgeDataSection, read_items
from jaxalign.judges.journal import CACHE, Journal, RunResult, open_journal
from jaxalign.judges.open import JudgeSection, check_judges, name_of, open_rater
from jaxalign.judges.panel import TEMPLATES, JudgingTask, Rater, judge_items
from jaxalign.judges.prompts import load_constitution
from jaxalign.reporting import Report, silent
from jaxalign.settings import check_ranges

FILES = {"preference": "preferences", "binary": "labels", "score": "scores", "ranking": "rankings"}


@dataclasses.dataclass(frozen=True)
class LabellingConfig:
    """Label answers with AI judges.

    Then `jaxalign judge audit RUN` measures the judges. `jaxalign judge revise` has a judge rewrite answers by
    principles. Rerun the same command to resume: every verdict is stored as soon as it is known.

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
        template: a file with your own prompt, in place of the one in jaxalign/assets/judge
        think: ask for reasons before the verdict
        both_orders: share of the items that are shown in both orders, the others in one; only those in both orders can
            be audited for position bias
        decide_by: verdicts (two orders that contradict each other are a tie), or the mean of the probabilities in both
            orders, which cancels a constant position bias: for judges that give probabilities, above all weak ones
        threshold: score from which an answer is labelled good (how=pointwise, write=binary)
        save_every: items between two writes; after a kill, items since the last write are judged again (except by an
            endpoint, whose replies are cached one by one)
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
    decide_by: Literal["verdicts", "probabilities"] = "verdicts"
    threshold: float = 5.5
    save_every: int = 16
    seed: int = 0


def label_answers(config: LabellingConfig, report: Report = silent) -> RunResult:
    """Labels answers with a panel of judges. Nothing is written before the settings and the data are checked.

    Args:
        config: What to judge, by whom, and how.
        report: Receives a line about each step.

    Returns:
        The labelled rows, which are also in the output directory, and counts of labelled, tied and failed items.

    Raises:
        UserError: If a setting, a row or a judge is unusable, the directory contains other verdicts, or no item got a
            label.
    """
    panel = [config.judge, *config.panel]
    validate_config(config, panel)
    task = JudgingTask(
        how=config.how,
        template=config.template,
        principles=() if config.constitution is None else load_constitution(config.constitution),
        all_principles=config.principles == "each",
        think=config.think,
        both_orders=config.both_orders,
        seed=config.seed,
    )
    files = {"template": config.template or TEMPLATES[config.how], "constitution": config.constitution}
    journal = open_journal(config, {name: path for name, path in files.items() if path is not None})
    pairs = config.how == "pairwise" and config.write in ("preference", "binary")
    read = read_items(config.data, config.how, config.seed, pairs=pairs)
    update_facts(journal, read.items)
    report(f"{config.data.path}: {read.report}")
    if read.equal:
        report(f"{read.equal} items omitted, because their answers are the same")
    cache = str(journal.output / CACHE)
    raters = [open_rater(judge, cache=cache, template=config.data.template, report=report) for judge in panel]
    journal.write_settings()
    for rater in raters:
        collect_verdicts(rater, read.items, task, journal, config.save_every, report)
    rows, counts = combine_journal(config, read.items, journal, max(rater.margin for rater in raters), report)
    return RunResult(rows, counts, journal.write_rows(f"{FILES[config.write]}.jsonl", rows))


def validate_config(config: LabellingConfig, panel: Sequence[JudgeSection]) -> None:
    """Raises UserError for settings that contradict each other, before anything is read."""
    check_judges(panel, config.how)
    ranges = {"both_orders": (0, 1), "save_every": (1, math.inf), "data.limit": (1, math.inf), "threshold": (1, 10)}
    check_ranges(config, ranges)
    scored = all(judge.reward is not None or judge.score_function is not None for judge in panel)
    if config.write == "score" and config.how != "pointwise" and not scored:
        raise UserError("write=score needs scores. Ask with how=pointwise.")
    if config.write == "ranking" and config.how == "pairwise" and not scored:
        raise UserError("write=ranking needs all answers of a prompt at once. Ask with how=ranking or how=pointwise.")
    if config.write == "binary" and config.how == "ranking":
        raise UserError("write=binary needs a winner or scores. Ask with how=pairwise or how=pointwise.")
    for judge in panel if config.decide_by == "probabilities" else ():
        if judge.ties:
            raise UserError("judge.ties gives verdicts without a probability of either side. Set decide_by=verdicts.")
        asked = judge.model is not None or (judge.endpoint is not None and judge.endpoint.top_logprobs > 0)
        if config.how != "pairwise" or not (asked or judge.reward is not None):
            raise UserError(
                f"decide_by=probabilities needs pairs and judges that give probabilities, and {name_of(judge)} gives "
                "none. Use a model, a reward model or an endpoint with top_logprobs, or decide_by=verdicts."
            )


def update_facts(journal: Journal, items: Sequence[Item]) -> None:
    """Updates what stored verdicts say about their items: the human label, and who wrote the answers."""
    known = {item.key: {"human": item.human, "by": list(item.by)} for item in items}
    old = [line for line in journal.lines.values() if line["key"] in known]
    new = [line | known[line["key"]] for line in old]
    journal.add(line for line, was in zip(new, old, strict=True) if line != was)


def collect_verdicts(
    rater: Rater, items: Sequence[Item], task: JudgingTask, journal: Journal, every: int, report: Report
) -> None:
    """Asks a judge about everything that it has not judged, and stores each verdict."""
    is_done = functools.partial(journal.is_done, rater.name)

    def is_complete(item: Item) -> bool:
        principles = [None] if rater.score is not None else task.principles_for(item)
        return all(is_done(item.key, None if principle is None else principle.id) for principle in principles)

    distinct = {item.key: item for item in items}
    todo = [item for item in distinct.values() if not is_complete(item)]
    report(f"{rater.name}: {len(distinct) - len(todo)} of {len(distinct)} items judged before")
    journal.extend(todo, lambda chunk: judge_items(rater, chunk, task, is_done), every, report)


def combine_journal(
    config: LabellingConfig, items: Sequence[Item], journal: Journal, margin: float, report: Report
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Returns the labelled rows that the stored verdicts give, with the counts of items.

    Raises:
        UserError: If no item got a label.
    """
    by_item: dict[str, list[dict[str, Any]]] = {item.key: [] for item in items}
    for line in journal.lines.values():
        if line["key"] in by_item:
            by_item[line["key"]].append(line)
    threshold = config.threshold if config.how == "pointwise" else None
    lines = [by_item[item.key] for item in items]
    rows, counts = label_rows(items, lines, config.write, margin=margin, threshold=threshold, by=config.decide_by)
    outcome = f"{counts['labelled']} of {len(items)} items labelled, {counts['tied']} tied, {counts['failed']} failed"
    report(outcome)
    used = [line for part in by_item.values() for line in part]
    errors = Counter(line["error"] for line in used if line["error"] is not None)
    if errors:
        reason = errors.most_common(1)[0][0]
        report(f"{errors.total()} questions had no answer (most often: {reason}). Rerun to ask them again.")
    tokens = [sum(line[name] for line in used) for name in ("prompt_tokens", "completion_tokens")]
    if any(tokens):
        report(f"{tokens[0]} prompt and {tokens[1]} completion tokens in all")
    if not rows:
        raise UserError(f"{journal.path}: the judge left nothing to train on ({outcome}). Audit the verdicts.")
    return rows, counts
