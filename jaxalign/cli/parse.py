"""A typed dataclass from a YAML file and flags, with every mistake told in one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser

from jaxalign.errors import UserError

C = TypeVar("C")


def parse(config: type[C], prog: str, arguments: Sequence[str]) -> C | None:
    """Fill the dataclass ``config``: its defaults, then ``--config FILE``, then flags ``--section.key value``.

    Args:
        config: a dataclass of dataclasses; its docstrings are the help.
        prog: the command's name in the help.
        arguments: what follows the command.

    Returns:
        The configuration, or None when ``--help`` or ``--print_config`` was asked for and has been printed.

    Raises:
        UserError: for an unknown key (with the nearest known one), a value of the wrong type, a missing required
            key, or a file that is missing or no YAML mapping.
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
        raise UserError(explain(str(error), keys, f" in {where}" if where else "", prog)) from error
    return config(**{field.name: values[field.name] for field in dataclasses.fields(config)})  # type: ignore[arg-type]


def _check_text(file: Path) -> None:
    """What jsonargparse would end in a traceback for, or tell by quoting the whole file."""
    if not os.path.isfile(file):
        raise UserError(f"The configuration file {file} does not exist; give --config an existing YAML file.")
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"The configuration file {file} is not UTF-8 (byte {error.start}); save it as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"The configuration file {file} cannot be read ({error.strerror}).") from error
    except yaml.YAMLError:
        return  # told with the place
    if settings is None:
        raise UserError(f"The configuration file {file} is empty; give one with settings, or leave --config away.")


def explain(message: str, keys: Sequence[str], where: str, prog: str) -> str:
    """jsonargparse's message as one sentence that names the key, the value and the way out.

    >>> explain("Group 'train' does not accept option 'batch_sise'", ["train.batch_size"], " in a.yaml", "jaxalign dpo")
    'unknown setting train.batch_sise in a.yaml; did you mean train.batch_size? (jaxalign dpo --help lists all.)'
    """
    if match := re.match(r"Group '(.+)' does not accept option '(.+)'", message):
        return _unknown(f"{match[1]}.{match[2]}", keys, where, prog)
    if match := re.match(r"Option '(.+)' is not accepted", message):
        return _unknown(match[1], keys, where, prog)
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        return _unknown(match[1].lstrip("-").split("=")[0], keys, "", prog)
    if match := re.match(r"the following arguments are required: (.+)", message):
        return f"{match[1]} must be given; add --{match[1].split(', ')[0]} VALUE or put it in the configuration file."
    if match := re.match(r'Parser key "(.+?)":\s*(.*)', message, re.DOTALL):
        return f"{match[1]}: {_plain(match[2])}; {prog} --help lists every setting and its type."
    if match := re.match(r"argument --(\S+): (.*)", message):
        return f"{match[1]}: {match[2]}; {prog} --help lists every setting and its type."
    return f"The settings{where} cannot be read: {_plain(message)}."


def _unknown(key: str, keys: Sequence[str], where: str, prog: str) -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.75)
    hint = f"did you mean {near[0]}? ({prog} --help lists all.)" if near else f"{prog} --help lists all settings."
    return f"unknown setting {key}{where}; {hint}"


def _plain(message: str) -> str:
    """Types as people write them, on one line."""
    if union := re.search(r"Union subtypes\s+Subtypes: \[(.*)\].*Given value: (.*)", message, re.DOTALL):
        message = f"expected {' or '.join(union[1].split(', '))}, got {union[2].strip()}"
    message = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("typing.", "").replace("NoneType", "null")
    message = message.replace("Expected a ", "expected ").replace(". Got value: ", ", got ")
    return " ".join(message.split()).rstrip(".")


def _files(arguments: Sequence[str]) -> list[Path]:
    """The files given to --config."""
    after = [value for flag, value in itertools.pairwise(arguments) if flag == "--config"]
    joined = [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
    return [Path(file) for file in after + joined]
