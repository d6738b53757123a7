"""What can be told of a suite before anything is measured: mistakes, the names of its figures, its files."""

from __future__ import annotations

import hashlib
from typing import Any

from jaxalign.data.records import Demonstration, read_records
from jaxalign.data.shapes import LENGTHS
from jaxalign.errors import UserError
from jaxalign.evals.choices import check_template, choice_trees
from jaxalign.evals.config import RANGES, AnswerTask, SuiteSection
from jaxalign.evals.suite import (
    Subject,
    is_safe,
    prompt_ids,
    prompt_of,
    read_choices,
    read_items,
)
from jaxalign.paths import resolve_path
from jaxalign.rewards import compute_rewards
from jaxalign.rewards.functions import FUNCTIONS, load_function
from jaxalign.settings import check_ranges


def check_suite(suite: SuiteSection) -> None:
    """Raise for a suite that measures nothing, names that clash, or a file that a task cannot use: before the work."""
    names = [*suite.perplexity, *suite.choices, *suite.answers]
    if not names:
        raise UserError("suite: there is no task; give suite.perplexity, suite.choices or suite.answers.")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"suite: {', '.join(sorted(twice))} names two tasks; give each a name of its own.")
    for kind, tasks in (("perplexity", suite.perplexity), ("choices", suite.choices), ("answers", suite.answers)):
        for name, each in tasks.items():
            check_ranges(each, RANGES[kind], f"suite.{kind}.{name}.")
    for texts in suite.perplexity.values():
        read_records(Demonstration, texts.path)
    for choices in suite.choices.values():
        read_choices(choices)
        check_template(choices.template)
    for name, task in suite.answers.items():
        for row in read_items(task.path, task.limit):
            prompt_of(row)
            if task.safe is not None:
                is_safe(row, task.safe)
        if task.score is not None:
            check_score(name, task)
    known = figures_of(suite, of_two=True)
    for name in (*suite.capabilities, *suite.gains):
        if name not in known:
            raise UserError(f"suite: {name} is no figure of it; those are {', '.join(known)}.")


def check_score(name: str, task: AnswerTask) -> None:
    """Raise for a score that there is not, or one of ours for rows without what it needs."""
    assert task.score is not None
    score = load_function(task.score)
    if task.score in FUNCTIONS:  # one's own may be dear, or not made for empty answers
        rows = read_items(task.path, task.limit)
        values: list[dict[str, Any]] = [row.value for row in rows]  # type: ignore[misc]
        try:
            compute_rewards(score, [prompt_of(row) for row in rows], [""] * len(rows), values, name=name)
        except UserError as error:
            raise UserError(f"{task.path}: {error}") from None


def check_lengths(suite: SuiteSection, subject: Subject) -> None:
    """Raise for an item that is longer than the model takes: before the work. Texts are cut (``max_length``)."""
    longest = min(LENGTHS[-1], subject.model.config.max_position_embeddings)
    needs: list[tuple[str, str, int, int]] = []
    for name, choices in suite.choices.items():
        trees = choice_trees(subject.tokenizer, read_choices(choices), choices.template)
        for number, tree in enumerate(trees, start=1):
            needs.append((name, choices.path, number, len(tree.prompt) + max(map(len, tree.completions))))
    for name, task in suite.answers.items():
        rows = read_items(task.path, task.limit)
        for row, prompt in zip(rows, prompt_ids(rows, subject), strict=True):
            needs.append((name, task.path, row.number, len(prompt) + task.max_new_tokens))
    for name, path, number, tokens in needs:
        if tokens > longest:
            raise UserError(
                f"{name}: row {number} of {path} needs {tokens} tokens (answer included), the model takes {longest}: "
                "leave it out"
            )


def figures_of(suite: SuiteSection, *, of_two: bool) -> list[str]:
    """The names of a suite's figures, with those that only two models have, or without."""
    found = [f"{name}/perplexity" for name in suite.perplexity]
    for name in suite.choices:
        found += [f"{name}/{what}" for what in ("accuracy", "accuracy_per_byte", "brier")]
    for name, task in suite.answers.items():
        sampled, scored = task.temperature == 1, task.reward is not None
        found += [f"{name}/words", f"{name}/distinct_2"]
        found += [f"{name}/entropy_per_token"] * sampled
        safe = {is_safe(row, task.safe) for row in read_items(task.path, task.limit)} if task.safe is not None else ()
        found += [f"{name}/over_refusal"] * (True in safe) + [f"{name}/unsafe_answered"] * (False in safe)
        found += [f"{name}/score"] * (task.score is not None) + [f"{name}/reward"] * scored
        found += [f"{name}/kl", f"{name}/kl_per_token"] * (sampled and of_two)
        found += [f"{name}/win_rate"] * (scored and of_two)
    return found


def digests(suite: SuiteSection) -> dict[str, str]:
    """The suite's files by a digest of what is in them; hub ids and directories are not looked into."""
    paths = {task.path for task in suite.perplexity.values()} | {task.path for task in suite.answers.values()}
    for task in suite.choices.values():
        paths |= {task.path} | ({task.labels} if task.labels is not None else set())
    files = {path: resolve_path(path) for path in sorted(paths)}
    return {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items() if file.is_file()}
