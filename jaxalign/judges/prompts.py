"""Prompts of a judge: templates in files that a user can edit, and a constitution of principles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import yaml  # type: ignore[import-untyped]

from jaxalign.errors import UserError
from jaxalign.judges.hashing import uniform_hash
from jaxalign.paths import resolve_path

PAIRWISE = "jaxalign:assets/judge/pairwise.txt"
POINTWISE = "jaxalign:assets/judge/pointwise.txt"
RANKING = "jaxalign:assets/judge/ranking.txt"
CONSTITUTION = "jaxalign:assets/judge/constitution.yaml"


@dataclass(frozen=True)
class Principle:
    """One principle of a constitution."""

    id: str
    text: str
    weight: float = 1.0


def load_constitution(path: str | Path = CONSTITUTION) -> tuple[Principle, ...]:
    """Returns the principles in a YAML file: a list of ``id``, ``text`` and ``weight`` (1 by default).

    Source: the idea is Bai et al. 2022, arXiv:2212.08073.

    Args:
        path: The file, or ``package:file``.

    Returns:
        The principles, in the file's order.

    Raises:
        UserError: If the file is missing, not YAML, or a principle has another form. The message names its place.

    >>> [principle.id for principle in load_constitution()]
    ['helpful', 'harmless', 'honest', 'brief']
    """
    try:
        rows = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{path}{where}: not YAML ({problem}). Fix that line.") from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: it contains no principles. Give a list of entries with id and text.")
    principles = tuple(_parse_principle(f"{path}, principle {i}", row) for i, row in enumerate(rows, start=1))
    names = [principle.id for principle in principles]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: the id {repeated[0]!r} appears more than once. Rename one.")
    if not any(principle.weight for principle in principles):
        raise UserError(f"{path}: every weight is 0. Give one principle a weight above 0.")
    return principles


def draw_principle(principles: Sequence[Principle], key: str, *, seed: int = 0) -> Principle:
    """Draws a principle with P(k) = w_k / Σ w. The draw depends on the arguments alone.

    Args:
        principles: The principles to draw from.
        key: The identity of the pair, such as its prompt.
        seed: Seed of the draw.

    Returns:
        The principle.

    >>> draw_principle(load_constitution(), "What is rain?") == draw_principle(load_constitution(), "What is rain?")
    True
    """
    left = uniform_hash(seed, key) * sum(principle.weight for principle in principles)
    for principle in principles:
        left -= principle.weight
        if left < 0:
            return principle
    return next(principle for principle in reversed(principles) if principle.weight)


def render(template: str | Path, **values: Any) -> str:
    """Returns a judge's prompt from a template file in Jinja: ``{{ prompt }}``, ``{% if principle %}``.

    Values are not read as templates, so a response that contains ``{{`` is shown as it is.

    Args:
        template: The file, or ``package:file``.
        values: The variables.

    Returns:
        The text.

    Raises:
        UserError: If the file is missing, not a template, or uses a variable without a value.

    >>> text = render(POINTWISE, prompt="What is rain?", response="{{ water }}", principle="", think=False)
    >>> "{{ water }}" in text, text.splitlines()[-2]
    (True, 'Score: N')
    """
    try:
        return _compile(_read(template)).render(**values).strip()
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{template}, line {error.lineno}: not a template ({error.message}). Fix that line.") from None
    except jinja2.UndefinedError as error:
        raise UserError(f"{template}: {error.message}. The variables are {', '.join(sorted(values))}.") from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{template}: it cannot be filled in ({error}). Fix the template.") from None


@cache
def _compile(source: str) -> jinja2.Template:
    return jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(source)


def _read(path: str | Path) -> str:
    try:
        return resolve_path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None


def _parse_principle(where: str, row: Any) -> Principle:
    if not isinstance(row, dict):
        raise UserError(f"{where}: it is of type {type(row).__name__}. Give a mapping with id and text.")
    if unknown := [key for key in row if key not in ("id", "text", "weight")]:
        raise UserError(f"{where}: unknown key {unknown[0]!r}. Give id, text and weight.")
    for name in ("id", "text"):
        if not (isinstance(row.get(name), str) and row[name].strip()):
            raise UserError(f"{where}: {name} is missing or not a string. Give one, in quotes if need be.")
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise UserError(f"{where}: weight is {weight!r}. Give a finite number, 0 or more.")
    return Principle(row["id"].strip(), " ".join(row["text"].split()), float(weight))
