"""Every setting is read somewhere: a field that nothing reads fails."""

import ast
import dataclasses
import importlib
import typing
from pathlib import Path

import pytest

import jaxalign
from jaxalign.cli import COMMANDS, TRAINING


def attribute_reads(root: Path) -> set[tuple[str, str]]:
    """Every (owner, attribute) read in the package: ``config.train.seed`` gives (train, seed) and (config, train)."""
    reads = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)
                reads.add((name, node.attr))
    return reads


def fields(kind: type, section: str) -> typing.Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield section, field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from fields(hints[field.name], field.name)


# Sections handed whole to a function (optim.make_optimizer, Tracker, open_model, Signals.read), and what it calls them.
ALIAS = {"optim": "config", "log": "config", "data": "self"}
ALIAS |= dict.fromkeys(("model", "mesh", "samples", "reference", "budget", "method"), "section")
ALIAS |= dict.fromkeys(("signals", "thumbs", "judge"), "self")
READS = attribute_reads(Path(jaxalign.__file__).parent)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_is_read(command):
    room = "recipes" if command in TRAINING else "cli"
    settings = list(fields(importlib.import_module(f"jaxalign.{room}.{command}").Config, "config"))
    unread = [f"{owner}.{name}" for owner, name in settings if not {(owner, name), (ALIAS.get(owner), name)} & READS]
    assert not unread


def test_an_unread_field_would_be_found():
    assert ("train", "seed") in READS
    assert ("train", "sead") not in READS
