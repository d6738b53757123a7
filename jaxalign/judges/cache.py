"""Answers kept on disk by the content of their request, each from the moment it arrived."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError


def request_key(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request's content, the same whatever the order of its fields.

    Args:
        request: what JSON can hold.

    Returns:
        64 hexadecimal digits.

    >>> request_key({"a": 1, "b": [2]}) == request_key({"b": [2], "a": 1}) != request_key({"a": 1, "b": [3]})
    True
    """
    text = json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Replies by request key in one SQLite file, which survives a kill; without a path it remembers nothing.

    Neither the request nor anything about who asked is stored. Used by the thread that writes; several runs may share
    the file.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Cache:
        if self.path is not None:
            place = Path(self.path).expanduser()
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                self._connection = sqlite3.connect(place, timeout=30, check_same_thread=False)
                with self._connection:
                    self._connection.execute(
                        "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, reply TEXT NOT NULL)"
                    )
            except (OSError, sqlite3.Error) as error:
                self.__exit__()
                raise UserError(f"{self.path}: cannot be used as a cache ({error}): name another file") from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, key: str, fields: Sequence[str]) -> dict[str, Any] | None:
        """The reply to a request, or None if there is none that has no other than these fields."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: not a cache of ours ({error}): name another file") from None
        try:
            found = None if row is None else json.loads(row[0])
        except (TypeError, ValueError):
            return None
        return found if isinstance(found, dict) and "text" in found and set(found) <= set(fields) else None

    def put(self, key: str, model: str, reply: Mapping[str, Any]) -> None:
        """Keeps a reply; it is on disk when this returns."""
        if self._connection is None:
            return
        try:
            with self._connection:
                self._connection.execute(
                    "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", (key, model, json.dumps(reply))
                )
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: the cache cannot be written ({error}): make room, or name another") from None
