"""Stores tokenised trees on disk under a hash of everything they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.kinds import Record
from jaxalign.data.records import BadRow
from jaxalign.data.tokenize import TokenizeReport
from jaxalign.data.trees import Tree
from jaxalign.paths import write_whole

# Version of the file layout and of tokenising. Increase it when either changes.
VERSION = 2


def cached_trees(
    folder: str | Path,
    tokenize: Callable[..., tuple[list[Tree], TokenizeReport]],
    records: Sequence[Record],
    tokenizer: Any,
    **options: Any,
) -> tuple[list[Tree], TokenizeReport]:
    """Returns ``tokenize(records, tokenizer, **options)``, from a file if it exists.

    The file's name is a hash of the records, the tokenizer with its chat template, the options and the function. So
    files never go out of date, and old ones may be deleted at any time. A damaged file is written again.

    Args:
        folder: Where files are stored.
        tokenize: A function of :mod:`jaxalign.data.tokenize` that returns trees.
        records: Its records.
        tokenizer: A ``transformers`` tokenizer.
        **options: Its options.

    Returns:
        The trees, and the report on tokenising.

    Raises:
        UserError: What ``tokenize`` raises, or if the file cannot be written.
    """
    file = Path(folder) / f"{content_key(tokenize.__name__, records, tokenizer, options)}.npz"
    try:
        return _load(file)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        trees, report = tokenize(records, tokenizer, **options)
        write_whole(file, _dump(trees, report))
        return trees, report


def content_key(function: str, records: Sequence[Record], tokenizer: Any, options: Any) -> str:
    """Returns a hash of everything that determines the trees and the report: file names and row numbers too."""
    digest = hashlib.sha256(f"{VERSION} {function} {sorted(options.items())!r}".encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(repr((tokenizer.chat_template, sorted(tokenizer.special_tokens_map.items()))).encode())
    for record in records:
        content = [getattr(record, field.name) for field in dataclasses.fields(record)]  # type: ignore[arg-type]
        digest.update(repr(content).encode())
    return digest.hexdigest()[:32]


def _dump(trees: Sequence[Tree], report: TokenizeReport) -> bytes:
    completions = [completion for tree in trees for completion in tree.completions]

    def whole(tree: Tree) -> np.ndarray:
        return np.zeros(0, np.int32) if tree.cut_from is None else tree.cut_from

    arrays = {
        "prompts": np.concatenate([tree.prompt for tree in trees]),
        "prompt_sizes": np.array([len(tree.prompt) for tree in trees]),
        "whole": np.concatenate([whole(tree) for tree in trees]),
        "whole_sizes": np.array([len(whole(tree)) for tree in trees]),
        "counts": np.array([len(tree.completions) for tree in trees]),
        "completions": np.concatenate(completions),
        "completion_sizes": np.array([len(completion) for completion in completions]),
        "masks": np.concatenate([mask for tree in trees for mask in tree.masks]),
        "report": np.array(json.dumps(dataclasses.asdict(report))),
    }
    for name in trees[0].extras:
        arrays[f"extra {name}"] = np.concatenate([tree.extras[name] for tree in trees])
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _load(file: Path) -> tuple[list[Tree], TokenizeReport]:
    with np.load(file) as stored:
        arrays = dict(stored)
    fields = json.loads(str(arrays.pop("report")))
    report = TokenizeReport(**{**fields, "skipped": tuple(BadRow(*bad) for bad in fields["skipped"])})
    ends = np.cumsum(arrays["counts"])[:-1]
    prompts = np.split(arrays["prompts"], np.cumsum(arrays["prompt_sizes"])[:-1])
    whole = np.split(arrays["whole"], np.cumsum(arrays["whole_sizes"])[:-1])
    cuts = np.cumsum(arrays["completion_sizes"])[:-1]
    completions, masks = (np.split(arrays[name], cuts) for name in ("completions", "masks"))
    extras = {
        name.removeprefix("extra "): np.split(array, ends)
        for name, array in arrays.items()
        if name.startswith("extra ")
    }
    trees = []
    start = 0
    for i, (prompt, count) in enumerate(zip(prompts, arrays["counts"], strict=True)):
        own = slice(start, start + int(count))
        values = {name: column[i] for name, column in extras.items()}
        cut_from = whole[i] if len(whole[i]) else None
        trees.append(Tree(prompt, tuple(completions[own]), tuple(masks[own]), values, cut_from=cut_from))
        start += int(count)
    return trees, report
