"""``jaxalign eval``: what a model can do and how it behaves, with intervals; ``eval tax`` puts two side by side."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxalign import evals
from jaxalign.checkpoint import check_writable
from jaxalign.evals import suite as tasks
from jaxalign.evals import suite_check
from jaxalign.evals.config import SuiteSection
from jaxalign.evals.outcome import Outcome
from jaxalign.models.open import check_language_model, open_mesh, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.paths import write_whole
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.stats import Bootstrap

TASKS = {"tax": "jaxalign.cli.eval_tax", "wins": "jaxalign.cli.eval_wins"}
RANGES = {"confidence": (0.5, 0.999), "resamples": (100, 10**6), "seed": (0, 2**31 - 1)}

REQUIRED = ("model.path",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure a model on a suite of tasks. (eval tax measures two, and what changed; eval wins counts verdicts.)

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
    """Every figure, as a table and, where asked, as files."""
    check_ranges(config, RANGES)
    suite_check.check_suite(config.suite)
    output = None if config.output is None else Path(config.output).expanduser()
    if output is not None:
        check_writable(output)
    console = Console(highlight=False, soft_wrap=True)
    report_line = lambda line: console.print(line, markup=False)  # noqa: E731
    mesh = open_mesh(config.mesh)
    subject = open_subject(config.model, mesh, console)
    suite_check.check_lengths(config.suite, subject)
    scorers = tasks.open_scorers(config.suite, subject, mesh, report_line)
    outcomes, answered = tasks.measure(config.suite, subject, seed=config.seed, scorers=scorers, report=report_line)
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    figures = {each.name: evals.figure(each, bootstrap=bootstrap) for each in outcomes}
    if output is not None:
        plain = {name: each.plain() for name, each in figures.items()}
        write_whole(output / "eval.json", json.dumps(plain, indent=2, allow_nan=False) + "\n")
        write_answers(output / "answers.jsonl", {"answer": answered}, subject)
    tell(outcomes, figures, config.confidence, console)
    if output is not None:
        console.print(f"The figures are in {output / 'eval.json'}.")


def open_subject(section: ModelSection, mesh: Any, console: Console) -> tasks.Subject:
    """The model of a section with its tokenizer."""
    tokenizer = load_tokenizer(section.path)
    model, params = open_model(section, mesh, lambda line: console.print(line, markup=False))
    check_language_model(model, section.path)
    return tasks.Subject(model, params, tokenizer)


def tell(
    outcomes: Sequence[Outcome], figures: Mapping[str, evals.Estimate], confidence: float, console: Console
) -> None:
    """The table of one model."""
    table = Table(title=f"figures with {100 * confidence:g}% intervals")
    table.add_column("figure", min_width=max(len(each.name) for each in outcomes))
    for column in ("better is", "items"):
        table.add_column(column)
    for column in ("value", "interval"):
        table.add_column(column, justify="right")
    for each in outcomes:
        found = figures[each.name]
        table.add_row(escape(each.name), each.good, str(found.items), number(found.value), interval(found.ci))
    console.print(table)


def number(value: float) -> str:
    """Three digits behind the point, or four figures of larger ones.

    >>> number(0.12345), number(1234.5), number(float("nan"))
    ('0.123', '1234', '–')
    """
    return "–" if math.isnan(value) else f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def interval(ci: tuple[float, float]) -> str:
    """An interval as people read it."""
    return "–" if math.isnan(ci[0]) else f"[{number(ci[0])}, {number(ci[1])}]"


def write_answers(path: Path, answered: Mapping[str, Mapping[str, tasks.Answered]], subject: tasks.Subject) -> None:
    """A line for each prompt with every model's answer; nothing where no task samples any."""
    first = next(iter(answered.values()))
    lines = []
    for task, found in first.items():
        for i, tree in enumerate(found.trees):
            row: dict[str, Any] = {"task": task, "prompt": subject.tokenizer.decode(tree.prompt)}
            for label, of in answered.items():
                row[label] = of[task].texts[i]
                if of[task].rewards is not None:
                    row[f"{label}_reward"] = float(of[task].rewards[i])  # type: ignore[index]
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    if lines:
        write_whole(path, "".join(lines))
