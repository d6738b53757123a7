"""Paths as users write them (a file, a folder, ``package:file``), and files that are written whole or not at all."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from jaxalign.errors import UserError


def resolve_path(path: str | Path) -> Path:
    """The path meant by ``path``; ``package:file`` is looked up in the installed package, without importing it.

    Raises:
        UserError: if the package is not installed.
    """
    match = re.fullmatch(r"([A-Za-z_][\w.]+):([^/\\:].*)", str(path))  # two letters at least: C:\x is a Windows drive
    if not match:
        return Path(path).expanduser()
    package, file = match.groups()
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{path}: there is no installed package {package!r}: install it, or give the path of a file")
    return Path(next(iter(spec.submodule_search_locations))) / file


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under another name and rename it: whoever looks, and whenever this stops, finds the old or the new.

    Raises:
        UserError: if it cannot be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except OSError as error:
        raise UserError(
            f"{path}: it cannot be written ({error.strerror}): make room, or choose another place"
        ) from error
