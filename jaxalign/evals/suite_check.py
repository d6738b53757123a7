"""Checks of a suite before the work starts: its files, the names of its figures, the lengths of its items."""

from __future__ import annotations

import hashlib
from typing import Any

from jaxalign.data.kinds import Demonstration
from jaxalign.data.records import read_records
from jaxalign.data.shapes import LENGTHS
from jaxalign.errors import UserError
from jaxalign.evals.choices import check_template, choice_trees
from jaxalign.evals.config import RANGES, AnswerTask, SuiteSection
from jaxalign.evals.items import Subject, prompt_ids, read_choices, read_items, read_prompt, read_safety, score_answers
from jaxalign.paths import resolve_path
from jaxalign.rewards.functions import FUNCTIONS, load_function
from jaxalign.settings import check_ranges


def check_suite(suite: SuiteSection) -> None:
    """Raises UserError for a suite without tasks, names used twice, unknown figures, or a file that cannot be used."""
    names = [*suite.perplexity, *suite.choices, *suite.answers]
    if not names:
        raise UserError("The suite has no tasks. Give suite.perplexity, suite.choices or suite.answers.")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"suite: {', '.join(sorted(twice))} names two tasks. Give each task its own name.")
    for kind, tasks in (("perplexity", suite.perplexity), ("choices", suite.choices), ("answers", suite.answers)):
        for name, task in tasks.items():
            check_ranges(task, RANGES[kind], f"suite.{kind}.{name}.")
    for texts in suite.perplexity.values():
        read_records(Demonstration, texts.path)
    for choices in suite.choices.values():
        read_choices(choices)
        check_template(choices.template)
    for name, answers in suite.answers.items():
        for row in read_items(answers.path, answers.limit):
            read_prompt(row)
            if answers.safe is not None:
                read_safety(row, answers.safe)
        if answers.score is not None:
            check_score(name, answers, answers.score)
    known = figure_names(suite, of_two=True)
    for name in (*suite.capabilities, *suite.gains):
        if name not in known:
            raise UserError(f"suite: unknown figure {name}. Choose among {', '.join(known)}.")


def check_score(name: str, task: AnswerTask, score: str) -> None:
    """Raises UserError for an unknown score, or for rows without the fields that a built-in score reads."""
    function = load_function(score)
    if score in FUNCTIONS:  # a user's function may be expensive, or not accept empty answers
        rows = read_items(task.path, task.limit)
        try:
            score_answers(name, function, rows, [""] * len(rows))
        except UserError as error:
            raise UserError(f"{task.path}: {error}") from None


def check_lengths(suite: SuiteSection, subject: Subject) -> None:
    """Raises UserError for an item that is longer than the model takes. Texts are cut instead (``max_length``)."""
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
                f"{name}: {path}, row {number} needs {tokens} tokens with the answer, and the model takes {longest}. "
                "Remove the row."
            )


def figure_names(suite: SuiteSection, *, of_two: bool) -> list[str]:
    """Returns the names of a suite's figures.

    Args:
        suite: the suite.
        of_two: whether to include the figures that compare two models.
    """
    names = [f"{name}/perplexity" for name in suite.perplexity]
    for name in suite.choices:
        names += [f"{name}/{what}" for what in ("accuracy", "accuracy_per_byte", "brier")]
    for name, task in suite.answers.items():
        sampled, scored = task.temperature == 1, task.reward is not None
        names += [f"{name}/words", f"{name}/distinct_2"]
        names += [f"{name}/entropy_per_token"] * sampled
        if task.safe is not None:
            safe = {read_safety(row, task.safe) for row in read_items(task.path, task.limit)}
            names += [f"{name}/over_refusal"] * (True in safe) + [f"{name}/unsafe_answered"] * (False in safe)
        names += [f"{name}/score"] * (task.score is not None) + [f"{name}/reward"] * scored
        names += [f"{name}/kl", f"{name}/kl_per_token"] * (sampled and of_two)
        names += [f"{name}/win_rate"] * (scored and of_two)
    return names


def file_digests(suite: SuiteSection) -> dict[str, str]:
    """Returns the SHA-256 digests of a suite's files by path. Hub ids and directories are omitted."""
    tasks: list[Any] = [*suite.perplexity.values(), *suite.choices.values(), *suite.answers.values()]
    labels = {task.labels for task in suite.choices.values() if task.labels is not None}
    files = {path: resolve_path(path) for path in sorted({task.path for task in tasks} | labels)}
    return {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files.items() if file.is_file()}
