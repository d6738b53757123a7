r"""Reads the final number of an answer, as GSM8K and MATH write it: ``#### 18``, ``\boxed{18}``, or the last one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxalign.errors import UserError
from jaxalign.rewards.call import Reward, Rows, Texts

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_CURRENCY = "[$€£¥₹]"
# A sign counts unless a number, word or bracket comes before it: 5-3 is a difference, -3 a number.
_NUMBER = re.compile(
    rf"(?<![\w.])(?:(?<![\w).,])(?P<sign>[-+]))?(?:{_CURRENCY}\s?)?(?:(?<=[$€£¥₹])(?P<inner>[-+]))?"
    rf"(?:(?P<whole>{_DIGITS})\s+(?P<over>\d+)\s?/\s?(?P<under>\d+)"  # 1 3/4
    rf"|(?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})(?![\d.])"  # 3/4
    rf"|(?P<decimal>{_DIGITS}(?:\.\d+)?|\.\d+)(?P<power>[eE][-+]?\d{{1,3}}(?!\w))?)"
)
_MARK = re.compile(
    r"####[^\S\n]*\n?[^\S\n]*(?:\*\*)?(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)*\s*)?(?P<answer>[^\n]*)", re.I
)
_BOX = re.compile(r"\\f?boxed\s*(\{)")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\s*(?:\{\s*(-?)([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}|()(\d)(\d))")


def final_number(text: str, *, marked: bool = False) -> Fraction | None:
    r"""Returns the final number of an answer.

    It is the number in the last ``\boxed{…}`` or after the last ``####``, whichever comes later. Without those it is
    the answer's last number. Thousands separators, currency, units and a percent sign are
    dropped (50 % is 50); fractions, mixed numbers, decimals and 1e3 are understood, GSM8K's ``<<2*3=6>>`` is skipped.

    Source: the answer format of Cobbe et al. 2021, arXiv:2110.14168; the box is that of Hendrycks et al. 2021,
    arXiv:2103.03874.

    Args:
        text: the answer.
        marked: accept only a marked number, not just the last one.

    Returns:
        The exact value, or None if the answer has no number.

    >>> final_number("3 * 6 = 18, so she makes\n#### $1,018.50 a day")
    Fraction(2037, 2)
    >>> final_number("thus \\boxed{-\\frac{3}{4}\\text{ km}}, of 7"), final_number("5 or 7."), final_number("no")
    (Fraction(-3, 4), Fraction(7, 1), None)
    """
    text = re.sub(r"<<[^<>\n]*>>", "", text)
    number = _marked(text)
    if number is None and not marked:
        numbers = _numbers(_plain(text))
        number = numbers[-1] if numbers else None
    return number


def number_match(field: str = "answer", *, tolerance: float = 0.0, marked: bool = False) -> Reward:
    """Makes the reward r = 1 if |final number of completion - that of the row's answer| <= tolerance, else 0.

    Args:
        field: field of a row with the reference: a number, or a text that ends with one (see :func:`final_number`).
        tolerance: absolute; 0 compares exactly (0.50 is ½).
        marked: score 0 for a number that is neither boxed nor after ``####``.

    Returns:
        The reward function. It raises UserError, naming the row, if a row lacks the field or a number in it.

    Raises:
        UserError: if the tolerance is negative or not finite.

    >>> reward = number_match()
    >>> reward(["2 * 9?"] * 3, ["#### 18.0", "It is 18 dollars.", "19"], [{"answer": "#### 18"}] * 3)
    array([1., 1., 0.])
    """
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"tolerance is {tolerance}. Give a finite number that is not negative.")
    limit = Fraction(tolerance)

    def number_match(prompts: Texts, completions: Texts, rows: Rows) -> NDArray[np.float64]:
        del prompts
        wanted = [_reference(row, i, field) for i, row in enumerate(rows)]
        numbers = [final_number(completion, marked=marked) for completion in completions]
        pairs = zip(numbers, wanted, strict=True)
        return np.array([number is not None and abs(number - want) <= limit for number, want in pairs], np.float64)

    return number_match


def _reference(row: Mapping[str, Any], index: int, field: str) -> Fraction:
    if field not in row:
        raise UserError(f"Row {index + 1}: field {field!r} is missing. Name the field with the reference answer.")
    value = row[field]
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return Fraction(str(value))  # the decimal as written, 0.1, and not the nearest float
    number = final_number(value) if isinstance(value, str) else None
    if number is None:
        raise UserError(f"Row {index + 1}: field {field!r} contains no number. Fix the row, or name another field.")
    return number


def _marked(text: str) -> Fraction | None:
    """Returns the number of the last mark that has one."""
    marks: list[tuple[int, str]] = []
    for match in _MARK.finditer(text):
        answer = _joined(_plain(match["answer"]).lstrip(" =:*"))
        number = _NUMBER.match(answer)
        if number and not re.match(r"[.)]\s+\w|:", answer[number.end() :]):  # "#### 1. First, …" is a heading
            marks.append((match.start(), answer))
    for match in _BOX.finditer(text):
        inside = _braced(text, match.start(1))
        if inside is not None:
            marks.append((match.start(), _joined(_plain(inside).rpartition("=")[2])))
    for _, answer in sorted(marks, reverse=True):
        if values := _numbers(answer):
            return values[0]
    return None


def _joined(answer: str) -> str:
    """Joins a leading minus sign to its number: in a list ``- 3`` is an item, in a marked answer it is -3."""
    return re.sub(rf"^\s*-\s+(?=[\d.]|{_CURRENCY})", "-", answer)


def _braced(text: str, start: int) -> str | None:
    """Returns the text between the brace at ``start`` and the matching one, or None if that is missing."""
    depth = 0
    for i in range(start, len(text)):
        if text[i - 1 : i] != "\\":
            depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i]
    return None


def _plain(text: str) -> str:
    """Rewrites numbers as plain text: without LaTeX, Unicode minus signs and spaced or braced separators."""
    text = re.sub("[−–—‐‑]", "-", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|\\,|\\!|\u202f|\u00a0|\u2009|,\\!)(?=\d{3}(?!\d))", ",", text)
    text = _FRACTION.sub(lambda m: f" {m[1] or m[2] or ''}{m[3] or m[6]}/{m[4] or m[7]} ", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox|left|right|displaystyle)\b|\\[()\[\],;!: ]", " ", text)
    text = re.sub(r"\\([$%#&])", r"\1", text)
    text = re.sub(r"(?i)\b(?:usd|eur|gbp|inr|rs)\.?\s*(?=[-+\d])", "", text)
    return re.sub(r"(?<!\w)[{}*_`~]+|[{}*_`~]+(?!\w)", " ", text)


def _numbers(text: str) -> list[Fraction]:
    values = (_value(match) for match in _NUMBER.finditer(text))
    return [value for value in values if value is not None]


def _value(match: re.Match[str]) -> Fraction | None:
    part = {name: (text or "").replace(",", "") for name, text in match.groupdict().items()}
    try:
        if part["whole"]:
            value = int(part["whole"]) + Fraction(int(part["over"]), int(part["under"]))
        elif part["top"]:
            value = Fraction(int(part["top"]), int(part["bottom"]))
        else:
            value = Fraction(part["decimal"] + part["power"])
    except (ZeroDivisionError, ValueError):  # 3/0; or more digits than Python converts
        return None
    return -value if "-" in (part["sign"], part["inner"]) else value
