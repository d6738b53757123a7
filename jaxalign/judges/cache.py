"""Replies on disk by the content of their request, stored as soon as they arrive."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.errors import UserError


class Cache:
    """Replies by request key in one SQLite file, which survives a kill. Without a path it stores nothing.

    The file contains neither the request nor anything about who asked. Several runs may share it.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Cache:
        if self.path is not None:
            file = Path(self.path).expanduser()
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                # Without an isolation level each statement is a transaction of its own.
                self._connection = sqlite3.connect(file, timeout=30, isolation_level=None, check_same_thread=False)
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, model TEXT, reply TEXT NOT NULL)"
                )
            except (OSError, sqlite3.Error) as error:
                self.__exit__()
                raise UserError(f"{self.path}: it cannot be used as a cache ({error}). Give another file.") from None
        return self

    def __exit__(self, *error: object) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def get(self, key: str, fields: Sequence[str]) -> dict[str, Any] | None:
        """Returns the stored reply to a request, or None. A reply with other fields than these does not count."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
            reply = None if row is None else json.loads(row[0])
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: it is not a cache of replies ({error}). Give another file.") from None
        except (TypeError, ValueError):
            return None
        return reply if isinstance(reply, dict) and "text" in reply and set(reply) <= set(fields) else None

    def put(self, key: str, model: str, reply: Mapping[str, Any]) -> None:
        """Stores a reply. It is on disk when this returns."""
        if self._connection is None:
            return
        try:
            row = (key, model, json.dumps(reply))
            self._connection.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:
            raise UserError(f"{self.path}: it cannot be written ({error}). Free some space, or give another.") from None
