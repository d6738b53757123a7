"""Inspects a data set before training: repetitions, contradictions, leaks, balance, lengths and examples."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxalign.data.feedback import Signals
from jaxalign.data.files import Source, read_rows, source_name
from jaxalign.data.formats import CONVERSATIONS, PromptText
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, Record, UnpairedPreference
from jaxalign.data.load import read_source
from jaxalign.data.records import OnError, ReadReport
from jaxalign.data.tokenize import TokenizeReport, tokenize_completions, tokenize_prompts
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.paths import resolve_path

KindOption: TypeAlias = Literal["auto", "sft", "preference", "ranking", "unpaired", "prompt"]
KINDS: dict[str, type[Record]] = {
    "sft": Demonstration,
    "preference": Preference,
    "ranking": Ranking,
    "unpaired": UnpairedPreference,
    "prompt": Prompt,
}
# Fields that reveal the kind of a row. The first field that a row has decides.
_KIND_FIELDS: tuple[tuple[str, type[Record]], ...] = (
    ("completions", Ranking),
    ("rejected", Preference),
    ("label", UnpairedPreference),
    *((field, Demonstration) for field in ("completion", *CONVERSATIONS, "text", "output", "chosen")),
)


class Lengths(NamedTuple):
    """Quantiles of lengths: the minimum, the median, the 95 % quantile and the maximum."""

    minimum: int
    median: int
    p95: int
    maximum: int

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Lengths:
        """Computes the quantiles of one size or more.

        >>> Lengths.of([3, 1, 2])
        Lengths(minimum=1, median=2, p95=3, maximum=3)
        """
        return cls(*(int(np.quantile(sizes, q, method="higher")) for q in (0, 0.5, 0.95, 1)))


class Findings(NamedTuple):
    """Counts of records. All but the first should be 0.

    Attributes:
        prompts: Different prompts, or different texts where records have no prompt.
        repeated: Records that repeat an earlier one.
        contradicted: Records that another record contradicts.
        undecided: Preferences or rankings with two equal answers.
        leaked: Records whose prompt is also in the other split.
    """

    prompts: int
    repeated: int
    contradicted: int
    undecided: int
    leaked: int


class Span(NamedTuple):
    """Part of an example's text, and its role in the loss: only a ``target`` counts."""

    text: str
    role: Literal["prompt", "number", "context", "target"]


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Report on a data set.

    Attributes:
        kind: What rows were read as, a key of ``KINDS``.
        records: The records.
        reports: What was read and skipped, by source.
        findings: Counts of suspicious records.
        shares: See :func:`measure_balance`.
        tokenized: What tokenising made and cut; None without a tokenizer.
        lengths: Lengths of ``prompt`` and ``completion``, in tokens, or in characters without a tokenizer.
        examples: The first examples as spans.
    """

    kind: str
    records: Sequence[Record]
    reports: Mapping[str, ReadReport]
    findings: Findings
    shares: Mapping[str, float]
    tokenized: TokenizeReport | None
    lengths: Mapping[str, Lengths]
    examples: Sequence[Sequence[Span]]

    @property
    def problems(self) -> dict[str, int]:
        """Counts of suspicious records by description. Leaks are included if another split was compared."""
        problems = {
            "records repeat an earlier one": self.findings.repeated,
            "records are contradicted by another one": self.findings.contradicted,
            "records have two answers that are the same": self.findings.undecided,
        }
        if len(self.reports) > 1:
            problems["records have a prompt that is also in the other split"] = self.findings.leaked
        return problems


def inspect_data(
    source: Source,
    *,
    kind: KindOption = "auto",
    eval_source: Source | None = None,
    eval_split: str | None = None,
    tokenizer: Any = None,
    num_examples: int = 0,
    limit: int | None = None,
    on_error: OnError = "skip",
    tokenizing: Mapping[str, Any] | None = None,
    **reading: Any,
) -> Inspection:
    """Reads a data set and reports what training would make of it.

    Args:
        source: A path, or rows in memory.
        kind: What to read rows as; ``auto`` chooses by the fields of the first row.
        eval_source: Another source, whose prompts should not occur in the first.
        eval_split: Another split, likewise.
        tokenizer: A ``transformers`` tokenizer, to count tokens and to show which tokens count.
        num_examples: Number of examples to return.
        limit: Maximum number of records.
        on_error: ``stop`` at the first bad row, or ``skip`` bad rows and report them.
        tokenizing: Options of :func:`jaxalign.data.tokenize.tokenize_completions`.
        reading: Options of :func:`jaxalign.data.load.read_source`, such as ``columns``, ``signals`` and ``split``.

    Returns:
        The report.

    Raises:
        UserError: If the source cannot be read, or no row can be used.

    >>> report = inspect_data([{"prompt": "Why?", "completion": "Air."}] * 2)
    >>> report.kind, report.findings.repeated, report.lengths["prompt"].maximum
    ('sft', 1, 4)
    """
    record_kind = _first_kind(source, reading) if kind == "auto" else KINDS[kind]
    reading["on_error"] = on_error
    records, read = _read(record_kind, source, **reading)
    reports = {source_name(source): read}
    other: Sequence[Record] = ()
    if eval_source is not None or eval_split is not None:
        compared = source if eval_source is None else eval_source
        label = source_name(compared, "eval_rows")
        if eval_split is not None and isinstance(compared, str | Path) and resolve_path(compared).is_file():
            raise UserError(f"{label} is one file and has no splits. Name another file to compare.")
        reading["split"] = eval_split or reading.get("split", "train")
        # The other rows may be of any kind: what must not leak are their prompts (or texts without prompts).
        other, read = _read(Prompt if records[0].prompt else record_kind, compared, **reading)
        reports[f"{label} ({eval_split})" if eval_split else label] = read
    records = records[:limit]
    tokenized = None
    if tokenizer is None:
        prompts: Sequence[Any] = [_prompt_text(record.prompt) for record in records]
        answers: Sequence[Any] = [text for record in records for text in record.completions]
        examples = [_record_spans(record) for record in records[:num_examples]]
    else:
        options = {**(tokenizing or {}), "on_error": on_error}
        prompts, answers, examples, tokenized = _tokenize(records, tokenizer, num_examples, options)
    lengths = {"prompt": prompts, "completion": answers}
    return Inspection(
        kind=next(name for name, known in KINDS.items() if known is record_kind),
        records=records,
        reports=reports,
        findings=count_findings(records, other),
        shares=measure_balance(records),
        tokenized=tokenized,
        lengths={name: Lengths.of([len(text) for text in texts]) for name, texts in lengths.items() if texts},
        examples=examples,
    )


def kind_of(value: Mapping[str, Any]) -> type[Record]:
    """Returns the kind of record that a row was most likely written for.

    >>> kind_of({"prompt": "Why?", "completion": "Air.", "label": True}).__name__
    'UnpairedPreference'
    """
    if isinstance(value.get("prompt"), Mapping):
        return Preference  # a conversation tree of OpenAssistant
    return next((kind for field, kind in _KIND_FIELDS if value.get(field) is not None), Prompt)


def _read(
    kind: type[Record], source: Source, signals: Signals | None = None, **options: Any
) -> tuple[Sequence[Record], ReadReport]:
    return read_source(kind, source, signals=signals if kind is UnpairedPreference else None, **options)


def _first_kind(source: Source, reading: Mapping[str, Any]) -> type[Record]:
    signals, columns = reading.get("signals"), reading.get("columns")
    if signals is not None and signals.fields:
        return UnpairedPreference
    part = {name: reading[name] for name in ("split", "name", "data_dir") if name in reading}
    rows = read_rows(source, streaming=True, **part)
    first = next((row.value for row in rows if isinstance(row.value, dict)), {})
    return kind_of({**first, **{field: first.get(column) for field, column in (columns or {}).items()}})


def count_findings(records: Sequence[Record], other: Sequence[Record] = ()) -> Findings:
    """Counts suspicious records.

    Case and white space of prompts are ignored, so that a copy with another line end is recognised.

    Args:
        records: Records of one kind.
        other: Records of another split, which should share no prompt with them.

    Returns:
        The counts.

    >>> pair = Preference("Why?", " Air.", " No.", "text")
    >>> count_findings([pair, pair, Preference("why? ", " No.", " Air.", "text")], [Prompt("Why?", "text")])
    Findings(prompts=1, repeated=1, contradicted=3, undecided=0, leaked=3)
    """
    prompts = [_normalise(record.prompt or record.completions) for record in records]
    labels = [record.extras.get("label") for record in records]
    claims = list(zip(prompts, (record.completions for record in records), labels, strict=True))
    counts = Counter(claims)
    contradicted = sum(
        any((prompt, *opposite) in counts for opposite in _opposites(answers, label))
        for prompt, answers, label in claims
    )
    elsewhere = {_normalise(record.prompt or record.completions) for record in other}
    return Findings(
        prompts=len(set(prompts)),
        repeated=len(claims) - len(counts),
        contradicted=contradicted,
        undecided=sum(len(set(record.completions)) < len(record.completions) for record in records),
        leaked=sum(prompt in elsewhere for prompt in prompts),
    )


def measure_balance(records: Sequence[Record]) -> dict[str, float]:
    """Computes shares that bias training: of liked answers, and of pairs whose better answer is the longer one.

    >>> measure_balance([UnpairedPreference("Why?", "Air.", liked, "text") for liked in (True, False, True, True)])
    {'liked': 0.75}
    >>> pair = Preference("Why?", "Because of the air.", "No.", "text")
    >>> measure_balance([pair, dataclasses.replace(pair, chosen="So")])
    {'the chosen answer is longer': 0.5}
    """
    shares: dict[str, list[bool]] = {}
    for record in records:
        if isinstance(record, UnpairedPreference):
            shares.setdefault("liked", []).append(record.label)
        elif len(record.completions) > 1:
            first, *others = map(len, record.completions)
            name = "the chosen answer is longer" if isinstance(record, Preference) else "the best answer is the longest"
            shares.setdefault(name, []).append(first > max(others))
    return {name: sum(values) / len(values) for name, values in shares.items()}


def _normalise(prompt: PromptText | tuple[str, ...]) -> str:
    """Returns a key that is equal for prompts that differ in case and white space only."""
    if not isinstance(prompt, str):
        prompt = "\0".join(part if isinstance(part, str) else "\0".join(part) for part in prompt)
    return " ".join(prompt.casefold().split())


def _opposites(answers: tuple[str, ...], label: bool | None) -> list[tuple[tuple[str, ...], bool | None]]:
    if label is not None:
        return [(answers, not label)]
    return [(answers[::-1], None)] if len(set(answers)) > 1 else []


def _tokenize(
    records: Sequence[Any], tokenizer: Any, num_examples: int, options: dict[str, Any]
) -> tuple[list[Any], list[Any], list[list[Span]], TokenizeReport]:
    """Returns prompts and completions as token ids, the first examples, and a report on what was cut."""
    if isinstance(records[0], Prompt):
        options = {name: value for name, value in options.items() if name in ("max_length", "template", "on_error")}
        prompts, report = tokenize_prompts(records, tokenizer, **options)
        ids = [prompt for prompt, _ in prompts]
        return ids, [], [[Span(tokenizer.decode(prompt), "prompt")] for prompt in ids[:num_examples]], report
    trees, report = tokenize_completions(records, tokenizer, **options)
    completions = [completion for tree in trees for completion in tree.completions]
    examples = [tree_spans(tree, tokenizer) for tree in trees[:num_examples]]
    return [tree.prompt for tree in trees], completions, examples, report


def tree_spans(tree: Tree, tokenizer: Any) -> list[Span]:
    """Returns a tree's text as spans by what each token means to the loss.

    Args:
        tree: A tree of any kind.
        tokenizer: The tokenizer that it was made with.
    """
    spans = [Span(tokenizer.decode(tree.prompt), "prompt")]
    for number, (ids, mask) in enumerate(zip(tree.completions, tree.masks, strict=True), start=1):
        if len(tree.completions) > 1 or "label" in tree.extras:
            label = f" {tree.extras['label'][number - 1]}" if "label" in tree.extras else ""
            spans.append(Span(f"\n[{number}{label}] ", "number"))
        # Token ids are decoded in runs: a character may consist of several tokens.
        starts = [0, *(np.flatnonzero(np.diff(mask)) + 1), len(ids)]
        for start, end in itertools.pairwise(starts):
            spans.append(Span(tokenizer.decode(ids[start:end]), "target" if mask[start] else "context"))
    return spans


def _record_spans(record: Record) -> list[Span]:
    prompt = record.prompt
    text = prompt if isinstance(prompt, str) else "".join(f"{m.role}: {m.content}\n" for m in prompt)
    spans = [Span(text, "prompt")]
    for number, completion in enumerate(record.completions, start=1):
        label = f" {record.label}" if isinstance(record, UnpairedPreference) else ""
        spans += [Span(f"\n[{number}{label}] ", "number"), Span(completion, "target")]
    return spans


def _prompt_text(prompt: PromptText) -> str:
    """Returns the text of a prompt: of a chat, the contents of all messages."""
    return prompt if isinstance(prompt, str) else "".join(message.content for message in prompt)
