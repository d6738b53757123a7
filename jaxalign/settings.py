"""Configuration sections that several packages read, checks of ranges, and settings as stored with a run."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxalign.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Settings of a model.

    Args:
        path: a Hugging Face directory, a .gguf file, a hub id, or package:file for a file of an installed package;
            empty if the model is passed to a recipe
        adapter: a directory of LoRA adapters for it, in PEFT's layout, to merge into it
        dtype: what matrix products compute in; parameters stay float32
        remat: activations kept for the backward pass: all (none), projections (dots) or layer inputs (full)
    """

    path: str = ""
    adapter: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "full"] = "dots"


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """Settings of the device mesh; the product is the number of devices used, and -1 takes all that remain.

    Args:
        data: rows of the batch
        fsdp: rows of the batch and slices of the parameters
        tensor: heads, hidden units and vocabulary
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class SourceSection:
    """Settings of a source of records.

    Args:
        path: a .jsonl, .json, .csv (or .gz of them) or .parquet file, a folder, a hub id, or package:file; empty
            if rows are passed to a recipe
        name: configuration of a hub data set
        data_dir: folder within a hub data set
        split: split of a folder or a hub data set
        format: shape of the rows; auto takes that of the first one
        columns: what fields are called in this file, as {prompt: question}
        template: the tokenizer's chat template is for chats and transcripts (auto), plain prompts too (always), never
        on_error: stop at the first bad row, or skip bad rows and report them
        limit: use the first so many records only
    """

    path: str = ""
    name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    format: Literal["auto", "text", "transcript", "chat", "instruction"] = "auto"
    columns: dict[str, str] | None = None
    template: Literal["auto", "always", "never"] = "auto"
    on_error: Literal["stop", "skip"] = "stop"
    limit: int | None = None

    @property
    def reading(self) -> dict[str, Any]:
        """The options of ``data.load.read_source``."""
        names = {"name": self.name, "data_dir": self.data_dir, "split": self.split}
        return {**names, "format": self.format, "columns": self.columns, "on_error": self.on_error}


def check_ranges(config: Any, ranges: Mapping[str, tuple[float, float]], prefix: str = "") -> None:
    """Raises for the first number that is not finite or outside its range; None is in every range, () in none.

    Args:
        config: a configuration, or a section of it.
        ranges: "section.key" → smallest and largest allowed value.
        prefix: path of the section, for the message.

    Raises:
        UserError: if a number is out of range; the message names the key, its value and the range.
    """
    for key, (low, high) in ranges.items():
        value = operator.attrgetter(key)(config)
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        if value == () or not all(low <= number <= high and math.isfinite(number) for number in numbers):
            limits = f"finite numbers, {low:g} or more" if high == math.inf else f"a number from {low:g} to {high:g}"
            raise UserError(f"{prefix}{key} is {list(value) if isinstance(value, tuple) else value}. Give {limits}.")


def plain_settings(config: Any) -> dict[str, Any]:
    """Returns a configuration as plain values, as a run stores it.

    >>> plain_settings(MeshSection(data=2))
    {'data': 2, 'fsdp': 1, 'tensor': 1}
    """
    # Through JSON, because YAML has no tuples.
    return json.loads(json.dumps(dataclasses.asdict(config)))


def describe_changes(before: Mapping[str, Any], after: Mapping[str, Any], is_free: Callable[[str], bool]) -> str:
    """Describes the settings that differ, or returns "" if none does.

    Args:
        before: The stored settings.
        after: The settings now.
        is_free: Whether a setting, by its dotted key, may differ.

    >>> describe_changes({"train": {"seed": 0}}, {"train": {"seed": 1}}, lambda key: False)
    'train.seed (was 0, now 1)'
    """
    was, now = flatten(before), flatten(after)
    changed = [key for key in sorted(was | now) if was.get(key) != now.get(key) and not is_free(key)]
    return ", ".join(f"{key} (was {was.get(key)}, now {now.get(key)})" for key in changed)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the leaves of nested settings by their dotted keys. A list is a leaf unless it contains sections.

    >>> flatten({"judge": {"name": "a"}, "panel": [{"name": "b"}], "lengths": [64, 128]})
    {'judge.name': 'a', 'panel.0.name': 'b', 'lengths': [64, 128]}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
            value = {str(i): part for i, part in enumerate(value)}
        nested = flatten(value) if isinstance(value, Mapping) else None
        leaves |= {key: value} if nested is None else {f"{key}.{name}": leaf for name, leaf in nested.items()}
    return leaves
