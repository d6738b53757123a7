"""The directory of a judging run: every verdict is on disk as soon as it is known, so an interrupted run resumes.

::

    config.yaml       the settings, and hashes of the files that say what is asked
    verdicts.jsonl    a line for each item, judge and principle
    cache.sqlite      replies of endpoints
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import yaml  # type: ignore[import-untyped]

from jaxalign.checkpoint import check_writable
from jaxalign.errors import UserError
from jaxalign.paths import resolve_path, write_whole
from jaxalign.reporting import Report, progress
from jaxalign.settings import describe_changes, plain_settings

T = TypeVar("T")
Name: TypeAlias = tuple[str, str, str | None]
SETTINGS, VERDICTS, CACHE = "config.yaml", "verdicts.jsonl", "cache.sqlite"
# Settings that may change between a run and its resumption, because they change no verdict. ("decide" is the former
# name of decide_by.)
FREE: tuple[str, ...] = ("output", "save_every", "write", "decide_by", "decide", "threshold")
FREE += ("data.limit", "data.on_error", "data.path")
ENDPOINT_FREE = ("concurrency", "requests_per_minute", "timeout", "retries", "backoff", "cache", "key_env")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run of judges returns.

    Attributes:
        rows: The rows to train on, for the data layer.
        counts: How many items had each outcome.
        file: The file with the rows.
    """

    rows: list[dict[str, Any]]
    counts: Counter[str]
    file: Path


class Journal:
    """Lines of JSON in one file, by (key, judge, principle). Of two lines with one name the later one counts.

    Args:
        path: The file. An incomplete last line is removed.
        settings: Settings of the run.

    Raises:
        UserError: If the file cannot be read or contains something else.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.output = path.parent
        self.settings = dict(settings)
        self.lines: dict[Name, dict[str, Any]] = {}
        try:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):  # the run was killed while it wrote
                os.truncate(path, len(whole))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                line = json.loads(text)
                self.lines[line["key"], line["judge"], line["principle"]] = {"error": None, **line}
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}, row {number}: not a verdict. Fix the row or give another output.") from None

    def write_settings(self) -> None:
        """Writes the settings into the run's directory."""
        write_whole(self.output / SETTINGS, yaml.safe_dump(self.settings, sort_keys=False))

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes rows as lines of JSON into the run's directory, replacing the file, and returns its path."""
        file = self.output / name
        write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return file

    def is_done(self, judge: str, key: str, principle: str | None) -> bool:
        """Returns whether there is a verdict or a failed one; a question without a reply is not done."""
        line = self.lines.get((key, judge, principle))
        return line is not None and line["error"] is None

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Stores lines; they are on disk when this returns.

        Raises:
            UserError: If they cannot be written.
        """
        new = [dict(line) for line in lines]
        if not new:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(text.encode("utf-8", errors="replace"))  # a model may write half a character
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            what = f"{self.path}: it cannot be written ({error.strerror})"
            raise UserError(f"{what}. Free some space, or give another output.") from None
        for line in new:
            self.lines[line["key"], line["judge"], line["principle"]] = line

    def extend(
        self, todo: Sequence[T], judge: Callable[[Sequence[T]], Iterable[Mapping[str, Any]]], every: int, report: Report
    ) -> None:
        """Judges ``every`` items at a time and stores their lines.

        Raises:
            KeyboardInterrupt: When interrupted, with a message about what is stored.
        """
        chunks = [todo[start : start + every] for start in range(0, len(todo), every)]
        try:
            for chunk in progress(chunks, "chunks", len(chunks), report):
                self.add(judge(chunk))
        except KeyboardInterrupt:
            stored = f"{len(self.lines)} verdicts are stored. Rerun with the same settings to resume"
            raise KeyboardInterrupt(stored) from None


def open_journal(config: Any, files: Mapping[str, str]) -> Journal:
    """Opens the verdicts of a run. Nothing is written.

    Args:
        config: Settings of the run, with ``output``.
        files: Names and paths of the files that say what is asked. Their hashes are stored with the settings.

    Raises:
        UserError: If the directory cannot be written, a file cannot be read, or the directory contains verdicts that
            other settings gave. The message names the settings.
    """
    output = Path(config.output).expanduser()
    check_writable(output)
    hashes = {}
    for name, path in files.items():
        try:
            hashes[name] = hashlib.sha256(resolve_path(path).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
    settings = {**plain_settings(config), "asked": hashes}
    if (output / VERDICTS).exists():
        try:
            before = dict(yaml.safe_load((output / SETTINGS).read_text(encoding="utf-8")))
        except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{output}: it has verdicts and no readable {SETTINGS}. Give another output.") from error
        if changes := describe_changes(before, settings, _is_free):
            raise UserError(f"{output}: its verdicts have other settings: {changes}. Give another output, or these.")
    return Journal(output / VERDICTS, settings)


def _is_free(key: str) -> bool:
    return key in FREE or (".endpoint." in key and key.rpartition(".")[2] in ENDPOINT_FREE)
