"""Converts OpenAssistant's conversation trees: one row is a first prompt and all replies to it, nested.

A tree becomes plain rows, which depend on the kind of record. Ranked siblings give preferences and a ranking. Answers
with votes give unpaired preferences. The best answer to every prompt gives a demonstration, and every prompt a prompt.
Every row includes the conversation before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxalign.data.files import Problem
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, Record, UnpairedPreference

ROLES = {"prompter": "user", "assistant": "assistant"}


def is_tree(value: Mapping[str, Any]) -> bool:
    """Returns whether a row is such a tree.

    >>> is_tree({"prompt": {"text": "Why?", "role": "prompter", "replies": []}})
    True
    """
    prompt = value.get("prompt")
    return isinstance(prompt, Mapping) and "role" in prompt and "text" in prompt


def rows(tree: Mapping[str, Any], kind: type[Record]) -> list[dict[str, Any]]:
    """Returns the rows that a tree contains for records of a kind, in the order of the tree.

    Args:
        tree: The row.
        kind: A class of :mod:`jaxalign.data.kinds`.

    Raises:
        Problem: If the tree is malformed.

    >>> answers = [{"text": text, "role": "assistant", "rank": rank} for text, rank in [("So.", 1), ("Air.", 0)]]
    >>> tree = {"prompt": {"text": "Why?", "role": "prompter", "replies": answers}}
    >>> rows(tree, Preference)[0]["chosen"]
    [{'role': 'assistant', 'content': 'Air.'}]
    """
    if not _sound(tree["prompt"]):
        text = "the tree has a message without a string 'text', a 'role' of prompter or assistant, or sound 'replies', "
        raise Problem("malformed tree", text + "'rank' or 'emojis'. Correct or remove the row")
    build = {
        Preference: _pairs,
        Ranking: _rankings,
        UnpairedPreference: _votes,
        Demonstration: _best,
        Prompt: lambda before, _: [{"prompt": before}],
    }[kind]
    return [row for before, answers in _prompts(tree["prompt"], []) for row in build(before, answers)]


def votes(answer: Mapping[str, Any]) -> int:
    """Returns thumbs up minus thumbs down."""
    emojis = answer.get("emojis") or {}
    return emojis.get("+1", 0) - emojis.get("-1", 0)


def _sound(node: Any) -> bool:
    if not isinstance(node, Mapping) or not isinstance(node.get("text"), str) or node.get("role") not in ROLES:
        return False
    rank, emojis, replies = node.get("rank"), node.get("emojis") or {}, node.get("replies") or []
    counts = emojis.values() if isinstance(emojis, Mapping) else [None]
    numbers = all(isinstance(count, int) for count in counts) and isinstance(rank, int | None)
    return numbers and isinstance(replies, list) and all(map(_sound, replies))


Turn = dict[str, Any]
Answers = Sequence[Mapping[str, Any]]


def _prompts(node: Mapping[str, Any], before: list[Turn]) -> Iterator[tuple[list[Turn], Answers]]:
    """Yields every conversation that waits for an answer, and the answers to it."""
    here = [*before, _turn(node)]
    # Empty answers are dropped one by one: the rest of the tree is still useful.
    replies = [reply for reply in node.get("replies") or [] if not reply.get("deleted") and reply["text"].strip()]
    if node["role"] == "prompter":
        yield here, [reply for reply in replies if reply["role"] == "assistant"]
    for reply in replies:
        yield from _prompts(reply, here)


def _turn(node: Mapping[str, Any]) -> Turn:
    return {"role": ROLES[node["role"]], "content": node["text"]}


def _ranked(answers: Answers) -> list[Mapping[str, Any]]:
    return sorted((a for a in answers if a.get("rank") is not None), key=lambda answer: answer["rank"])


def _pairs(before: list[Turn], answers: Answers) -> Iterator[dict[str, Any]]:
    for better, worse in itertools.combinations(_ranked(answers), 2):
        if better["rank"] < worse["rank"]:
            yield {"prompt": before, "chosen": [_turn(better)], "rejected": [_turn(worse)]}


def _rankings(before: list[Turn], answers: Answers) -> Iterator[dict[str, Any]]:
    ranked = _ranked(answers)
    if len({answer["rank"] for answer in ranked}) == len(ranked) > 1:
        yield {"prompt": before, "completions": [[_turn(answer)] for answer in ranked]}


def _votes(before: list[Turn], answers: Answers) -> Iterator[dict[str, Any]]:
    for answer in answers:
        if votes(answer):
            yield {"prompt": before, "completion": [_turn(answer)], "label": votes(answer) > 0}


def _best(before: list[Turn], answers: Answers) -> Iterator[dict[str, Any]]:
    for answer in (_ranked(answers) or answers)[:1]:
        yield {"prompt": before, "completion": [_turn(answer)]}
