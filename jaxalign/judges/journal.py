"""Verdicts on disk, each from the moment it was had, so that a run that is stopped goes on and loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from jaxalign.errors import UserError

Name: TypeAlias = tuple[str, str, str | None]


class Journal:
    """Lines of JSON in one file, by (key, judge, principle); of two with the same name the later one counts.

    Args:
        path: the file; a last line that a kill cut off is taken away.

    Raises:
        UserError: if the file cannot be read or holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Name, dict[str, Any]] = {}
        try:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.truncate(path, len(whole))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): check the path") from None
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                found = json.loads(line)
                self.lines[found["key"], found["judge"], found["principle"]] = {"error": None, **found}
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}, row {number}: not a verdict: mend the row or give another output") from None

    def is_done(self, key: str, judge: str, principle: str | None) -> bool:
        """Whether there is a verdict, or a failure to give one; what was never answered is not done."""
        found = self.lines.get((key, judge, principle))
        return found is not None and found["error"] is None

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Keeps lines; they are on disk when this returns.

        Raises:
            UserError: if they cannot be written.
        """
        kept = [dict(line) for line in lines]
        if not kept:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(text.encode("utf-8", errors="replace"))  # a model may write half a character
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path}: it cannot be written ({error.strerror}): make room, or choose another"
            ) from None
        for line in kept:
            self.lines[line["key"], line["judge"], line["principle"]] = line
