"""Finds a model's files: a directory, a .gguf file, a file inside an installed package, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from jaxalign.errors import UserError
from jaxalign.paths import resolve_path

# Files that rebuild model and tokenizer, without the further copies of the weights in some repositories.
_SMALL = ["*.json", "*.jinja", "tokenizer.model"]
_UNWANTED = ["original/*", "onnx/*", "consolidated*"]


def resolve(path: str | Path, *, weights: bool = True) -> Path:
    """Returns the local directory or .gguf file of ``path``; a hub id (``owner/name``) is downloaded.

    Args:
        path: a directory, a .gguf file, ``package:file``, or a hub id.
        weights: whether to download the weights too.

    Raises:
        UserError: if the path exists neither here nor on the hub, or the hub cannot be reached.
    """
    place = resolve_path(path)
    try:
        is_folder, is_file = place.is_dir(), place.is_file()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and its permissions.") from error
    if is_folder or (place.suffix == ".gguf" and is_file):
        return place
    if is_file:
        raise UserError(f"{path}: not a model. Give a directory with config.json and safetensors, or a .gguf file.")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path)) or place.suffix == ".gguf":
        raise UserError(
            f"{path}: no such model. Give a directory, a .gguf file, package:file, or a hub id such as owner/name."
        )
    wanted = [*_SMALL, "*.safetensors"] if weights else _SMALL
    try:
        return Path(huggingface_hub.snapshot_download(str(path), allow_patterns=wanted, ignore_patterns=_UNWANTED))
    except (OSError, ValueError) as error:  # huggingface_hub's errors derive from these
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a local directory, and the hub did not provide it: {reason}") from error
