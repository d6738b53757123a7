"""The files of a run's output directory, and the conditions under which a run may resume in it.

::

    config.yaml      the merged settings
    base/            the model's config.json and the tokenizer; checkpoints contain only what is trained
    inputs.json      fingerprints of the examples and of the model that the run began with
    checkpoints/     train states (see jaxalign.checkpoint)
    metrics.jsonl    computed metrics; timings.jsonl contains times
    reference.npz    the reference's log-probs, where they are cached
    samples.json     answers before and after training
    budget.json      the figures before training that a budget refers to; within_budget/ the last state within it
    adapter/         the trained adapters in PEFT's layout, if there are any
    model/           the trained model in Hugging Face layout
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from jaxalign.errors import UserError
from jaxalign.models.config import ModelConfig, from_hf_config, to_hf_config
from jaxalign.paths import write_whole
from jaxalign.settings import describe_changes

SETTINGS, BASE, CHECKPOINTS, ADAPTER, MODEL = "config.yaml", "base", "checkpoints", "adapter", "model"
SAMPLES, REFERENCE, INPUTS = "samples.json", "reference.npz", "inputs.json"

# Settings that may change when a run resumes. None of them changes what is learned.
FREE = ("output", "log", "mesh", "train.resume", "train.keep", "train.checkpoint_every", "train.eval_every")


def check_resumable(directory: Path, wanted: dict[str, Any], resume: str) -> None:
    """Checks that a run in ``directory``, if there is one, can resume with these settings.

    Args:
        directory: The output directory.
        wanted: The settings now.
        resume: ``auto``, or ``never`` to refuse any earlier run.

    Raises:
        UserError: Naming the settings that differ.
    """
    has_checkpoint = any(path.name.isdigit() for path in (directory / CHECKPOINTS).glob("*"))
    # A run that its budget stopped at once has a model and settings, but no checkpoint.
    has_model = (directory / MODEL).exists() and (directory / SETTINGS).exists()
    if not has_checkpoint and not has_model:
        return
    if resume == "never":
        raise UserError(f"{directory} already contains a run. Set another output, or train.resume=auto to resume it.")
    if changes := describe_changes(read_settings(directory), wanted, _is_free):
        raise UserError(
            f"{directory} contains a run with other settings: {changes}. Set another output, or the same settings."
        )


def read_settings(directory: Path) -> dict[str, Any]:
    """Returns the settings that a run was started with.

    Raises:
        UserError: If the directory does not contain a run.
    """
    try:
        return dict(yaml.safe_load((directory / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{directory} does not contain a run: it has no readable {SETTINGS}.") from error


def write_settings(directory: Path, wanted: dict[str, Any]) -> None:
    """Writes the settings of a run."""
    write_whole(directory / SETTINGS, yaml.safe_dump(wanted, sort_keys=False))


def write_base(directory: Path, config: ModelConfig, tokenizer: Any) -> None:
    """Writes the architecture and the tokenizer, with which a checkpoint becomes a model again."""
    base = directory / BASE
    base.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(base)
    write_whole(base / "config.json", json.dumps(to_hf_config(config), indent=2))


def read_base(directory: Path) -> ModelConfig:
    """Returns the architecture of the model that a run trains."""
    try:
        return from_hf_config(json.loads((directory / BASE / "config.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{directory / BASE} has no readable config.json. Give a run's output.") from error


def check_inputs(directory: Path, inputs: dict[str, str], resuming: bool) -> None:
    """Writes the fingerprints of a new run's inputs, or checks those of a run that resumes.

    Args:
        directory: The run's output directory.
        inputs: Name of each input → its fingerprint.
        resuming: Whether the run resumes.

    Raises:
        UserError: Naming the first input that differs.
    """
    if not resuming:
        write_whole(directory / INPUTS, json.dumps(inputs, indent=2) + "\n")
        return
    began = read_inputs(directory)
    for name, fingerprint in inputs.items():
        if began.get(name) != fingerprint:
            raise UserError(
                f"{directory} contains a run with other inputs: {name} changed since it began. Set another output, or "
                "give the same inputs."
            )


def read_inputs(directory: Path) -> dict[str, str]:
    """Returns the fingerprints that `check_inputs` wrote.

    Raises:
        UserError: If they cannot be read.
    """
    try:
        return dict(json.loads((directory / INPUTS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{directory / INPUTS} cannot be read. Give a run's output.") from error


def write_samples(directory: Path, samples: dict[str, list[str]]) -> None:
    """Writes sampled answers: ``prompt``, ``before`` and, at the end, ``after``."""
    write_whole(directory / SAMPLES, json.dumps(samples, indent=2, ensure_ascii=False) + "\n")


def read_samples(directory: Path) -> dict[str, list[str]] | None:
    """Returns prompts and answers before training as `write_samples` wrote them; None if they cannot be read."""
    try:
        samples = json.loads((directory / SAMPLES).read_text(encoding="utf-8"))
        return {name: list(samples[name]) for name in ("prompt", "before")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)
