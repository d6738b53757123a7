"""The kinds of records that alignment learns from, and how each is made of a row.

====================  =====================================================  ========================================
kind                  rows                                                   what they may look like
====================  =====================================================  ========================================
Demonstration         ``messages``; ``prompt``, ``completion``; ``text``;    :mod:`jaxalign.data.formats` says which
                      ``instruction``, ``input``, ``output``; ``chosen``     formats there are: strings, transcripts,
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
    demonstration,
    label,
    missing,
    number,
    prompt_only,
    replies,
)
from jaxalign.data.messages import Message

PAIR = ("chosen", "rejected")


class Record:
    """What all kinds of records have in common. Completions are the text that follows the prompt; for ``chat`` the
    assistant's message."""

    prompt: PromptText
    format: Format
    file: str
    row: int

    @property
    def place(self) -> str:
        return f"{self.file}, row {self.row}"

    @property
    def completions(self) -> tuple[str, ...]:
        """The texts that answer the prompt, in the order of a tree's branches."""
        raise NotImplementedError

    @property
    def extras(self) -> dict[str, Any]:
        """What a tree of the record carries besides tokens: the same names for all records of a data set."""
        return {}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        """The records of one row."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Demonstration(Record):
    """What to imitate. A ``chat``'s completion is all messages from the first one to learn from on, and every
    assistant's turn among them counts; a text to model as a whole has the prompt ``""``."""

    prompt: PromptText
    completion: str | tuple[Message, ...]
    format: Format
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        return (self.completion if isinstance(self.completion, str) else self.completion[-1].content,)

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        parts = demonstration(value, expected)
        return parts if isinstance(parts, Problem) else [cls(*parts, file, row)]


@dataclasses.dataclass(frozen=True)
class Preference(Record):
    """Two answers to one prompt, and where they were read; ``margin`` says how much better the chosen one is, and
    ``label_smoothing`` how likely it is that it is not the better one (soft labels, from 0 to ½)."""

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
        return self.chosen, self.rejected

    @property
    def extras(self) -> dict[str, Any]:
        found = {"margin": self.margin, "label_smoothing": self.label_smoothing}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        fields = {field: value.get(field) for field in PAIR}
        found = replies(value, fields, expected, "preference rows need chosen and rejected")
        if isinstance(found, Problem):
            return found
        extras: list[float | None] = []
        for name in ("margin", "label_smoothing"):
            extra = None if value.get(name) is None else number(name, value[name])
            if isinstance(extra, Problem):
                return extra
            extras.append(extra)
        if extras[1] is not None and not 0 <= extras[1] <= 0.5:
            text = f"field 'label_smoothing' is {extras[1]:g} where a probability from 0 to 0.5 is needed"
            return Problem("no probability", text)
        chosen, rejected = found.replies
        return [cls(found.prompt, chosen, rejected, found.format, file, row, *extras)]


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
        return self.ranked

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        needs, ranked = "ranking rows need completions, the best first", value.get("completions")
        if ranked is None:
            return missing("completions", value, needs)
        if not isinstance(ranked, list) or len(ranked) < 2:
            return Problem("no ranking", "field 'completions' must be a list of two answers or more, the best first")
        fields = {f"completions[{i}]": answer for i, answer in enumerate(ranked)}
        found = replies(value, fields, expected, needs)
        return found if isinstance(found, Problem) else [cls(found.prompt, found.replies, found.format, file, row)]


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
        return (self.completion,)

    @property
    def extras(self) -> dict[str, Any]:
        return {"label": self.label}

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        needs = "these rows need completion and label, or chosen and rejected"
        chat = next((name for name in CONVERSATIONS if value.get(name) is not None), None)
        single = chat is not None or value.get("completion") is not None
        if not single and all(value.get(field) is not None for field in PAIR):
            fields, labels = {field: value[field] for field in PAIR}, [True, False]
        else:
            field = chat if chat is not None and value.get("completion") is None else "completion"
            if value.get(field) is not None and value.get("label") is None:
                return missing("label", value, needs)
            liked = label("label", value.get("label")) if value.get(field) is not None else False
            if isinstance(liked, Problem):
                return liked
            fields, labels = {field: value.get(field)}, [liked]
            value = {key: part for key, part in value.items() if key != "prompt" or field == "completion"}
        found = replies(value, fields, expected, needs)
        if isinstance(found, Problem):
            return found
        pairs = zip(found.replies, labels, strict=True)
        return [cls(found.prompt, reply, liked, found.format, file, row) for reply, liked in pairs]


@dataclasses.dataclass(frozen=True)
class Prompt(Record):
    """Something to answer, with the whole row it stands in (``fields``), for rewards that need more of it."""

    prompt: PromptText
    format: Format
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    file: str = "data"
    row: int = 0

    @property
    def completions(self) -> tuple[str, ...]:
        return ()

    @classmethod
    def parse(cls, value: Mapping[str, Any], expected: str | None, file: str, row: int) -> list[Self] | Problem:
        parts = prompt_only(value, expected)
        return parts if isinstance(parts, Problem) else [cls(*parts, dict(value), file, row)]
