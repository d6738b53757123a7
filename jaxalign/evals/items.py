"""The items of a suite's tasks, read from files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.encode import Encoder
from jaxalign.data.files import Row, located, read_rows
from jaxalign.data.formats import prompt_only
from jaxalign.data.kinds import Demonstration
from jaxalign.data.records import read_records
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.evals.choices import Choice, parse_choice
from jaxalign.evals.config import ChoiceTask, TextTask
from jaxalign.models.model import Model
from jaxalign.models.open import check_tokens, check_trees
from jaxalign.rewards import Reward, compute_rewards
from jaxalign.rollout.text import encode_prompt


class Subject(NamedTuple):
    """A model that is measured."""

    model: Model
    params: Any
    tokenizer: Any


def read_items(path: str, limit: int | None) -> list[Row]:
    """Returns the rows of a file.

    Raises:
        UserError: if the file has no rows, or one that cannot be read.
    """
    rows: list[Row] = []
    for row in read_rows(path):
        if len(rows) == limit:
            break
        with located(row.place):
            rows.append(row._replace(value=row.checked))
    if not rows:
        raise UserError(f"{path} has no rows. Give a file with at least one.")
    return rows


def read_prompt(row: Row) -> str:
    """Returns a row's field ``prompt`` or ``question``, or the part of a transcript before its last answer."""
    value: dict[str, Any] = row.value  # type: ignore[assignment]
    prompt = value.get("prompt", value.get("question"))
    if prompt is None and isinstance(value.get("chosen"), str):
        with located(row.place):
            prompt, _ = prompt_only(value, None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise _error(row, "field 'prompt' must be a string that is not empty")
    return prompt


def read_safety(row: Row, field: str) -> bool:
    """Returns whether a row's prompt should be answered."""
    value = row.value.get(field)  # type: ignore[union-attr]
    known = {"safe": True, "unsafe": False, True: True, False: False, "true": True, "false": False}
    if not isinstance(value, str | bool) or value not in known:
        raise _error(row, f"field {field!r} is {value!r}. It must be safe or unsafe")
    return known[value]


def score_answers(name: str, score: Reward, rows: Sequence[Row], answers: Sequence[str]) -> np.ndarray:
    """Returns the scores of answers to the rows' prompts, ``[N]``."""
    values: list[dict[str, Any]] = [row.value for row in rows]  # type: ignore[misc]  # read_items refuses others
    return compute_rewards(score, [read_prompt(row) for row in rows], answers, values, name=name)


def prompt_ids(rows: Sequence[Row], subject: Subject) -> list[list[int]]:
    """Returns the token ids of the rows' prompts, in the chat template if the tokenizer has one."""
    encoder, chat = Encoder(subject.tokenizer), bool(subject.tokenizer.chat_template)
    prompts = [list(encode_prompt(encoder, read_prompt(row), chat, row.number)) for row in rows]
    check_tokens(subject.model, prompts)
    return prompts


def text_trees(name: str, task: TextTask, subject: Subject) -> list[Tree]:
    """Returns the texts of a task as prompt trees in which all tokens, or the assistant's, count."""
    records, _ = read_records(Demonstration, task.path)
    if not records[: task.limit]:
        raise UserError(f"{name}: {task.path} has no texts. Give a file with at least one.")
    trees, _ = tokenize_completions(records[: task.limit], subject.tokenizer, max_length=task.max_length)
    check_trees(subject.model, trees, task.max_length, f"suite.perplexity.{name}.max_length")
    return trees


def read_choices(task: ChoiceTask) -> list[Choice]:
    """Returns the items of a multiple-choice task."""
    rows = read_items(task.path, task.limit)
    labels = [None] * len(rows) if task.labels is None else _read_labels(task.labels)
    if len(labels) < len(rows) or (task.limit is None and len(labels) > len(rows)):
        raise UserError(f"{task.labels} has {len(labels)} labels for {len(rows)} rows. Give one for each row.")
    items = []
    for row, label in zip(rows, labels, strict=False):
        with located(row.place):
            items.append(parse_choice(row.checked, label))
    return items


def _read_labels(path: str) -> list[int]:
    try:
        with open(path, encoding="utf-8") as file:
            return [int(line) for line in file.read().split()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as labels ({error}). Give a whole number on each line.") from None


def _error(row: Row, problem: str) -> UserError:
    return UserError(f"{row.place}: {problem.removesuffix('.')}.")
