"""What ``jaxalign judge`` compares: rows of many shapes as a prompt and its answers."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from jaxalign.data.files import Problem, Row, read_rows
from jaxalign.data.formats import ASSISTANT, missing, prompt_only
from jaxalign.data.kinds import PAIR, Ranking
from jaxalign.data.messages import shown
from jaxalign.data.records import BadRow, ReadReport
from jaxalign.errors import UserError
from jaxalign.judges.pairwise import Verdict
from jaxalign.judges.panel import OPPOSITE, How, Item, draw

HUMAN: dict[str, Verdict] = {"first": "first", "a": "first", "1": "first", "second": "second", "b": "second"}
HUMAN |= {"2": "second", "tie": "tie"}
SIDES = ("answer_a", "answer_b")
FIELDS = {"prompt", "instruction", "input", "completions", "answer", "completion", "human", "by", *SIDES, *PAIR}
FIELDS |= {f"{side}_by" for side in SIDES}


@dataclasses.dataclass(frozen=True)
class JudgeDataSection:
    """Which answers. A row holds prompt, answer_a and answer_b (and maybe human: a, b or tie); or chosen and rejected
    (the human label is then known, and not shown to the judge); or prompt and completions, a list; or prompt and
    answer, as `jaxalign generate` writes them: rows that follow each other with the same prompt belong together.

    Args:
        path: a .jsonl, .json, .csv (or .gz of them) or .parquet file, a folder, a hub id, or package:file
        name: configuration of a hub data set
        data_dir: folder within a hub data set
        split: split of a folder or a hub data set
        columns: what fields are called in this file, as {prompt: question, answer_a: model_1}
        on_error: stop at the first bad row, or skip bad rows and report them
        limit: use the first so many prompts only
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


@dataclasses.dataclass
class Read:
    """What was read.

    Attributes:
        items: to judge.
        report: rows kept and left out.
        alike: pairs left out because both answers are the same: there is nothing to judge.
    """

    items: list[Item]
    report: ReadReport
    alike: int


def read_items(data: JudgeDataSection, how: How, seed: int, *, pairs: bool = True) -> Read:
    """Items out of a file, the answers of each in an order drawn by their content and ``seed``.

    That order keeps what is known of a pair (which one was chosen, which model comes first) out of the places in which
    a judge sees the answers. With ``pairs``, of more than two answers every pair is an item where the judge compares
    pairs.

    Raises:
        UserError: if the file is missing or broken, at the first bad row (``stop``), or if nothing is left to judge.
    """
    if unknown := sorted(set(data.columns) - FIELDS):
        raise UserError(
            f"data.columns names {unknown[0]!r}, which is no field of ours: give {', '.join(sorted(FIELDS))}"
        )
    rows = read_rows(data.path, split=data.split, name=data.name, data_dir=data.data_dir, streaming=True)
    items: list[Item] = []
    skipped: list[BadRow] = []
    kept = count = alike = 0
    least = 1 if how == "pointwise" else 2
    for row, value, size in itertools.islice(_groups(rows, data.columns), data.limit):
        count += size
        found = value if isinstance(value, Problem) else _item(value, row, least)
        if isinstance(found, Problem):
            if data.on_error == "stop":
                raise UserError(f"{row.file}, row {row.number}: {found.text}, or set on_error='skip'.")
            skipped.append(BadRow(row.file, row.number, *found))
            continue
        kept += size
        for item in _pairs(found) if pairs and how == "pairwise" and len(found.answers) > 2 else [found]:
            if how != "pointwise" and len({text.strip() for text in item.answers}) < len(item.answers):
                alike += 1
            else:
                items.append(_shuffled(item, seed))
    if skipped and not kept:
        first = skipped[0]
        raise UserError(f"{data.path}: no row of {count} can be used: {first.file}, row {first.row}: {first.text}")
    if not items:
        why = f"the answers of all {alike} items are the same" if alike else "there are no rows"
        raise UserError(f"{data.path}: {why}: give a file with at least one item to judge")
    return Read(items, ReadReport(count, kept, tuple(skipped), len(items)), alike)


def _groups(rows: Iterator[Row], columns: Mapping[str, str]) -> Iterator[tuple[Row, dict[str, Any] | Problem, int]]:
    """Rows with our names for their fields; rows of one answer are gathered while their prompt stays the same."""
    pending: tuple[Row, dict[str, Any], int] | None = None
    for row in rows:
        value = _renamed(row.value, columns)
        if not isinstance(value, Problem) and _is_single(value):
            answer = value.get("answer") if value.get("answer") is not None else value.get("completion")
            if pending is not None and pending[1]["prompt"] == value["prompt"]:
                pending[1]["completions"].append(answer)
                pending[1]["by"].append(value.get("by"))
                pending = (pending[0], pending[1], pending[2] + 1)
                continue
            if pending is not None:
                yield pending
            pending = (row, {"prompt": value["prompt"], "completions": [answer], "by": [value.get("by")]}, 1)
            continue
        if pending is not None:
            yield pending
            pending = None
        yield row, value, 1
    if pending is not None:
        yield pending


