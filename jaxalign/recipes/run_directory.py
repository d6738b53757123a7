"""A run's output directory: what lies where, and when a run may go on in it.

::

    config.yaml      the merged settings
    base/            the model's config.json and the tokenizer; checkpoints hold what is trained (with adapters: them)
    inputs.json      fingerprints of the examples and of the model that the run began with
    checkpoints/     train states (see jaxalign.checkpoint)
    metrics.jsonl    what was computed; timings.jsonl what the clock said
    reference.npz    the reference's log-probs, where they are cached
    samples.json     answers before and after
    budget.json      the figures that a budget counts from; within_budget/ the last state within it
    adapter/         the trained adapters, PEFT's layout, where there are any
    model/           the trained model, Hugging Face layout
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from jaxalign.errors import UserError
from jaxalign.models.config import ModelConfig, from_hf_config, to_hf_config
from jaxalign.paths import write_whole

SETTINGS, BASE, CHECKPOINTS, ADAPTER, MODEL = "config.yaml", "base", "checkpoints", "adapter", "model"
SAMPLES, REFERENCE, INPUTS = "samples.json", "reference.npz", "inputs.json"

# What may change between a run and its resumption: none of it changes what is learned.
FREE = ("output", "log", "mesh", "train.resume", "train.keep", "train.checkpoint_every", "train.eval_every")


def settings(config: Any) -> dict[str, Any]:
    """A configuration as plain values, the way config.yaml holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists, as YAML has no tuples


def check_resumable(directory: Path, wanted: dict[str, Any], resume: str) -> None:
    """Raise if there is a run in ``directory`` that cannot go on with these settings (some of them change no result).

    Args:
        directory: the output directory.
        wanted: the settings now.
        resume: ``auto``, or ``never`` to refuse any earlier run.

    Raises:
        UserError: naming the settings that differ.
    """
    saved = any(path.name.isdigit() for path in (directory / CHECKPOINTS).glob("*"))
    ended = (directory / MODEL).exists() and (directory / SETTINGS).exists()  # a run that its budget stops has no more
    if not saved and not ended:
        return
    if resume == "never":
        raise UserError(f"{directory} already holds a run; give another output, or train.resume=auto to go on.")
    was, now = flat(read_settings(directory)), flat(wanted)
    changed = [key for key in sorted(was | now) if was.get(key) != now.get(key) and not _is_free(key)]
    if changed:
        what = ", ".join(f"{key} (was {was.get(key)}, now {now.get(key)})" for key in changed)
        raise UserError(
            f"{directory} holds a run with other settings: {what}; give another output, or these settings again."
        )


def read_settings(directory: Path) -> dict[str, Any]:
    """The settings that a run was started with.

    Raises:
        UserError: if the directory holds no run.
    """
    try:
        return dict(yaml.safe_load((directory / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{directory} holds no run (there is no readable {SETTINGS} in it); check the path.") from error


def write_settings(directory: Path, wanted: dict[str, Any]) -> None:
    write_whole(directory / SETTINGS, yaml.safe_dump(wanted, sort_keys=False))


def write_base(directory: Path, config: ModelConfig, tokenizer: Any) -> None:
    """Keep what a checkpoint needs to become a model again."""
    base = directory / BASE
    base.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(base)
    write_whole(base / "config.json", json.dumps(to_hf_config(config), indent=2))


def read_base(directory: Path) -> ModelConfig:
    """The architecture of the model that a run trains."""
    try:
        return from_hf_config(json.loads((directory / BASE / "config.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{directory / BASE} holds no readable config.json; is {directory} a run's output?") from error


def check_inputs(directory: Path, inputs: dict[str, str], resuming: bool) -> None:
    """Raise if a run that goes on would go on with other inputs; one that begins keeps them.

    Args:
        directory: the run's output directory.
        inputs: what each is called → its fingerprint.
        resuming: whether the run goes on.

    Raises:
        UserError: naming the first input that differs.
    """
    if not resuming:
        write_whole(directory / INPUTS, json.dumps(inputs, indent=2) + "\n")
        return
    began = read_inputs(directory)
    for name, fingerprint in inputs.items():
        if began.get(name) != fingerprint:
            raise UserError(
                f"{directory} holds a run of other inputs: {name} changed since it began; give another output, or what "
                "it began with."
            )


def read_inputs(directory: Path) -> dict[str, str]:
    """The fingerprints that `check_inputs` kept.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        return dict(json.loads((directory / INPUTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{directory / INPUTS} cannot be read; is {directory} a run's output?") from error


def write_samples(directory: Path, answered: dict[str, list[str]]) -> None:
    """Keep the answers: ``prompt``, ``before`` and, in the end, ``after``."""
    write_whole(directory / SAMPLES, json.dumps(answered, indent=2, ensure_ascii=False) + "\n")


def read_samples(directory: Path) -> dict[str, list[str]] | None:
    """What `write_samples` kept; None if it cannot be read."""
    try:
        answered = json.loads((directory / SAMPLES).read_text(encoding="utf-8"))
        return {name: list(answered[name]) for name in ("prompt", "before")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> flat({"train": {"seed": 0}, "output": "run"})
    {'train.seed': 0, 'output': 'run'}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves
