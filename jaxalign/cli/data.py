"""The command ``jaxalign data inspect FILE``: prints what is in a data set and what training would make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxalign.data.feedback import Signals
from jaxalign.data.inspect import KindOption, inspect_data
from jaxalign.data.records import OnError
from jaxalign.data.tokenize import LossOn
from jaxalign.errors import UserError
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.settings import SourceSection, check_ranges

REQUIRED = ("data.path",)
STYLES = {"prompt": "dim", "number": "bold", "context": "yellow", "target": "bold green"}


@dataclasses.dataclass(frozen=True)
class InspectSection(SourceSection):
    """Which rows.

    Args:
        eval_path: also look for prompts that this file shares with the other
        eval_split: also look for prompts that this split shares with the other
        kind: what rows are read as; auto looks at the fields of the first one
        signals: fields of a product's log that say whether an answer was liked
        loss_on: the tokens of an sft row that count
        on_error: stop at the first bad row, or skip bad rows and report them
        max_length: longest example in tokens, to see what training would cut
        max_completion_length: longest answer in tokens
    """

    eval_path: str | None = None
    eval_split: str | None = None
    kind: KindOption = "auto"
    signals: Signals = dataclasses.field(default_factory=Signals)
    loss_on: LossOn = "assistant"
    on_error: OnError = "skip"
    max_length: int | None = None
    max_completion_length: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """See what is in a data set: jaxalign data inspect FILE.

    Args:
        data: which rows
        tokenizer: a model directory, .gguf file, hub id or package:file, to count tokens and show what counts
        examples: how many examples to show
    """

    data: InspectSection
    tokenizer: str | None = None
    examples: int = 3


def flags(arguments: Sequence[str]) -> list[str]:
    """Returns ``inspect FILE`` as flags.

    >>> flags(["inspect", "a.jsonl", "--examples", "1"])
    ['--data.path', 'a.jsonl', '--examples', '1']

    Raises:
        UserError: For any other word that is not a flag.
    """
    words = list(arguments)
    if words[:1] == ["inspect"]:
        words = words[1:]
        return ["--data.path", *words] if words and not words[0].startswith("-") else words
    if words and words[0].startswith("-"):
        return words
    raise UserError("The command data has one task, to inspect. Run: jaxalign data inspect FILE.")


def run(config: Config) -> None:
    """Prints the report."""
    check_ranges(config, {"examples": (0, 10**6)})
    console = Console(highlight=False, soft_wrap=True)
    data = config.data
    if data.path is None:
        raise UserError("data.path must be set. Run: jaxalign data inspect FILE.")
    tokenizer = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    options: Any = {"kind": data.kind, "signals": data.signals, "limit": data.limit, **data.reading}
    options |= {"eval_source": data.eval_path, "eval_split": data.eval_split, "num_examples": config.examples}
    names = ("loss_on", "template", "max_length", "max_completion_length")
    tokenizing = {name: getattr(data, name) for name in names}
    report = inspect_data(data.path, tokenizer=tokenizer, tokenizing=tokenizing, **options)
    for name, read in report.reports.items():
        console.print(f"{name}: {read}", markup=False)
    console.print(f"read as {report.kind} rows of format {report.records[0].format}")
    console.print(f"{len(report.records)} records of {report.findings.prompts} different prompts")
    for words, count in report.problems.items():
        console.print(f"{count} {words}", style="bold red" if count else None)
    for name, share in report.shares.items():
        console.print(f"{name}: {100 * share:.1f} %")
    if report.tokenized is not None:
        console.print(str(report.tokenized), markup=False)
        for bad in report.tokenized.skipped[:5]:
            console.print(f"{bad.file}, row {bad.row}: {bad.text}", markup=False)
    title = f"length in {'characters' if tokenizer is None else 'tokens'}"
    table = Table("", "minimum", "median", "95 %", "maximum", title=title, title_justify="left")
    for name, lengths in report.lengths.items():
        table.add_row(name, *map(str, lengths))
    console.print(table)
    if report.examples:
        meanings = {"prompt": "prompt", "context between answers": "context", "counts": "target"}
        console.print(Text(" · ").join(Text(words, STYLES[role]) for words, role in meanings.items()))
    for spans in report.examples:
        console.rule(style=STYLES["prompt"])
        console.print(Text.assemble(*((text, STYLES[role]) for text, role in spans)))
