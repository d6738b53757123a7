"""What a judge is asked: templates in files that a user can edit, and a constitution of principles."""

from __future__ import annotations

import hashlib
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
from jaxalign.paths import resolve_path

PAIRWISE = "jaxalign:assets/judge/pairwise.txt"
POINTWISE = "jaxalign:assets/judge/pointwise.txt"
CONSTITUTION = "jaxalign:assets/judge/constitution.yaml"


@dataclass(frozen=True)
class Principle:
    """One principle of a constitution."""

    id: str
    text: str
    weight: float = 1.0


def load_constitution(path: str | Path = CONSTITUTION) -> tuple[Principle, ...]:
    """The principles in a YAML file: a list of ``id``, ``text`` and, if it is not 1, ``weight``.

    Source: the idea is Bai et al. 2022, arXiv:2212.08073.

    Args:
        path: the file, or ``package:file``.

    Returns:
        the principles, in the file's order.

    Raises:
        UserError: if the file is missing, not YAML, or a principle is not as above; the sentence names its place.

    >>> [principle.id for principle in load_constitution()]
    ['helpful', 'harmless', 'honest', 'brief']
    """
    try:
        rows = yaml.safe_load(_read(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where}: not YAML ({getattr(error, 'problem', None) or 'unreadable'}): mend it"
        ) from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: there are no principles: give a list of entries with id and text")
    principles = tuple(_principle(f"{path}, principle {i}", row) for i, row in enumerate(rows, start=1))
    names = [principle.id for principle in principles]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: the id {repeated[0]!r} appears more than once: rename one")
    if not any(principle.weight for principle in principles):
        raise UserError(f"{path}: every weight is 0: give one principle a weight above it")
    return principles


def draw_principle(principles: Sequence[Principle], key: str, *, seed: int = 0) -> Principle:
    """A principle drawn with P(k) = w_k / Σ w, the same for the same ``key`` and seed, whatever is asked before.

    Args:
        principles: to draw from.
        key: what identifies the pair, such as its prompt.
        seed: another seed is another draw.

    Returns:
        the principle.

    >>> draw_principle(load_constitution(), "What is rain?") == draw_principle(load_constitution(), "What is rain?")
    True
    """
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    left = int.from_bytes(digest[:8], "big") / 2**64 * sum(principle.weight for principle in principles)
    for principle in principles:
        left -= principle.weight
        if left < 0:
            return principle
    return next(principle for principle in reversed(principles) if principle.weight)


def render(template: str | Path, **values: Any) -> str:
    """A judge's prompt from a template file, in Jinja: ``{{ prompt }}``, ``{% if principle %}``.

    What is put in is not itself read as a template, so a response that holds ``{{`` is shown as it is.

    Args:
        template: the file, or ``package:file``.
        values: the variables.

    Returns:
        the text.

    Raises:
        UserError: if the file is missing, not a template, or uses a variable that is not given.

    >>> text = render(POINTWISE, prompt="What is rain?", response="{{ water }}", principle="", think=False)
    >>> "{{ water }}" in text, text.splitlines()[-2]
    (True, 'Score: N')
    """
    try:
        return _compiled(str(template), _read(template)).render(**values).strip()
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{template}, line {error.lineno}: not a template ({error.message}): mend it") from None
    except jinja2.UndefinedError as error:
        known = ", ".join(sorted(values))
        raise UserError(f"{template}: {error.message}: the variables are {known}") from None
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{template}: it cannot be filled in ({error}): mend the template") from None


@cache
def _compiled(name: str, source: str) -> jinja2.Template:
    del name  # part of the cache's key only
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    return environment.from_string(source)


def _read(path: str | Path) -> str:
    place = resolve_path(path)
    try:
        return place.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from None


def _principle(where: str, row: Any) -> Principle:
    if not isinstance(row, dict):
        raise UserError(f"{where}: of type {type(row).__name__}: give id and text")
    if odd := [key for key in row if key not in ("id", "text", "weight")]:
        raise UserError(f"{where}: unknown key {odd[0]!r}: there are id, text and weight")
    for name in ("id", "text"):
        if not (isinstance(row.get(name), str) and row[name].strip()):
            raise UserError(f"{where}: {name} is missing or no text: give one, in quotes if need be")
    weight = row.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise UserError(f"{where}: weight is {weight!r}: give a number that is not negative")
    return Principle(row["id"].strip(), " ".join(row["text"].split()), float(weight))
