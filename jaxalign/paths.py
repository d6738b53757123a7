"""Paths as users write them (a file, a folder, ``package:file``), and atomic writes."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from jaxalign.errors import UserError


def resolve_path(path: str | Path) -> Path:
    """Returns a path, with ``~`` expanded and ``package:file`` looked up in the installed package.

    The package is not imported.

    Raises:
        UserError: if the package is not installed.
    """
    match = re.fullmatch(r"([A-Za-z_][\w.]+):([^/\\:].*)", str(path))  # two letters or more: C:\x is a Windows drive
    if not match:
        return Path(path).expanduser()
    package, file = match.groups()
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{path}: the package {package!r} is not installed. Install it, or give the path of a file.")
    return Path(next(iter(spec.submodule_search_locations))) / file


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: under another name, then renamed. Readers see the old content or the new one.

    Args:
        path: the file; its folder is created if it does not exist.
        content: text, written as UTF-8, or bytes.

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
            f"{path} cannot be written ({error.strerror}). Free some space, or choose another path."
        ) from error
