"""Items to judge: rows of many shapes, read as a prompt and its answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

from jaxalign.data.files import Problem, Row, read_rows
from jaxalign.data.formats import ASSISTANT, missing, prompt_only
from jaxalign.data.kinds import PAIR, Ranking
from jaxalign.data.messages import shown
from jaxalign.data.records import BadRow, ReadReport
from jaxalign.errors import UserError
from jaxalign.judges.hashing import text_hash, uniform_hash
from jaxalign.judges.pairwise import OPPOSITE, VERDICTS_BY_NAME, Verdict

How: TypeAlias = Literal["pairwise", "pointwise", "ranking"]
SIDES = ("answer_a", "answer_b")
FIELDS = {"prompt", "instruction", "input", "completions", "answer", "completion", "human", "by", *SIDES, *PAIR}
FIELDS |= {f"{side}_by" for side in SIDES}


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt and the answers to compare.

    Attributes:
        prompt: The prompt as a judge reads it.
        answers: The answers as a judge reads them.
        record: The same as a record of the data layer, with its answers in the same order.
        human: Which of two answers people prefer, if known.
        by: The model that wrote each answer, if known.
    """

    prompt: str
    answers: tuple[str, ...]
    record: Ranking
    human: Verdict | None = None
    by: tuple[str, ...] = ()

    @classmethod
    def of(cls, prompt: str, *answers: str, human: Verdict | None = None, by: tuple[str, ...] = ()) -> Self:
        """Returns the item of a plain prompt and its answers.

        >>> Item.of("Why?", "So.", "No.", human="first").answers
        ('So.', 'No.')
        """
        return cls(prompt, answers, Ranking(prompt, answers, "text"), human, by)

    @property
    def key(self) -> str:
        """SHA-256 of the prompt and the answers in this order."""
        return text_hash(self.prompt, *self.answers)


@dataclasses.dataclass(frozen=True)
class JudgeDataSection:
    """Which answers. A row may have one of four shapes.

    1. prompt, answer_a and answer_b, and maybe human: a, b or tie.
    2. chosen and rejected. They are the human label, which the judge does not see.
    3. prompt and completions, a list.
    4. prompt and answer, as `jaxalign generate` writes them. Consecutive rows with the same prompt belong together.

    Args:
        path: a .jsonl, .json, .csv (or .gz of them) or .parquet file, a folder, a hub id, or package:file
        name: configuration of a hub data set
        data_dir: folder within a hub data set
        split: split of a folder or a hub data set
        columns: what fields are called in this file, as {prompt: question, answer_a: model_1}
        on_error: stop at the first bad row, or skip bad rows and report them
        limit: maximum number of prompts, from the first on
        template: for a reward model, whether its chat template is for chats and transcripts (auto), plain prompts too
            (always), never
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    on_error: Literal["stop", "skip"] = "stop"
    limit: int | None = None
    template: Literal["auto", "always", "never"] = "auto"


@dataclasses.dataclass(frozen=True)
class ItemsRead:
    """Items and an account of the rows they come from.

    Attributes:
        items: What to judge.
        report: Rows used and rows skipped.
        equal: Items omitted because their answers are the same text.
    """

    items: list[Item]
    report: ReadReport
    equal: int


def read_items(data: JudgeDataSection, how: How, seed: int, *, pairs: bool = True) -> ItemsRead:
    """Reads items from a file, with the answers of each in an order drawn from their content and ``seed``.

    A judge's first and second place then say nothing about what is known of a pair: which answer was chosen, or which
    model comes first.

    Args:
        data: Where the rows are and how to read them.
        how: How the items will be judged. Pairwise and ranking need two answers, pointwise one.
        seed: Another seed gives another order of the answers.
        pairs: Whether pairwise judging splits more than two answers into all their pairs.

    Returns:
        The items, in the order of the file.

    Raises:
        UserError: If the file is missing or broken, at the first bad row (``stop``), or if no item remains.
    """
    check_fields("columns", data.columns, FIELDS)
    rows = read_rows(data.path, split=data.split, name=data.name, data_dir=data.data_dir, streaming=True)
    items: list[Item] = []
    skipped: list[BadRow] = []
    used = count = equal = 0
    for row, value, size in itertools.islice(_group_rows(rows, data.columns), data.limit):
        count += size
        try:
            item = _parse_item(row._replace(value=value), 1 if how == "pointwise" else 2)
        except Problem as problem:
            skipped.append(BadRow.of(problem, row.file, row.number, data.on_error))
            continue
        used += size
        parts = [item]
        if pairs and how == "pairwise":
            parts = [select_answers(item, pair) for pair in itertools.combinations(range(len(item.answers)), 2)]
        for part in parts:
            if how != "pointwise" and len({text.strip() for text in part.answers}) < len(part.answers):
                equal += 1
            else:
                items.append(_shuffle(part, seed))
    if skipped and not used:
        first = skipped[0]
        raise UserError(f"{data.path}: none of {count} rows can be used. {first.file}, row {first.row}: {first.text}.")
    if not items:
        why = f"the answers of all {equal} items are the same" if equal else "the file has no rows"
        raise UserError(f"{data.path}: {why}. Give a file with at least one item to judge.")
    return ItemsRead(items, ReadReport(count, used, tuple(skipped), len(items)), equal)


def check_fields(argument: str, columns: Mapping[str, str], fields: set[str]) -> None:
    """Raises UserError if ``columns`` renames a field that does not exist."""
    if unknown := sorted(set(columns) - fields):
        raise UserError(f"{argument} has the unknown field {unknown[0]!r}. Use {', '.join(sorted(fields))}.")


def _group_rows(rows: Iterator[Row], columns: Mapping[str, str]) -> Iterator[tuple[Row, dict[str, Any] | Problem, int]]:
    """Yields rows under our field names; consecutive rows of one answer to the same prompt become one."""
    renamed = ((row, _rename(row.value, columns)) for row in rows)
    parsed = ((row, value, _single_answer(value)) for row, value in renamed)
    # A row of another kind is a group of its own: no object equals a new one.
    for _, group in itertools.groupby(parsed, lambda part: object() if part[2] is None else part[2]["prompt"]):
        members = list(group)
        row, value, single = members[0]
        if single is not None:
            answers = [other for _, _, other in members if other is not None]
            value = single | {field: [part[field][0] for part in answers] for field in ("completions", "by")}
        yield row, value, len(members)


def _rename(value: dict[str, Any] | Problem, columns: Mapping[str, str]) -> dict[str, Any] | Problem:
    if isinstance(value, Problem):
        return value
    for field, column in columns.items():
        if value.get(column) is None and field != "human":
            return missing(column, value, f"columns say that it contains the {field}")
    return {**value, **{field: value.get(column) for field, column in columns.items()}}


def _single_answer(value: Mapping[str, Any] | Problem) -> dict[str, Any] | None:
    """Returns a row of one answer as a row of completions; None for every other row."""
    if (
        isinstance(value, Problem)
        or value.get("prompt") is None
        or any(value.get(field) is not None for field in (*PAIR, *SIDES, "completions"))
    ):
        return None
    answer = value.get("answer") if value.get("answer") is not None else value.get("completion")
    return None if answer is None else {"prompt": value["prompt"], "completions": [answer], "by": [value.get("by")]}


def _answers(value: Mapping[str, Any]) -> tuple[list[Any], list[Any], Verdict | None]:
    """Returns a row's answers, who wrote them, and the human label."""
    by = value["by"] if isinstance(value.get("by"), list) else []
    if all(value.get(field) is not None for field in PAIR):
        return [value[field] for field in PAIR], by, "first"
    if any(value.get(field) is not None for field in SIDES):
        for field in SIDES:
            if value.get(field) is None:
                raise missing(field, value, "these rows need answer_a and answer_b")
        human = None if value.get("human") is None else VERDICTS_BY_NAME.get(str(value["human"]).strip().lower())
        if human is None and value.get("human") is not None:
            raise Problem("not a label", f"field 'human' is {shown(value['human'])} where a, b or tie is needed")
        return [value[field] for field in SIDES], [value.get(f"{field}_by") or field for field in SIDES], human
    if isinstance(value.get("completions"), list):
        return value["completions"], by, None
    raise missing("answer", value, "rows need answer_a and answer_b, chosen and rejected, completions, or answer")


