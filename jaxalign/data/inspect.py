"""What is worth knowing about a data set before training on it: repetitions, contradictions, leaks, balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxalign.data.formats import CONVERSATIONS, PromptText
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, Record, UnpairedPreference

# Fields that tell a kind, the most telling first.
_TELLING: tuple[tuple[str, type[Record]], ...] = (
    ("completions", Ranking),
    ("rejected", Preference),
    ("label", UnpairedPreference),
    *((field, Demonstration) for field in ("completion", *CONVERSATIONS, "text", "output", "chosen")),
)


def kind_of(value: Mapping[str, Any]) -> type[Record]:
    """The kind of record that a row was most likely written for.

    >>> kind_of({"prompt": "Why?", "completion": "Air.", "label": True}).__name__
    'UnpairedPreference'
    """
    if isinstance(value.get("prompt"), Mapping):
        return Preference  # a tree of OpenAssistant's
    return next((kind for field, kind in _TELLING if value.get(field) is not None), Prompt)


class Lengths(NamedTuple):
    """The least, the middle, the 95th of a hundred and the greatest."""

    least: int
    median: int
    most_below: int
    greatest: int

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Lengths:
        """Of one size or more.

        >>> Lengths.of([3, 1, 2])
        Lengths(least=1, median=2, most_below=3, greatest=3)
        """
        return cls(*(int(np.quantile(sizes, q, method="higher")) for q in (0, 0.5, 0.95, 1)))


class Findings(NamedTuple):
    """Counts of records: whatever is not 0, but for the first, deserves a look."""

    prompts: int  # distinct prompts, or texts that have none
    repeated: int  # records that say what one before them says
    contradicted: int  # records that another one says the opposite of
    undecided: int  # preferences or rankings with two answers that are the same
    leaked: int  # records whose prompt is also in the other split


def find(records: Sequence[Record], other: Sequence[Record] = ()) -> Findings:
    """What is suspicious in these records.

    Prompts are compared without regard to case and white space, so that a copy with another line end is found.

    Args:
        records: of one kind.
        other: of another split, which should share no prompt with them.

    >>> pair = Preference("Why?", " Air.", " No.", "text")
    >>> find([pair, pair, Preference("why? ", " No.", " Air.", "text")], [Prompt("Why?", "text")])
    Findings(prompts=1, repeated=1, contradicted=3, undecided=0, leaked=3)
    """
    said = [(_same(record.prompt or record.completions), record.completions, _verdict(record)) for record in records]
    counts = Counter(said)
    contradicted = sum(
        any((prompt, *opposite) in counts for opposite in _opposites(answers, verdict))
        for prompt, answers, verdict in said
    )
    undecided = sum(len(set(record.completions)) < len(record.completions) for record in records)
    elsewhere = {_same(record.prompt or record.completions) for record in other}
    return Findings(
        prompts=len({prompt for prompt, _, _ in said}),
        repeated=len(said) - len(counts),
        contradicted=contradicted,
        undecided=undecided,
        leaked=sum(prompt in elsewhere for prompt, _, _ in said),
    )


def balance(records: Sequence[Record]) -> dict[str, float]:
    """Shares that bias what is learned: how often an answer is liked, or the longer of two is the better.

    >>> balance([UnpairedPreference("Why?", "Air.", liked, "text") for liked in (True, False, True, True)])
    {'liked': 0.75}
    >>> balance([Preference("Why?", "Because of the air.", "No.", "text"), Preference("Why?", "Air.", "Dust", "text")])
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


def _same(prompt: PromptText | tuple[str, ...]) -> str:
    """What two prompts have in common that only differ in case and white space."""
    parts = [prompt] if isinstance(prompt, str) else [text for part in prompt for text in (part, "\0")]
    return " ".join(" ".join(map(str, _flat(parts))).casefold().split())


def _flat(parts: Sequence[Any]) -> list[str]:
    return [text for part in parts for text in ([part] if isinstance(part, str) else _flat(part))]


def _verdict(record: Record) -> bool | None:
    return record.label if isinstance(record, UnpairedPreference) else None


def _opposites(answers: tuple[str, ...], verdict: bool | None) -> list[tuple[tuple[str, ...], bool | None]]:
    if verdict is not None:
        return [(answers, not verdict)]
    return [(answers[::-1], None)] if len(set(answers)) > 1 else []
