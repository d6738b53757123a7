"""``jaxalign data inspect FILE``: what is in a data set, and what training would make of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxalign.data.feedback import Signals, read_feedback
from jaxalign.data.files import read_rows
from jaxalign.data.inspect import Lengths, balance, find, kind_of
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, Record, UnpairedPreference
from jaxalign.data.records import ReadReport, read_records
from jaxalign.data.tokenize import tokenize_completions, tokenize_prompts, tokenize_sft
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.paths import resolve_path
from jaxalign.settings import check_ranges

KINDS: dict[str, type[Record]] = {
    "sft": Demonstration,
    "preference": Preference,
    "ranking": Ranking,
    "unpaired": UnpairedPreference,
    "prompt": Prompt,
}
COUNTS, CONTEXT, QUIET = "bold green", "yellow", "dim"  # what a token is to the loss: a target, context, the prompt


@dataclasses.dataclass(frozen=True)
class InspectSection:
    """Which rows.

    Args:
        path: a .jsonl, .json, .csv (or .gz of them) or .parquet file, a folder, a hub id, or package:file
        name: configuration of a hub data set
        data_dir: folder within a hub data set
        split: split of a folder or a hub data set
        eval_path: also look for prompts that this file shares with the other
        eval_split: also look for prompts that this split shares with the other
        kind: what rows are read as; auto looks at the fields of the first one
        columns: what fields are called in this file, as {prompt: question}
        signals: fields of a product's log that say whether an answer was liked
        format: format of the rows; auto takes that of the first one
        template: the tokenizer's chat template is for chats and transcripts (auto), plain prompts too (always), never
        loss_on: the tokens of an sft row that count
        on_error: stop at the first bad row, or skip bad rows and report them
        max_length: longest example in tokens, to see what training would cut
        max_completion_length: longest answer in tokens
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    eval_path: str | None = None
    eval_split: str | None = None
    kind: Literal["auto", "sft", "preference", "ranking", "unpaired", "prompt"] = "auto"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    signals: Signals = dataclasses.field(default_factory=Signals)
    format: Literal["auto", "text", "transcript", "chat", "instruction"] = "auto"
    template: Literal["auto", "always", "never"] = "auto"
    loss_on: Literal["assistant", "all"] = "assistant"
    on_error: Literal["stop", "skip"] = "skip"
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
    """``inspect FILE`` as flags.

    >>> flags(["inspect", "a.jsonl", "--examples", "1"])
    ['--data.path', 'a.jsonl', '--examples', '1']

    Raises:
        UserError: for anything else that is no flag.
    """
    words = list(arguments)
    if words[:1] == ["inspect"]:
        words = words[1:]
        return ["--data.path", *words] if words and not words[0].startswith("-") else words
    if words and words[0].startswith("-"):
        return words
    raise UserError("data has one task, to inspect; run: jaxalign data inspect FILE.")


def run(config: Config) -> None:
    """Print the report."""
    check_ranges(config, {"examples": (0, 10**6)})
    console = Console(highlight=False, soft_wrap=True)
    data = config.data
    kind = kind_of_rows(data)
    records, report = read(kind, data, data.path, data.split)
    console.print(f"{data.path}: {report}", markup=False)
    named = next(name for name, known in KINDS.items() if known is kind)
    console.print(f"read as {named} rows of format {records[0].format}")
    other: list[Any] = []
    if data.eval_path is not None or data.eval_split is not None:
        place, split = data.eval_path or data.path, data.eval_split or data.split
        if data.eval_split is not None and resolve_path(place).is_file():
            raise UserError(f"data.eval_split={split}: {place} is one file and has no splits; give data.eval_path")
        # Whatever rows the other split has: what must not leak are its prompts (or texts that have none).
        other, report = read(Prompt if records[0].prompt else kind, data, place, split)
        console.print(f"{place}{f' ({data.eval_split})' if data.eval_split else ''}: {report}", markup=False)
    findings = find(records, other)
    console.print(f"{len(records)} records of {findings.prompts} different prompts")
    told = {
        "repeated": "records repeat an earlier one",
        "contradicted": "records are contradicted by another one",
        "undecided": "records have two answers that are the same",
        "leaked": "records have a prompt that is also in the other split",
    }
    for field, words in told.items():
        if field != "leaked" or other:
            count = getattr(findings, field)
            console.print(f"{count} {words}", style="bold red" if count else None)
    for name, share in balance(records).items():
        console.print(f"{name}: {100 * share:.1f} %")
    if config.tokenizer is None:
        console.print(_table("characters", *_characters(records)))
        examples = [_plain(record) for record in records[: config.examples]]
    else:
        examples = _tokens(config, kind, records, console)
    if examples:
        meanings = [("prompt", QUIET), ("context between answers", CONTEXT), ("counts", COUNTS)]
        console.print(Text(" · ").join(Text(*meaning) for meaning in meanings))
    for text in examples:
        console.rule(style=QUIET)
        console.print(text)


