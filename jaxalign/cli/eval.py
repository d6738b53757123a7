"""``jaxalign eval``: measures a model on a suite of tasks. Its tasks ``tax`` and ``wins`` compare two models."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from jaxalign.checkpoint import check_writable
from jaxalign.cli.console import LiveReport
from jaxalign.evals.config import SuiteSection
from jaxalign.evals.items import Subject
from jaxalign.evals.suite import TaskAnswers, answer_rows, measure_suite, open_subject
from jaxalign.evals.suite_check import check_lengths, check_suite
from jaxalign.models.open import open_mesh
from jaxalign.paths import write_whole
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.stats import Bootstrap, Interval

TASKS = {"tax": "jaxalign.cli.eval_tax", "wins": "jaxalign.cli.eval_wins"}
RANGES = {"confidence": (0.5, 0.999), "resamples": (100, 10**6), "seed": (0, 2**31 - 1)}

REQUIRED = ("model.path",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure a model on a suite of tasks; eval tax measures two models and the change, eval wins counts verdicts.

    Args:
        model: which model
        suite: what to measure
        output: also write figures (eval.json) and answers (answers.jsonl) to this directory
        confidence: of the intervals
        resamples: of the bootstrap
        seed: of sampled answers and of the bootstrap
        mesh: devices
    """

    model: ModelSection
    suite: SuiteSection
    output: str | None = None
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)


def run(config: Config) -> None:
    """Prints every figure as a table, and writes files if ``output`` is given."""
    check_ranges(config, RANGES)
    check_suite(config.suite)
    output = None if config.output is None else Path(config.output).expanduser()
    if output is not None:
        check_writable(output)
    report = LiveReport()
    subject = open_subject(config.model, open_mesh(config.mesh), report)
    check_lengths(config.suite, subject)
    result = measure_suite(config.suite, subject, seed=config.seed, report=report)
    figures = result.figures(Bootstrap(config.confidence, config.resamples, config.seed))
    table = Table(title=f"figures with {100 * config.confidence:g}% intervals")
    table.add_column("figure", min_width=max(map(len, figures)))
    for column, justify in (("better is", "left"), ("items", "left"), ("value", "right"), ("interval", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for outcome in result.outcomes:
        value, ci, items = figures[outcome.name]
        table.add_row(escape(outcome.name), outcome.good, str(items), format_number(value), format_interval(ci))
    report.console.print(table)
    if output is not None:
        write_json(output / "eval.json", {name: estimate.plain() for name, estimate in figures.items()})
        write_answers(output / "answers.jsonl", {"answer": result.answers}, subject)
        report(f"The figures are in {output / 'eval.json'}.")


def format_number(value: float) -> str:
    """Formats a figure with three decimals, or four digits from 100 on.

    >>> format_number(0.12345), format_number(1234.5), format_number(float("nan"))
    ('0.123', '1234', '–')
    """
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def format_interval(ci: Interval) -> str:
    """Formats an interval as ``[low, high]``."""
    return "–" if math.isnan(ci[0]) else f"[{format_number(ci[0])}, {format_number(ci[1])}]"


def write_json(path: Path, value: Any) -> None:
    """Writes a report."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_answers(path: Path, answers: Mapping[str, Mapping[str, TaskAnswers]], subject: Subject) -> None:
    """Writes a line for each prompt with every model's answer; without answers, nothing."""
    rows = answer_rows(answers, subject.tokenizer)
    if rows:
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
