"""Examples for the commands that train or evaluate on them: read, split, tokenised."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rich.console import Console

from jaxalign.data.feedback import read_feedback
from jaxalign.data.records import Record, read_records, split_by_prompt
from jaxalign.data.shapes import choose_shapes
from jaxalign.data.tokenize import tokenize_completions, tokenize_sft
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.recipes.config import DataSection, KtoDataSection, SftDataSection, TrainSection

R = TypeVar("R", bound=Record)


def read_examples(kind: type[R], data: DataSection, seed: int, console: Console) -> tuple[list[R], list[R]]:
    """Records to train on and records held out, with a line about what was read.

    Raises:
        UserError: for a bad file or row, or a split that leaves nothing.
    """
    records = _read(kind, data, data.path, console)[: data.limit]
    if data.eval_path is not None:
        return records, _read(kind, data, data.eval_path, console)
    return split_by_prompt(records, holdout=data.holdout, seed=seed)


def _read(kind: type[R], data: DataSection, path: str, console: Console) -> list[R]:
    read: Callable[..., Any] = functools.partial(read_records, kind)
    if isinstance(data, KtoDataSection) and data.signals.fields:
        read = functools.partial(read_feedback, signals=data.signals)
    records, report = read(
        path,
        columns=data.columns,
        format=data.format,
        on_error=data.on_error,
        split=data.split,
        name=data.name,
        data_dir=data.data_dir,
    )
    console.print(f"{path}: {report}", markup=False)
    return records


def make_trees(
    records: Sequence[Record], tokenizer: Any, data: DataSection, purpose: str, console: Console
) -> tuple[list[Tree], dict[str, int]]:
    """Prompt trees of the records and counts of what was cut, with a line about it; no records, no trees.

    The counts are metrics: ``training/prompts_truncated`` and so on.
    """
    if not records:
        return [], {}
    tokenize: Callable[..., Any] = tokenize_completions
    if isinstance(data, SftDataSection):
        tokenize = functools.partial(tokenize_sft, loss_on=data.loss_on)
    trees, report = tokenize(
        records,
        tokenizer,
        max_length=data.max_length,
        max_completion_length=data.max_completion_length,
        template=data.template,
        on_error=data.on_error,
    )
    console.print(f"{purpose}: {report}", markup=False)
    counts = {"examples": report.examples, "tokens": report.tokens, "skipped": len(report.skipped)}
    counts |= {name: getattr(report, name) for name in ("prompts_truncated", "completions_truncated")}
    return trees, {f"{purpose.replace(' ', '_')}/{name}": count for name, count in counts.items()}


def batch_options(
    trees: list[Tree], held: list[Tree], train: TrainSection, row_devices: int
) -> tuple[dict[str, Any], int]:
    """What training and evaluation batches share (size, row shapes), and the steps of the run.

    Args:
        trees: to train on.
        held: to evaluate on.
        train: batch size, steps and row shapes.
        row_devices: devices that the rows of a microbatch are spread over.

    Raises:
        UserError: for numbers that make no batch.
    """
    rows = train.rows_per_microbatch or row_devices
    if rows % row_devices:
        raise UserError(
            f"train.rows_per_microbatch is {rows}; it must be a multiple of the mesh's data × fsdp = {row_devices}."
        )
    if train.row_lengths is None:
        shapes = choose_shapes([*trees, *held], batch_size=train.batch_size, rows_per_microbatch=rows)
    else:
        shapes = [(length, slots) for length in train.row_lengths for slots in (length // 2, length)]
        longest = max(map(len, [*trees, *held]))
        if longest > max(train.row_lengths):
            raise UserError(
                f"train.row_lengths is {list(train.row_lengths)}, and the longest example has {longest} tokens "
                "(prompt and all answers); allow longer rows, or lower data.max_length."
            )
    steps = train.steps if train.steps is not None else math.ceil(train.epochs * len(trees) / train.batch_size)
    if steps < 1:
        raise UserError(f"the run has {steps} steps; give train.steps or train.epochs that make 1 or more.")
    return {"batch_size": train.batch_size, "rows_per_microbatch": rows, "shapes": shapes}, steps
