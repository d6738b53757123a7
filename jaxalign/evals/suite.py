"""A suite of evaluations: which tasks on which files, read from a configuration and measured of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxalign import evals
from jaxalign.data.encode import Encoder
from jaxalign.data.files import Problem, Row, read_rows
from jaxalign.data.formats import prompt_only
from jaxalign.data.records import Demonstration, read_records
from jaxalign.data.tokenize import tokenize_sft
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.evals.config import AnswerTask, ChoiceTask, SuiteSection, TextTask
from jaxalign.evals.likelihood import tree_scores
from jaxalign.evals.outcome import Estimate, Outcome
from jaxalign.evals.preference import length_controlled_win_rate, win_rate, wins_of_scores
from jaxalign.methods.collect import Sampler
from jaxalign.models.model import Model
from jaxalign.models.open import check_tokens, check_trees, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.reporting import Report, silent
from jaxalign.rewards import compute_rewards
from jaxalign.rewards.functions import load_function
from jaxalign.rollout import Sampling
from jaxalign.rollout.text import WIDTH, encode_prompt, end_ids
from jaxalign.settings import ModelSection
from jaxalign.stats import Bootstrap

BATCH = 32
"""Prompts answered at a time."""


class Subject(NamedTuple):
    """A model to measure."""

    model: Model
    params: Any
    tokenizer: Any


class Answered(NamedTuple):
    """What a model answered to a task's prompts, and what a reward model thinks of it (None without one).

    ``logps`` are its own log-probs of its answers, where they are samples of the policy (temperature 1).
    """

    trees: list[Tree]
    texts: list[str]
    rewards: np.ndarray | None = None
    logps: np.ndarray | None = None


def measure(
    suite: SuiteSection, subject: Subject, *, seed: int, scorers: Mapping[str, Subject], report: Report = silent
) -> tuple[list[Outcome], dict[str, Answered]]:
    """The outcomes of every task, and the answers that were sampled.

    Args:
        suite: the tasks.
        subject: the model.
        seed: of sampling: the same prompts are answered with the same random numbers by any model.
        scorers: reward models by path.
        report: called with a line for each task.
    """
    outcomes: list[Outcome] = []
    answered: dict[str, Answered] = {}
    for name, texts in suite.perplexity.items():
        report(f"{name}: perplexity")
        outcomes += evals.perplexity(name, subject.model, subject.params, text_trees(name, texts, subject))
    for name, choices in suite.choices.items():
        report(f"{name}: multiple choice")
        items = read_choices(choices)
        outcomes += evals.multiple_choice(name, *subject, items, template=choices.template)
    for name, task in suite.answers.items():
        report(f"{name}: answers")
        found, answered[name] = measure_answers(name, task, subject, seed, scorers)
        outcomes += found
    return outcomes, answered


def measure_answers(
    name: str, task: AnswerTask, subject: Subject, seed: int, scorers: Mapping[str, Subject]
) -> tuple[list[Outcome], Answered]:
    """A task's sampled answers and their outcomes."""
    rows = read_items(task.path, task.limit)
    texts = [prompt_of(row) for row in rows]
    trees = sample(subject, prompt_ids(rows, subject), task, seed)
    said = [subject.tokenizer.decode(tree.completions[0], skip_special_tokens=True) for tree in trees]
    outcomes = [*evals.verbosity(name, said), *evals.diversity(name, said)]
    values: list[dict[str, Any]] = [row.value for row in rows]  # type: ignore[misc]  # read_items raised for others
    if task.safe is not None:
        outcomes += evals.refusals(name, [is_safe(row, task.safe) for row in rows], said)
    if task.score is not None:
        scores = compute_rewards(load_function(task.score), texts, said, values, name=name)
        outcomes.append(Outcome.mean(f"{name}/score", scores, share=bool(np.all((scores >= 0) & (scores <= 1)))))
    logps = None
    if task.temperature == 1:
        logps = np.concatenate(evals.tree_logps(subject.model, subject.params, trees)).astype(np.float64)
        outcomes.append(Outcome(f"{name}/entropy_per_token", -logps, lengths(trees), "neither"))
    rewards = None
    if task.reward is not None:
        judge = scorers[task.reward]
        rewards = np.concatenate(tree_scores(judge.model, judge.params, trees))
        outcomes.append(Outcome.mean(f"{name}/reward", rewards))
    return outcomes, Answered(trees, said, rewards, logps)