def _renamed(value: dict[str, Any] | Problem, columns: Mapping[str, str]) -> dict[str, Any] | Problem:
    if isinstance(value, Problem):
        return value
    for field, theirs in columns.items():
        if value.get(theirs) is None and field != "human":
            return missing(theirs, value, f"the option columns names it as the {field}")
    return {**value, **{field: value.get(theirs) for field, theirs in columns.items()}}


def _is_single(value: Mapping[str, Any]) -> bool:
    if value.get("prompt") is None or any(value.get(field) is not None for field in (*PAIR, *SIDES, "completions")):
        return False
    return value.get("answer") is not None or value.get("completion") is not None


def _item(value: dict[str, Any], row: Row, least: int) -> Item | Problem:
    human: Verdict | None = None
    given = value.get("by")
    by: list[Any] = given if isinstance(given, list) else []
    if all(value.get(field) is not None for field in PAIR):
        answers, human = [value[field] for field in PAIR], "first"
    elif any(value.get(field) is not None for field in SIDES):
        for field in SIDES:
            if value.get(field) is None:
                return missing(field, value, "these rows need answer_a and answer_b")
        answers, by = [value[field] for field in SIDES], [value.get(f"{field}_by") or field for field in SIDES]
        if value.get("human") is not None:
            human = HUMAN.get(str(value["human"]).strip().lower())
            if human is None:
                text = f"field 'human' is {shown(value['human'])} where a, b or tie is needed"
                return Problem("not a label", text)
    elif isinstance(value.get("completions"), list):
        answers = value["completions"]
    else:
        return missing("answer", value, "rows need answer_a and answer_b, chosen and rejected, completions, or answer")
    if len(answers) < least:
        text = f"there is one answer to this prompt where {least} are needed: sample more, or ask with how=pointwise"
        return Problem("too few answers", text)
    prompt = value.get("prompt")
    if isinstance(prompt, str):
        opening = prompt_only({"prompt": prompt}, None)
        if isinstance(opening, Problem):
            return opening
        if opening[1] == "transcript" and all(isinstance(answer, str) for answer in answers):
            value = {k: v for k, v in value.items() if k != "prompt"}
            answers = [f"{prompt.rstrip()} {answer.strip()}" for answer in answers]
    fields = {key: part for key, part in value.items() if key in ("prompt", "instruction", "input")}
    doubled = answers * (2 if len(answers) == 1 else 1)  # a ranking has two or more
    record = Ranking.parse({**fields, "completions": doubled}, None, row.file, row.number)
    if isinstance(record, Problem):
        return Problem(record.kind, _plain(record.text))
    (ranking,) = record
    ranking = dataclasses.replace(ranking, ranked=ranking.ranked[: len(answers)])
    texts = tuple(text.strip() for text in ranking.ranked)
    known = tuple(str(name) for name in by) if len(by) == len(texts) and all(name is not None for name in by) else ()
    return Item(_shown_prompt(ranking), texts, ranking, human, known)


def _plain(text: str) -> str:
    """What the reader of rankings says, in the words of this command's fields."""
    return text.replace("field 'completions[0]'", "the first answer").replace(
        "field 'completions[1]'", "the second answer"
    )


def _shown_prompt(record: Ranking) -> str:
    if isinstance(record.prompt, str):
        return record.prompt.removesuffix(ASSISTANT).strip() if record.format == "transcript" else record.prompt
    if len(record.prompt) == 1:
        return record.prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in record.prompt)


def _pairs(item: Item) -> Iterator[Item]:
    for pair in itertools.combinations(range(len(item.answers)), 2):
        yield _chosen(item, pair)


def _shuffled(item: Item, seed: int) -> Item:
    texts = item.answers
    order = sorted(range(len(texts)), key=lambda k: draw(seed, "place", item.prompt, texts[k]))
    found = _chosen(item, order)
    return dataclasses.replace(found, human=OPPOSITE[item.human] if order == [1, 0] else item.human)


def _chosen(item: Item, which: Any) -> Item:
    """The item with some of its answers, in this order."""
    ranked = tuple(item.record.ranked[k] for k in which)
    return dataclasses.replace(
        item,
        answers=tuple(item.answers[k] for k in which),
        record=dataclasses.replace(item.record, ranked=ranked),
        by=tuple(item.by[k] for k in which) if item.by else (),
    )
