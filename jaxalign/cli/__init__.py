"""The command line: ``jaxalign COMMAND --config FILE [--any.key value]``.

A command is a module of this package with a dataclass ``Config`` and a function ``run(config)``. A user's mistake ends
with one sentence on standard error and exit code 2.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from jaxalign.errors import UserError

# Commands that call the recipe of their name (see cli/train.py).
TRAINING = ("sft", "reward", "dpo", "kto", "ppo", "grpo", "online_dpo")
# In the order people meet them. Modules load when their command is called: --help stays instant.
COMMANDS = {
    "quickstart": "see every method side by side in minutes, in a small world with a known reward; no downloads",
    "sft": "fine-tune a model on demonstrations",
    "reward": "train a reward model on preference pairs or rankings",
    "dpo": "align a model on preference pairs with direct preference optimisation",
    "kto": "align a model on answers that were liked or not: thumbs, votes, ratings, unpaired preferences",
    "ppo": "align a model with proximal policy optimisation",
    "grpo": "align a model with GRPO or a relative, without a value model",
    "online_dpo": "align a model with DPO on pairs of its own answers",
    "generate": "sample answers from a model",
    "judge": "label answers with AI judges, and audit the judges: jaxalign judge audit RUN",
    "eval": "measure a model; what aligning it cost: jaxalign eval tax --before A --after B",
    "compare": "compare methods over seeds in that world: rewards, KL, capability, cost",
    "advise": "report what a data set allows, what each method needs, and which to start with",
    "data": "inspect a data set: jaxalign data inspect FILE",
    "export": "write a run's checkpoint as a Hugging Face model directory",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The words after ``jaxalign``; by default those of the process.

    Returns:
        The exit code: 0, or 2 for a user's mistake, 130 if interrupted, 141 if the reader of the output closed it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(arguments)
    except UserError as error:
        print(f"jaxalign: {sentence(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output (head, less) closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interrupt:  # its message says from where the command resumes
        print(f"jaxalign: interrupted{f'; {interrupt}' if str(interrupt) else ''}.", file=sys.stderr)
        return 130
    return 0


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if arguments[0] == "--version":
        import jaxalign

        print(f"jaxalign {jaxalign.__version__}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command; the commands are {', '.join(COMMANDS)}.")
    from jaxalign.recipes.config_file import parse_config

    # These libraries log what a command reports itself.
    logging.getLogger("absl").setLevel(logging.ERROR)
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    if name in TRAINING:
        recipe = importlib.import_module(f"jaxalign.recipes.{name}")
        config = parse_config(recipe.Config, f"jaxalign {name}", rest)
        if config is not None:  # None: --help or --print_config has been answered
            check_required(config, ("model.path", "data.path", "output"))
            from jaxalign.cli import train

            train.run(recipe, config)
        return
    command = importlib.import_module(f"jaxalign.cli.{name}")
    if rest and rest[0] in getattr(command, "TASKS", {}):  # of a command with tasks that have settings of their own
        name, command = f"{name} {rest[0]}", importlib.import_module(command.TASKS[rest.pop(0)])
    if hasattr(command, "flags"):  # of a command with positional arguments
        rest = command.flags(rest)
    config = parse_config(command.Config, f"jaxalign {name}", rest)
    if config is not None:  # None: --help or --print_config has been answered
        check_required(config, getattr(command, "REQUIRED", ()))
        command.run(config)


def check_required(config: Any, names: Sequence[str]) -> None:
    """Raises UserError for settings that are not set, and that only a library call may leave out."""
    missing = [name for name in names if not functools.reduce(getattr, name.split("."), config)]
    if missing:
        raise UserError(
            f"{', '.join(missing)} must be set. Add --{missing[0]} VALUE, or put it into the configuration file."
        )


def sentence(error: UserError) -> str:
    """Returns an error's message on one line, with the keys of the command line.

    >>> sentence(UserError("The file does not exist. Check the path"))
    'The file does not exist. Check the path.'
    >>> sentence(UserError("Row 3: field 'chosen' is null. Give a string, or set on_error='skip'."))
    "Row 3: field 'chosen' is null. Give a string, or set data.on_error=skip."
    """
    # The library speaks of arguments; the command line names the keys that set them.
    text = re.sub(r"\bset (on_error|template)='(\w+)'", r"set data.\1=\2", " ".join(str(error).split()))
    return text if text.endswith((".", ")", "?")) else text + "."


def usage() -> str:
    """What ``jaxalign --help`` prints."""
    lines = [f"  {name:<11} {purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        (
            "usage: jaxalign COMMAND [--config FILE] [--any.key value ...]",
            "",
            "Align language models in JAX.",
            "",
            "commands:",
            *lines,
            "",
            "jaxalign COMMAND --help lists a command's settings, --print_config the merged configuration.",
        )
    )
