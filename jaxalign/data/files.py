"""Reads rows of files, folders, the hub and memory, with file and number, so that errors can name them.

Line files are read here and not by ``datasets``: its errors name neither line nor field, and it rejects a whole file
for one bad row. ``datasets`` reads Parquet files, saved data sets and the hub.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np

from jaxalign.errors import UserError, first_line
from jaxalign.paths import resolve_path

_SURROGATES = re.compile("[\ud800-\udfff]")
Stream: TypeAlias = IO[bytes] | gzip.GzipFile
# A path, or rows in memory: a list of dicts or a ``datasets.Dataset``.
Source: TypeAlias = str | Path | Iterable[Mapping[str, Any]]
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


class Problem(Exception):
    """What is wrong with a row. Parsers raise it, and readers turn it into an error or a skipped row.

    Args:
        kind: A short kind for counts.
        text: What is wrong and what to do. It begins with a small letter, because a place precedes it, and has no final
            period.
    """

    def __init__(self, kind: str, text: str):
        super().__init__(kind, text)
        self.kind, self.text = kind, text


@contextlib.contextmanager
def located(place: str, advice: str = "") -> Iterator[None]:
    """Turns a :class:`Problem` into an error that names a place.

    >>> with located("a.jsonl, row 3"):
    ...     raise Problem("empty text", "field 'text' is empty. Remove the row")
    Traceback (most recent call last):
    jaxalign.errors.UserError: a.jsonl, row 3: field 'text' is empty. Remove the row.
    """
    try:
        yield
    except Problem as problem:
        raise UserError(f"{place}: {problem.text}.{advice}") from None


class Row(NamedTuple):
    """One row of a source.

    Attributes:
        file: The path, or the name of rows in memory.
        number: The number from 1; in line files, the number of the line.
        value: The row, or a problem if it cannot be read.
    """

    file: str
    number: int
    value: dict[str, Any] | Problem

    @property
    def place(self) -> str:
        """File and number, for error messages."""
        return f"{self.file}, row {self.number}"

    @property
    def checked(self) -> dict[str, Any]:
        """The row. Raises its :class:`Problem` if it cannot be read."""
        if isinstance(self.value, Problem):
            raise self.value
        return self.value


def read_rows(
    source: Source,
    *,
    split: str = "train",
    name: str | None = None,
    data_dir: str | None = None,
    streaming: bool = False,
    rows_name: str = "rows",
) -> Iterator[Row]:
    """Yields the rows of a file, a folder, a data set on the hub, or a list in memory.

    Files may end in .jsonl, .json, .csv (each also with .gz) or .parquet.

    Args:
        source: A file, folder, hub id or ``package:file``; or rows as a list of dicts or a ``datasets.Dataset``.
        split: The split of a folder or hub data set. Single files have none.
        name: The configuration of a hub data set.
        data_dir: A folder within a hub data set.
        streaming: Whether to read a hub data set without storing it first.
        rows_name: The name of rows in memory, for error messages: they have no file.

    Raises:
        UserError: If the source does not exist or cannot be read at all. A broken row does not raise: its value is a
            :class:`Problem`.

    >>> [row.number for row in read_rows([{"prompt": "Why?"}, {"prompt": "How?"}])]
    [1, 2]
    """
    if not isinstance(source, str | Path):
        yield from _memory(source, rows_name)
        return
    place = resolve_path(source)
    try:
        yield from _rows(source, place, split, name=name, data_dir=data_dir, streaming=streaming)
    except OSError as error:
        raise UserError(
            f"{error.filename or source}: the path cannot be read ({error.strerror or error}). Check it and its "
            "permissions."
        ) from None


def source_name(source: Source, rows_name: str = "rows") -> str:
    """Returns the name of a source in reports and error messages: its path, or ``rows_name``."""
    return str(source) if isinstance(source, str | Path) else rows_name


def _memory(rows: Iterable[Any], rows_name: str) -> Iterator[Row]:
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        kind = type(rows).__name__
        raise UserError(f"{rows_name} is of type {kind}. Give a list of dicts or a datasets.Dataset (one split).")
    for number, row in enumerate(rows, start=1):
        yield Row(rows_name, number, _memory_row(row))


def _memory_row(row: Any) -> dict[str, Any] | Problem:
    if not isinstance(row, Mapping) or not all(isinstance(field, str) for field in row):
        return Problem("not a dict", f"the row is of type {type(row).__name__}. Give a dict with strings as keys")
    # The checks of fields know Python's scalars only, and data sets in memory often contain NumPy's.
    value = {field: part.item() if isinstance(part, np.generic) else part for field, part in row.items()}
    try:
        return value if _has_whole_characters(value) else _half_character()
    except (ValueError, RecursionError):
        return Problem("nested too deeply", "the row contains itself, or is nested too deeply. Give plain values")


def _rows(path: str | Path, place: Path, split: str, **hub: Any) -> Iterator[Row]:
    if place.is_dir():
        within = place / (hub["data_dir"] or "")
        if not within.is_dir():
            raise UserError(f"{path}: the folder {hub['data_dir']!r} does not exist in it. Check data_dir.")
        yield from _folder(within, split)
    elif place.exists():
        yield from _file(place)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path)) and not str(path).endswith((*ENDINGS, ".gz")):
        where = "/".join(filter(None, (str(path), hub["data_dir"])))
        yield from _through_datasets(where, str(path), split=split, **hub)
    else:
        raise UserError(f"{path}: the file does not exist. Check the path (relative paths start at {Path.cwd()}).")


def _file(path: Path) -> Iterator[Row]:
    ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    readers = {"jsonl": _json_lines, "json": _json, "csv": _csv}
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty. Give a file with at least one row.")
    if ending == "parquet":
        _check_parquet(path)
        yield from _through_datasets(path, "parquet", data_files=str(path), split="train", streaming=True)
        return
    if ending not in readers:
        raise UserError(
            f"{path}: unknown kind of file. Its name must end in {', '.join(ENDINGS)}, or in .gz after one of them."
        )
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            yield from readers[ending](path, stream)
    except EOFError:
        raise UserError(f"{path}: the gzip file ends early. It is truncated, so fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a sound gzip file ({error}). Fetch it again, or rename it.") from None


def _check_parquet(path: Path) -> None:
    """Raises for what ``datasets`` reports badly: other content, a damaged file, no rows, or a column twice."""
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        about = pyarrow.parquet.read_metadata(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path}: not a sound Parquet file ({first_line(error)}). Fetch it again, or rename it."
        ) from None
    if about.num_rows == 0:
        raise UserError(f"{path}: the file has no rows. Give a file with at least one row.")
    names = about.schema.to_arrow_schema().names
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: column {min(repeated)!r} appears more than once. Rename one of them.")


def _json_lines(path: Path, stream: Stream) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            yield Row(str(path), number, _parse(line))


def _json(path: Path, stream: Stream) -> Iterator[Row]:
    """Yields the rows of a .json file, which contains a list of rows or one row per line."""
    content = stream.read().removeprefix(codecs.BOM_UTF8)
    if not content.lstrip().startswith(b"["):
        yield from _json_lines(path, io.BytesIO(content))
        return
    try:
        rows = _loads(content.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        where = f" ({error.msg}, line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}: the file is not JSON{where}. Correct it, or write .jsonl instead.") from None
    for number, row in enumerate(rows, start=1):
        yield Row(str(path), number, _check_object(row, content))


def _has_whole_characters(value: Any) -> bool:
    """Returns whether a value is free of half surrogate pairs, which JSON can spell and tokenizers refuse."""
    try:
        json.dumps(value, ensure_ascii=False, default=repr, skipkeys=True).encode()
    except UnicodeEncodeError:
        return False
    return True


def _half_character() -> Problem:
    return Problem(
        "half a character", "the row has half a surrogate pair (such as \\ud83d alone). Cut texts between characters"
    )


def _parse(line: bytes) -> dict[str, Any] | Problem:
    try:
        return _check_object(_loads(line.decode("utf-8-sig")), line)
    except UnicodeDecodeError as error:
        return Problem("bad UTF-8", f"the row is not UTF-8 (byte {error.start + 1} of the line). Save it as UTF-8")
    except json.JSONDecodeError as error:
        return Problem(
            "not JSON", f"the row is not JSON ({error.msg}, column {error.colno}). Write one JSON object on every line"
        )
    except (RecursionError, ValueError) as error:  # a ValueError: a number of thousands of digits
        what = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON ({first_line(error)})"
        return Problem("not JSON", f"the row is {what}. Write one JSON object on every line")


class _DuplicateFields(dict[str, Any]):
    """An object that has a field twice: Python's JSON parser would silently use the last one."""

    field = ""


