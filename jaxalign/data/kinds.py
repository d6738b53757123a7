"""Kinds of records that alignment methods learn from, and how rows become records.

====================  =====================================================  ========================================
kind                  rows                                                   formats
====================  =====================================================  ========================================
Demonstration         ``messages``; ``prompt``, ``completion``; ``text``;    :mod:`jaxalign.data.formats` lists the
                      ``instruction``, ``input``, ``output``; ``chosen``     formats: strings, transcripts,
Preference            ``chosen``, ``rejected``, maybe ``prompt``, ``margin`` chats, instructions
Ranking               ``completions`` (best first), maybe ``prompt``
UnpairedPreference    ``completion`` (or ``messages``), ``label``, maybe
                      ``prompt``; or a pair, which makes two
Prompt                ``prompt``, or any row above
====================  =====================================================  ========================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from jaxalign.data.files import Problem
from jaxalign.data.formats import (
    CONVERSATIONS,
    Format,
    PromptText,
    first_field,
    label,
    missing,
    number,
    parse_demonstration,
    parse_replies,
    prompt_only,
)
from jaxalign.data.messages import Message

PAIR = ("chosen", "rejected")


class Record:
    """Base of all kinds of records.

    Completions are the text that follows the prompt; for ``chat`` the assistant's message.
    """

    prompt: PromptText
    format: Format
    file: str
    row: int

    @property
    def place(self) -> str:
        """File and row, for error messages."""
        return f"{self.file}, row {self.row}"

    @property
    def completions(self) -> tuple[str, ...]:
        """Texts that answer the prompt, in the order of a tree's branches."""
        raise NotImplementedError

    @property
    def extras(self) -> dict[str, Any]:
        """Per-completion inputs of a tree. All records of a data set have the same names."""
        return {}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self]:
        """Returns the records of one row.

        Raises:
            Problem: If the row cannot be used.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Demonstration(Record):
    """A text to imitate.

    The completion of a ``chat`` is all messages from the first one to learn. Every turn of the assistant among them
    counts. A text to learn as a whole has the prompt ``""``.
    """

    prompt: PromptText
    completion: str | tuple[Message, ...]
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        """The text to imitate; of a chat, its last answer."""
        return (self.completion if isinstance(self.completion, str) else self.completion[-1].content,)

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self]:
        """Returns the demonstration of one row."""
        return [cls(*parse_demonstration(value, expected), file, row)]


@dataclasses.dataclass(frozen=True)
class Preference(Record):
    """Two answers to one prompt, of which ``chosen`` is the better one.

    ``margin`` is how much better it is. ``label_smoothing`` is the probability that the label is wrong (0 to ½).
    """

    prompt: PromptText
    chosen: str
    rejected: str
    format: Format
    file: str = "data"
    row: int = 0
    margin: float | None = None
    label_smoothing: float | None = None

    @property
    def completions(self) -> tuple[str, ...]:
        """The chosen and the rejected answer."""
        return self.chosen, self.rejected

    @property
    def extras(self) -> dict[str, Any]:
        """``margin`` and ``label_smoothing``, as far as the row has them."""
        extras = {"margin": self.margin, "label_smoothing": self.label_smoothing}
        return {name: value for name, value in extras.items() if value is not None}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self]:
        """Returns the preference of one row."""
        fields = {field: value.get(field) for field in PAIR}
        needs = "preference rows need chosen and rejected"
        prompt, (chosen, rejected), format = parse_replies(value, fields, expected, needs)
        names = [name for name in ("margin", "label_smoothing") if value.get(name) is not None]
        extras = {name: number(name, value[name]) for name in names}
        if not 0 <= extras.get("label_smoothing", 0) <= 0.5:
            text = f"field 'label_smoothing' is {extras['label_smoothing']:g}. Give a probability from 0 to 0.5"
            raise Problem("not a probability", text)
        return [cls(prompt, chosen, rejected, format, file, row, **extras)]


@dataclasses.dataclass(frozen=True)
class Ranking(Record):
    """Two or more answers to one prompt, the best one first."""

    prompt: PromptText
    ranked: tuple[str, ...]
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        """The answers, the best one first."""
        return self.ranked

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self]:
        """Returns the ranking of one row."""
        needs, ranked = "ranking rows need completions, the best first", value.get("completions")
        if ranked is None:
            raise missing("completions", value, needs)
        if not isinstance(ranked, list) or len(ranked) < 2:
            raise Problem(
                "no ranking", "field 'completions' is not a list of two answers or more. Give one, the best first"
            )
        fields = {f"completions[{i}]": answer for i, answer in enumerate(ranked)}
        return [cls(*parse_replies(value, fields, expected, needs), file, row)]


@dataclasses.dataclass(frozen=True)
class UnpairedPreference(Record):
    """One answer that was liked (``label`` True) or not."""

    prompt: PromptText
    completion: str
    label: bool
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        """The answer."""
        return (self.completion,)

    @property
    def extras(self) -> dict[str, Any]:
        """The label."""
        return {"label": self.label}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self]:
        """Returns the answer of one row, or both answers of a pair."""
        needs = "unpaired rows need completion and label, or chosen and rejected"
        field = first_field(value, ("completion", *CONVERSATIONS))
        if field is None and all(value.get(side) is not None for side in PAIR):
            fields, labels = {side: value[side] for side in PAIR}, [True, False]
        elif field is None:
            raise missing("completion", value, needs)
        elif value.get("label") is None:
            raise missing("label", value, needs)
        else:
            fields, labels = {field: value[field]}, [label("label", value["label"])]
            value = {key: part for key, part in value.items() if key != "prompt" or field == "completion"}
        prompt, replies, format = parse_replies(value, fields, expected, needs)
        return [cls(prompt, reply, liked, format, file, row) for reply, liked in zip(replies, labels, strict=True)]


@dataclasses.dataclass(frozen=True)
class Prompt(Record):
    """A prompt to answer, with its whole row (``fields``), which rewards may need."""

    prompt: PromptText
    format: Format
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        """An empty tuple: a prompt has no answers."""
        return ()

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self]:
        """Returns the prompt of one row."""
        return [cls(*prompt_only(value, expected), dict(value), file, row)]
