"""``jaxalign eval tax``: what aligning a model gained, what it cost, and whether either is more than chance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxalign import evals
from jaxalign.checkpoint import check_writable
from jaxalign.cli import eval as single
from jaxalign.cli.judge_audit import check_matplotlib
from jaxalign.errors import UserError
from jaxalign.evals import suite as tasks
from jaxalign.evals import suite_check
from jaxalign.evals.config import SuiteSection
from jaxalign.models.open import open_mesh
from jaxalign.paths import write_whole
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.stats import Bootstrap, Interval

REPORT, PICTURE, ANSWERS = "tax.json", "tax.png", "answers.jsonl"


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure what aligning a model changed: jaxalign eval tax --before A --after B --suite SUITE.

    Args:
        before: the model that was aligned (a path, as for model.path)
        after: the model that came of it
        suite: what to measure
        output: directory for tax.json, tax.png and answers.jsonl
        confidence: of the intervals
        resamples: of the bootstrap
        seed: of sampled answers and of the bootstrap
        picture: draw the differences (needs jaxalign[plots])
        dtype: what matrix products compute in
        mesh: devices
    """

    before: str
    after: str
    suite: SuiteSection
    output: str = "runs/tax"
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    picture: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)


def run(config: Config) -> None:
    """The report, in every form."""
    check_ranges(config, single.RANGES)
    suite_check.check_suite(config.suite)
    if config.picture:
        check_matplotlib()
    output = Path(config.output).expanduser()
    check_writable(output)
    console = Console(highlight=False, soft_wrap=True)
    report_line = lambda line: console.print(line, markup=False)  # noqa: E731
    mesh = open_mesh(config.mesh)
    before, after = (
        single.open_subject(ModelSection(path, dtype=config.dtype), mesh, console)
        for path in (config.before, config.after)
    )
    if before.tokenizer.get_vocab() != after.tokenizer.get_vocab():
        raise UserError(f"{config.before} and {config.after} have different tokenizers; compare models that share one.")
    if before.tokenizer.chat_template != after.tokenizer.chat_template:
        raise UserError(
            f"{config.before} and {config.after} have different chat templates, so they would be measured on different "
            "texts; give both directories the same one (chat_template.jinja)."
        )
    for each in (before, after):
        suite_check.check_lengths(config.suite, each)
    scorers = tasks.open_scorers(config.suite, before, mesh, report_line)
    options: Any = {"seed": config.seed, "report": report_line, "scorers": scorers}
    console.print("before:", style="bold")
    old, old_answers = tasks.measure(config.suite, before, **options)
    console.print("after:", style="bold")
    new, new_answers = tasks.measure(config.suite, after, **options)
    ours, theirs = tasks.compare_answers(config.suite, before, old_answers, new_answers)
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    controlled = tasks.equal_length(old_answers, new_answers, bootstrap)
    report = evals.tax(
        [*old, *ours],
        [*new, *theirs],
        capabilities=config.suite.capabilities,
        gains=config.suite.gains,
        bootstrap=bootstrap,
    )
    single.write_answers(output / ANSWERS, {"before": old_answers, "after": new_answers}, before)
    plain = report.plain() | {"length_controlled_win_rate": {name: each.plain() for name, each in controlled.items()}}
    write_whole(output / REPORT, json.dumps(plain, indent=2, allow_nan=False) + "\n")
    tell(report, config.confidence, console)
    for name, found in controlled.items():
        shown = f"{single.number(found.value)} {single.interval(found.ci)}"
        console.print(f"{name}/win_rate if both answered at the same length: {shown}", markup=False)
    console.print(f"The report is in {output / REPORT}", end="" if config.picture else ".\n")
    if config.picture:
        from jaxalign.evals.picture import draw

        draw(report, output / PICTURE, confidence=config.confidence)
        console.print(f", its picture in {output / PICTURE}.")


def tell(report: evals.Tax, confidence: float, console: Console) -> None:
    """The tables: what changed, and what was exchanged for what."""
    words = {True: "better", False: "worse", None: ""}
    table = Table(title=f"after minus before, paired, {100 * confidence:g}% intervals")
    table.add_column("figure", min_width=max(map(len, report.differences)))
    table.add_column("items")
    for column in ("before", "after", "change", "interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for name, found in report.differences.items():
        good = report.outcomes[name].good
        verdict = words[report.better(name)] if good != "neither" else "changed" if found.significant else words[None]
        numbers = map(single.number, (found.before, found.after, found.change))
        table.add_row(escape(name), str(found.items), *numbers, single.interval(found.ci), verdict)
    console.print(table)
    for each in report.exchange:
        console.print(_sentence(each, report.outcomes[each.paid]), markup=False)


def _sentence(each: evals.Exchange, paid: evals.Outcome) -> str:
    if each.rate != each.rate:
        return f"{each.paid} for {each.gained}: no rate, for {each.gained} did not grow beyond chance"
    ci: Interval = each.ci
    unit = " (nats a token)" if paid.link is np.exp else ""  # an exponential's change is that of its logarithm
    return f"{each.paid} lost{unit} for a unit of {each.gained}: {single.number(each.rate)} {single.interval(ci)}"