def prompt_ids(rows: Sequence[Row], subject: Subject) -> list[list[int]]:
    """The rows' prompts as the model reads them."""
    encoder, chat = Encoder(subject.tokenizer), bool(subject.tokenizer.chat_template)
    prompts = [list(encode_prompt(encoder, prompt_of(row), chat, row.number)) for row in rows]
    check_tokens(subject.model, prompts)
    return prompts


def lengths(trees: Sequence[Tree]) -> np.ndarray:
    """Tokens of the answers."""
    return np.array([len(tree.completions[0]) for tree in trees], np.float64)


def sample(subject: Subject, prompts: Sequence[Sequence[int]], task: AnswerTask, seed: int) -> list[Tree]:
    """One answer to each prompt, as trees. The random numbers of an answer are those of (seed, its place)."""
    found: dict[int, Tree] = {}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # like lengths together: less padding
    for start in range(0, len(prompts), BATCH):
        places = order[start : start + BATCH]
        filled = places + places[-1:] * (min(BATCH, len(prompts)) - len(places))  # one program for the last batch too
        width = -(-len(prompts[places[0]]) // WIDTH) * WIDTH
        ends = end_ids(subject.model, subject.tokenizer)
        sampler = Sampler(subject.model, 1, task.max_new_tokens, ends, width, Sampling(task.temperature))
        chunk = [np.asarray(prompts[i], np.int32) for i in filled]
        trees = sampler(subject.params, chunk, jax.random.key(seed), np.asarray(filled))
        found.update(zip(places, trees, strict=False))
    return [found[i] for i in range(len(prompts))]


def wins_over(old: Answered, new: Answered) -> np.ndarray | None:
    """Wins of the second model's answers by their reward, None without a reward model.

    Equal answers tie whatever their scores, which differ by rounding where their neighbours in a packed row do.
    """
    if old.rewards is None or new.rewards is None:
        return None
    both = zip(old.trees, new.trees, strict=True)
    same = [np.array_equal(mine.completions[0], yours.completions[0]) for yours, mine in both]
    return np.where(same, 0.5, wins_of_scores(new.rewards, old.rewards))


def equal_length(old: Mapping[str, Answered], new: Mapping[str, Answered], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """By task with a reward model, the second model's win rate if its answers were as long (in characters)."""
    found = {}
    for name, mine in new.items():
        theirs = old[name]
        wins = wins_over(theirs, mine)
        if wins is not None:
            letters = ([*map(len, each.texts)] for each in (mine, theirs))
            found[name] = length_controlled_win_rate(wins, *letters, bootstrap=bootstrap)
    return found


def compare_answers(
    suite: SuiteSection, before: Subject, old: Mapping[str, Answered], new: Mapping[str, Answered]
) -> tuple[list[Outcome], list[Outcome]]:
    """What only two models together have: KL(after ‖ before), and the win rate of the second.

    KL is the mean of log π_after - log π_before over answers that the second sampled (k1, without bias), for an answer
    and for a token; only at temperature 1 are they samples of the policy. Of the first model against itself it is 0,
    and its win rate ½.
    """
    ours: list[Outcome] = []
    theirs: list[Outcome] = []
    for name in suite.answers:
        trees, policy = new[name].trees, new[name].logps
        if policy is not None:
            kl = policy - np.concatenate(evals.tree_logps(before.model, before.params, trees))
            none, tokens = np.zeros(len(trees)), lengths(trees)
            ours += [
                Outcome.mean(f"{name}/kl", none, good="neither"),
                Outcome(f"{name}/kl_per_token", none, tokens, "neither"),
            ]
            theirs += [
                Outcome.mean(f"{name}/kl", kl, good="neither"),
                Outcome(f"{name}/kl_per_token", kl, tokens, "neither"),
            ]
        wins = wins_over(old[name], new[name])
        if wins is not None:
            ours += win_rate(name, np.full(len(wins), 0.5))
            theirs += win_rate(name, wins)
    return ours, theirs


def open_scorers(suite: SuiteSection, subject: Subject, mesh: Any, report: Report = silent) -> dict[str, Subject]:
    """The reward models of the suite, by path."""
    found = {}
    for path in dict.fromkeys(task.reward for task in suite.answers.values() if task.reward is not None):
        model, params = open_model(ModelSection(path=path), mesh, report)
        if not model.config.num_scores:
            raise UserError(f"{path} is no reward model; train one with jaxalign reward.")
        if load_tokenizer(path).get_vocab() != subject.tokenizer.get_vocab():
            raise UserError(f"{path} has another tokenizer than the model it is to score; give one that shares it.")
        found[path] = Subject(model, params, subject.tokenizer)
    return found


def text_trees(name: str, task: TextTask, subject: Subject) -> list[Tree]:
    """The texts of a task as prompt trees, all or the assistant's tokens counted."""
    records, _ = read_records(Demonstration, task.path)
    if not records[: task.limit]:
        raise UserError(f"{name}: {task.path} has no texts; give a file with at least one.")
    trees, _ = tokenize_sft(records[: task.limit], subject.tokenizer, max_length=task.max_length)
    check_trees(subject.model, trees, task.max_length, f"suite.perplexity.{name}.max_length")
    return trees


def read_choices(task: ChoiceTask) -> list[evals.Choice]:
    """The items of a task."""
    labels: Sequence[int | None] | None = None
    rows = read_items(task.path, task.limit)
    if task.labels is not None:
        labels = read_labels(task.labels)
        if len(labels) < len(rows) or (task.limit is None and len(labels) > len(rows)):
            raise UserError(f"{task.labels} has {len(labels)} labels for {len(rows)} rows; give one a row.")
    items = []
    for i, row in enumerate(rows):
        parsed = evals.parse_choice(row.value, None if labels is None else labels[i])  # type: ignore[arg-type]
        if isinstance(parsed, Problem):
            raise UserError(f"{row.file}, row {row.number}: {parsed.text}.")
        items.append(parsed)
    return items


def read_labels(path: str) -> list[int]:
    """One number on each line."""
    try:
        with open(path, encoding="utf-8") as file:
            return [int(line) for line in file.read().split()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no file with a whole number on each line ({error}).") from None


def read_items(path: str, limit: int | None) -> list[Row]:
    """The rows of a file, all of them readable."""
    rows: list[Row] = []
    for row in read_rows(path):
        if len(rows) == limit:
            break
        if isinstance(row.value, Problem):
            raise UserError(f"{row.file}, row {row.number}: {row.value.text}.")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: there are no rows: give a file with at least one.")
    return rows


def prompt_of(row: Row) -> str:
    """The prompt of a row: its field ``prompt`` or ``question``, or what comes before a transcript's last answer."""
    value: dict[str, Any] = row.value  # type: ignore[assignment]
    prompt = value.get("prompt", value.get("question"))
    if prompt is None and isinstance(value.get("chosen"), str):
        found = prompt_only(value, None)
        if isinstance(found, Problem):
            raise UserError(f"{row.file}, row {row.number}: {found.text}.")
        prompt = found[0]
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{row.file}, row {row.number}: field 'prompt' must be there and be a string with text.")
    return prompt


def is_safe(row: Row, field: str) -> bool:
    """Whether a row's prompt should be answered."""
    value = row.value.get(field)  # type: ignore[union-attr]
    known = {"safe": True, "unsafe": False, True: True, False: False, "true": True, "false": False}
    if not isinstance(value, str | bool) or value not in known:
        raise UserError(f"{row.file}, row {row.number}: field {field!r} is {value!r}; it must be safe or unsafe.")
    return known[value]