def kind_of_rows(data: InspectSection) -> type[Record]:
    """What rows are read as: as told, or as the first one looks."""
    if data.kind != "auto":
        return KINDS[data.kind]
    if data.signals.fields:
        return UnpairedPreference
    rows = read_rows(data.path, split=data.split, name=data.name, data_dir=data.data_dir, streaming=True)
    first = next((row.value for row in rows if isinstance(row.value, dict)), {})
    return kind_of({**first, **{field: first.get(theirs) for field, theirs in data.columns.items()}})


def read(kind: type[Record], data: InspectSection, path: str, split: str) -> tuple[list[Any], ReadReport]:
    """The records of a file, and what was left out."""
    options: Any = {"columns": data.columns, "format": data.format, "on_error": data.on_error, "split": split}
    options |= {"name": data.name, "data_dir": data.data_dir}
    if data.signals.fields and kind is UnpairedPreference:
        return read_feedback(path, data.signals, **options)
    return read_records(kind, path, **options)


def _table(unit: str, prompts: Sequence[int], completions: Sequence[int]) -> Table:
    table = Table("", "least", "median", "95 %", "greatest", title=f"length in {unit}", title_justify="left")
    for name, sizes in (("prompt", prompts), ("completion", completions)):
        if sizes:
            table.add_row(name, *map(str, Lengths.of(sizes)))
    return table


def _characters(records: Sequence[Record]) -> tuple[list[int], list[int]]:
    prompts = [p if isinstance(p, str) else "".join(m.content for m in p) for p in (r.prompt for r in records)]
    return list(map(len, prompts)), [len(text) for record in records for text in record.completions]


def _plain(record: Record) -> Text:
    """A record as it was read, without a tokenizer."""
    prompt = record.prompt
    text = Text(prompt if isinstance(prompt, str) else "".join(f"{m.role}: {m.content}\n" for m in prompt), QUIET)
    for number, completion in enumerate(record.completions):
        label = f" {record.label}" if isinstance(record, UnpairedPreference) else ""
        text.append(f"\n[{number + 1}{label}] ", "bold").append(completion, COUNTS)
    return text


def _tokens(config: Config, kind: type[Record], records: Sequence[Any], console: Console) -> list[Text]:
    """Prints what tokenising made and cut; returns the examples with what counts in colour."""
    data = config.data
    tokenizer = load_tokenizer(str(config.tokenizer))
    options: Any = {"template": data.template, "on_error": data.on_error, "max_length": data.max_length}
    if kind is Prompt:
        prompts, report = tokenize_prompts(records, tokenizer, **options)
        console.print(str(report), markup=False)
        console.print(_table("tokens", [len(ids) for ids, _ in prompts], []))
        return [Text(tokenizer.decode(ids), QUIET) for ids, _ in prompts[: config.examples]]
    options["max_completion_length"] = data.max_completion_length
    if kind is Demonstration:
        trees, report = tokenize_sft(records, tokenizer, loss_on=data.loss_on, **options)
    else:
        trees, report = tokenize_completions(records, tokenizer, **options)
    console.print(str(report), markup=False)
    for bad in report.skipped[:5]:
        console.print(f"{bad.file}, row {bad.row}: {bad.text}", markup=False)
    sizes = [len(tree.prompt) for tree in trees], [len(c) for tree in trees for c in tree.completions]
    console.print(_table("tokens", *sizes))
    return [render(tree, tokenizer) for tree in trees[: config.examples]]


def render(tree: Tree, tokenizer: Any) -> Text:
    """A tree's text, coloured by what each token is to the loss.

    Args:
        tree: of any kind.
        tokenizer: that it was made with.
    """
    text = Text(tokenizer.decode(tree.prompt), QUIET)
    for number, (ids, mask) in enumerate(zip(tree.completions, tree.masks, strict=True), start=1):
        if len(tree.completions) > 1 or "label" in tree.extras:
            label = f" {tree.extras['label'][number - 1]}" if "label" in tree.extras else ""
            text.append(f"\n[{number}{label}] ", "bold")
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or mask[end] != mask[start]:
                text.append(tokenizer.decode(ids[start:end]), COUNTS if mask[start] else CONTEXT)
                start = end
    return text
