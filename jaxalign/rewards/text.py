"""Rewards of a completion's text: a pattern, the right answer, its length."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError
from jaxalign.rewards.call import Reward, Rows, Texts

Unit = Literal["words", "characters"]


def regex(pattern: str, *, whole: bool = False, flags: int = 0) -> Reward:
    """Makes the reward r = 1 if the pattern occurs in the completion, else 0.

    Args:
        pattern: a regular expression of Python's ``re``.
        whole: whether it must match the whole completion, without outer white space, and not just occur in it.
        flags: such as ``re.DOTALL | re.IGNORECASE``.

    Returns:
        The reward function.

    Raises:
        UserError: if the pattern is not a regular expression.

    >>> regex("<answer>.+</answer>")(["p", "p"], ["<answer>4</answer>", "4"], [{}, {}])
    array([1., 0.])
    """
    try:
        compiled = re.compile(pattern, flags)
    except re.error as error:
        raise UserError(f"Pattern {pattern!r} is not a regular expression ({error}). Correct it.") from None

    def regex(prompts: Texts, completions: Texts, rows: Rows) -> NDArray[np.float64]:
        del prompts, rows
        matches = [compiled.fullmatch(text.strip()) if whole else compiled.search(text) for text in completions]
        return np.array([match is not None for match in matches], np.float64)

    return regex


def normalise(text: str) -> str:
    """Removes what rarely matters: case, Unicode forms, runs of white space, punctuation at the ends.

    Args:
        text: any text.

    Returns:
        The normalised text.

    >>> normalise("  The  Nile. ")
    'the nile'
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.strip(" .,;:!?\"'“”‘’()[]`*")


def exact_match(field: str = "answer", *, form: Callable[[str], str] = normalise) -> Reward:
    """Makes the reward r = 1 if form(completion) = form(the row's answer), or that of one of its answers, else 0.

    Args:
        field: field of a row with the answer: a text, a number, or a list of accepted answers.
        form: applied to both before they are compared; ``str`` compares them as they are.

    Returns:
        The reward function. It raises UserError, naming the row, where a row has no answer.

    >>> exact_match()(["Longest river?"] * 2, ["the Nile.", "Amazon"], [{"answer": ["Nile", "The Nile"]}] * 2)
    array([1., 0.])
    """

    def exact_match(prompts: Texts, completions: Texts, rows: Rows) -> NDArray[np.float64]:
        del prompts
        scores = []
        for i, (text, row) in enumerate(zip(completions, rows, strict=True)):
            if row.get(field) is None or row[field] == []:
                raise UserError(f"Row {i + 1}: field {field!r} has no answer. Name the field with the answer.")
            answers = row[field] if isinstance(row[field], (list, tuple)) else [row[field]]
            scores.append(form(text) in {form(str(answer)) for answer in answers})
        return np.array(scores, np.float64)

    return exact_match


def length_target(target: int, *, unit: Unit = "words") -> Reward:
    """Makes the reward r = max(0, 1 - |n - target| / target) for a completion of n words or characters.

    Args:
        target: the length that earns 1, at least 1.
        unit: ``words`` (between white space) or ``characters``.

    Returns:
        The reward function.

    Raises:
        UserError: if the target is not positive or the unit unknown.

    >>> length_target(4)(["p"] * 3, ["one two three four", "one two three", ""], [{}] * 3)
    array([1.  , 0.75, 0.  ])
    """
    count = _counter("target", target, unit)

    def length_target(prompts: Texts, completions: Texts, rows: Rows) -> NDArray[np.float64]:
        del prompts, rows
        return np.maximum(0, 1 - np.abs(count(completions) - target) / target)

    return length_target


def length_cap(cap: int, *, unit: Unit = "words") -> Reward:
    """Makes the reward r = 1 up to n = cap words or characters, then falling: max(0, 1 - max(0, n - cap) / cap).

    Args:
        cap: the length that still earns 1, at least 1; twice the cap earns 0.
        unit: ``words`` (between white space) or ``characters``.

    Returns:
        The reward function.

    Raises:
        UserError: if the cap is not positive or the unit unknown.

    >>> length_cap(10, unit="characters")(["p"] * 3, ["brief", "twelve chars", "much too long a text"], [{}] * 3)
    array([1. , 0.8, 0. ])
    """
    count = _counter("cap", cap, unit)

    def length_cap(prompts: Texts, completions: Texts, rows: Rows) -> NDArray[np.float64]:
        del prompts, rows
        return np.maximum(0, 1 - np.maximum(0, count(completions) - cap) / cap)

    return length_cap


def _counter(name: str, value: int, unit: str) -> Callable[[Texts], NDArray[np.float64]]:
    if not value >= 1:
        raise UserError(f"{name} is {value}. Give a length of at least 1.")
    if unit not in ("words", "characters"):
        raise UserError(f"unit is {unit!r}. Give words or characters.")
    return lambda texts: np.array([len(text.split()) if unit == "words" else len(text) for text in texts], float)