def _parse_item(row: Row, minimum: int) -> Item:
    value = row.checked
    answers, by, human = _answers(value)
    if len(answers) < minimum:
        text = f"this prompt has one answer where {minimum} are needed: sample more, or ask with how=pointwise"
        raise Problem("too few answers", text)
    prompt: Any = value.get("prompt")
    is_transcript = isinstance(prompt, str) and prompt_only({"prompt": prompt}, None)[1] == "transcript"
    if is_transcript and all(isinstance(answer, str) for answer in answers):
        value = {k: v for k, v in value.items() if k != "prompt"}
        answers = [f"{prompt.rstrip()} {answer.strip()}" for answer in answers]
    fields = {key: part for key, part in value.items() if key in ("prompt", "instruction", "input")}
    doubled = answers * (2 if len(answers) == 1 else 1)  # a ranking has two answers or more
    try:
        (ranking,) = Ranking.parse({**fields, "completions": doubled}, None, row.file, row.number)
    except Problem as problem:
        # Rankings speak of completions; these rows may have called them something else.
        text = problem.text.replace("field 'completions[0]'", "the first answer")
        raise Problem(problem.kind, text.replace("field 'completions[1]'", "the second answer")) from None
    ranking = dataclasses.replace(ranking, ranked=ranking.ranked[: len(answers)])
    texts = tuple(text.strip() for text in ranking.ranked)
    known = tuple(str(name) for name in by) if len(by) == len(texts) and all(name is not None for name in by) else ()
    return Item(_prompt_text(ranking), texts, ranking, human, known)


def _prompt_text(record: Ranking) -> str:
    if isinstance(record.prompt, str):
        return record.prompt.removesuffix(ASSISTANT).strip() if record.format == "transcript" else record.prompt
    if len(record.prompt) == 1:
        return record.prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in record.prompt)


def _shuffle(item: Item, seed: int) -> Item:
    texts = item.answers
    order = sorted(range(len(texts)), key=lambda k: uniform_hash(seed, "place", item.prompt, texts[k]))
    shuffled = select_answers(item, order)
    return dataclasses.replace(shuffled, human=OPPOSITE[item.human] if order == [1, 0] else item.human)


def select_answers(item: Item, which: Sequence[int]) -> Item:
    """Returns the item with some of its answers, in this order."""
    ranked = tuple(item.record.ranked[k] for k in which)
    return dataclasses.replace(
        item,
        answers=tuple(item.answers[k] for k in which),
        record=dataclasses.replace(item.record, ranked=ranked),
        by=tuple(item.by[k] for k in which) if item.by else (),
    )