def _loads(text: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        doubled = _DuplicateFields(value)
        doubled.field = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return doubled

    return json.loads(text, object_pairs_hook=build)


def _check_object(row: Any, content: bytes) -> dict[str, Any] | Problem:
    # A search of the file's content saves the check of most values.
    if b"\\ud" in content.lower() and not _has_whole_characters(row):
        return _half_character()
    if isinstance(row, _DuplicateFields):
        return Problem("doubled field", f"the row has the field {row.field!r} more than once. Rename or remove one")
    if isinstance(row, dict):
        return row
    return Problem("not an object", f"the row is a JSON {type(row).__name__}. Write an object with named fields")


def _csv(path: Path, stream: Stream) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is less than a long conversation
    # Bytes that are not UTF-8 become surrogates, which sound text does not contain, so that their row can be named.
    lines = (line.decode("utf-8-sig" if n == 0 else "utf-8", "surrogateescape") for n, line in enumerate(stream))
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
            fault = None
        except csv.Error as error:
            cells, fault = [], Problem("not CSV", f"the row is not CSV ({error}). Quote cells that contain commas")
        if cells is None:
            return
        if not all(cell.isascii() or _SURROGATES.search(cell) is None for cell in cells):
            fault = Problem("bad UTF-8", "the row is not UTF-8. Save the file as UTF-8")
        if header is None:
            if fault is not None:
                raise UserError(f"{path}, row {line}: {fault.text}.")
            repeated = {column for column in cells if cells.count(column) > 1}
            if repeated:
                raise UserError(
                    f"{path}: column {min(repeated)!r} appears more than once in the header. Rename one of them."
                )
            header = cells
        elif fault is not None:
            yield Row(str(path), line, fault)
        elif len(cells) == len(header):
            yield Row(str(path), line, dict(zip(header, cells, strict=True)))
        elif cells:
            text = f"the row has {len(cells)} cells and the header has {len(header)}. Quote cells that contain commas"
            yield Row(str(path), line, Problem("wrong number of cells", text))


def _folder(path: Path, split: str) -> Iterator[Row]:
    import datasets

    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():  # written by save_to_disk
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise UserError(f"{path}: split {split!r} does not exist. Set split to {' or '.join(saved)}.")
            saved = saved[split]
        yield from _number(str(path), saved)
        return
    try:  # which files belong to which split, by the hub's naming rules
        files = datasets.load_dataset_builder(str(path)).config.data_files or {}
    except Exception as error:
        raise UserError(f"{path}: a folder without readable data files ({first_line(error)}). Check it.") from None
    if split not in files:
        raise UserError(f"{path}: files of split {split!r} do not exist. Set split to {' or '.join(map(str, files))}.")
    for file in sorted(files[split]):
        yield from _file(Path(file))


def _through_datasets(place: str | Path, identifier: str, **options: Any) -> Iterator[Row]:
    import datasets

    try:
        yield from _number(str(place), datasets.load_dataset(identifier, **options))
    except Exception as error:  # `datasets` and the libraries below it have no common exception type
        what = "a damaged Parquet file" if identifier == "parquet" else "neither a local file nor a data set on the hub"
        raise UserError(f"{place}: {what} ({first_line(error)}). Check the name, or give a local file.") from None


def _number(place: str, rows: Any) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield Row(place, number, dict(row))
