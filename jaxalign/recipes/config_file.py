"""Configurations from a YAML file and overrides. Every mistake is explained in one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser

from jaxalign.errors import UserError

C = TypeVar("C")


def load_config(config: type[C], path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> C:
    """Reads a configuration.

    Args:
        config: A dataclass of dataclasses.
        path: A YAML file; None takes the defaults.
        overrides: Settings that replace those of the file, as ``{"train.steps": 50}``.

    Raises:
        UserError: For an unknown key, a value of the wrong type, or a file that is missing or not a YAML mapping.
    """
    arguments = [] if path is None else ["--config", str(path)]
    for name, value in (overrides or {}).items():
        arguments += [f"--{name}", value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)]
    parsed = parse_config(config, "load_config", arguments, hint="")
    assert parsed is not None
    return parsed


def parse_config(config: type[C], prog: str, arguments: Sequence[str], *, hint: str | None = None) -> C | None:
    """Fills the dataclass ``config``: its defaults, then ``--config FILE``, then flags ``--section.key value``.

    Args:
        config: A dataclass of dataclasses; its docstrings are the help.
        prog: The command's name in the help.
        arguments: The words after the command.
        hint: Where all settings are listed, for messages; by default the command's ``--help``.

    Returns:
        The configuration, or None when ``--help`` or ``--print_config`` was asked for and has been printed.

    Raises:
        UserError: For an unknown key (with the nearest known one), a value of the wrong type, a missing required
            key, or a file that is missing or not a YAML mapping.
    """
    parser = ArgumentParser(prog=prog, exit_on_error=False, default_env=False)
    parser.add_argument("--config", action="config", help="YAML file with settings; flags override it")
    parser.add_class_arguments(config)
    for file in _files(arguments):
        _check_text(file)
    try:
        values = parser.instantiate(parser.parse_args(list(arguments)))
    except SystemExit:
        return None
    except argparse.ArgumentError as error:
        keys = [name for name, _ in parser.get_defaults(skip_validation=True).items() if name != "config"]
        where = ", ".join(map(str, _files(arguments)))
        hint = f" {prog} --help lists all settings." if hint is None else hint
        raise UserError(explain(str(error), keys, f" in {where}" if where else "", hint)) from error
    return config(**{field.name: values[field.name] for field in dataclasses.fields(config)})  # type: ignore[arg-type]


def _check_text(file: Path) -> None:
    """Refuses files for which jsonargparse would raise a traceback, or quote the whole file."""
    if not os.path.isfile(file):
        raise UserError(f"The configuration file {file} does not exist. Give an existing YAML file.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"The configuration file {file} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"The configuration file {file} cannot be read ({error.strerror}).") from error
    except yaml.YAMLError:
        return  # the parser reports it with its place
    if settings is None:
        raise UserError(f"The configuration file {file} is empty. Give one with settings, or none.")


def explain(message: str, keys: Sequence[str], where: str, hint: str) -> str:
    """Returns jsonargparse's message as sentences that name the key, the value and what to do.

    >>> explain("Group 'train' does not accept option 'batch_sise'", ["train.batch_size"], " in a.yaml", "")
    'Unknown setting train.batch_sise in a.yaml. Did you mean train.batch_size?'
    """
    if match := re.match(r"Group '(.+)' does not accept option '(.+)'", message):
        return _unknown(f"{match[1]}.{match[2]}", keys, where, hint)
    if match := re.match(r"Option '(.+)' is not accepted", message):
        return _unknown(match[1], keys, where, hint)
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        return _unknown(match[1].lstrip("-").split("=")[0], keys, "", hint)
    if match := re.match(r"the following arguments are required: (.+)", message):
        return f"{match[1]} must be set. Add --{match[1].split(', ')[0]} VALUE, or put it into the configuration file."
    if match := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
        return f"{match[1]}: {_plain(match[2])}.{hint}"
    if match := re.match(r"argument --(\S+): (.*)", message):
        return f"{match[1]}: {match[2]}.{hint}"
    return f"The settings{where} cannot be read: {_plain(message)}."


def _unknown(key: str, keys: Sequence[str], where: str, hint: str) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    return f"Unknown setting {key}{where}." + (f" Did you mean {near[0]}?" if near else "") + hint


def _plain(message: str) -> str:
    """Returns a message on one line, with types as people write them."""
    if union := re.search(r"Union subtypes\s+Subtypes: \[(.*)\].*Given value: (.*)", message, re.DOTALL):
        message = f"expected {' or '.join(union[1].split(', '))}, got {union[2].strip()}"
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("typing.", "").replace("NoneType", "null")
    message = message.replace("Expected a ", "expected ").replace(". Got value: ", ", got ")
    return " ".join(message.split()).rstrip(".")


def _files(arguments: Sequence[str]) -> list[Path]:
    """Returns the files given to --config."""
    after = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
    joined = [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
    return [Path(file) for file in after + joined]
