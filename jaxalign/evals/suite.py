"""A suite of evaluations of one model: outcomes of every task, and the answers that were sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.evals.choices import multiple_choice
from jaxalign.evals.config import AnswerTask, SuiteSection
from jaxalign.evals.items import Subject, prompt_ids, read_choices, read_items, read_safety, score_answers, text_trees
from jaxalign.evals.outcome import Estimate, Outcome, figure
from jaxalign.evals.text import diversity, perplexity, refusals, verbosity
from jaxalign.methods.collect import Sampler
from jaxalign.methods.scoring import tree_logps, tree_scores
from jaxalign.models.open import check_language_model, check_reward_model, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.reporting import Report, silent
from jaxalign.rewards.functions import load_function
from jaxalign.rollout import Sampling
from jaxalign.rollout.text import WIDTH, end_ids
from jaxalign.settings import ModelSection
from jaxalign.stats import DEFAULT, Bootstrap

# Prompts that are answered at a time.
BATCH = 32


class TaskAnswers(NamedTuple):
    """A model's answers to the prompts of a task.

    Attributes:
        trees: prompts with their answers as token ids.
        texts: the answers.
        rewards: a reward model's scores ``[N]``, None without a reward model.
        logps: the model's log-probabilities of its answers in nats, ``[N]``. None unless they are samples of the policy
            itself (temperature 1).
    """

    trees: list[Tree]
    texts: list[str]
    rewards: np.ndarray | None = None
    logps: np.ndarray | None = None


@dataclass(frozen=True)
class SuiteReport:
    """Measurements of one model: the outcomes of all tasks, and answers by task."""

    outcomes: list[Outcome]
    answers: dict[str, TaskAnswers]

    def figures(self, bootstrap: Bootstrap = DEFAULT) -> dict[str, Estimate]:
        """Returns every figure with its interval."""
        return {outcome.name: figure(outcome, bootstrap=bootstrap) for outcome in self.outcomes}


def open_subject(section: ModelSection, mesh: Any, report: Report = silent) -> Subject:
    """Loads a language model with its tokenizer."""
    tokenizer = load_tokenizer(section.path)
    model, params = open_model(section, mesh, report)
    check_language_model(model, section.path)
    return Subject(model, params, tokenizer)


def open_scorers(suite: SuiteSection, subject: Subject, report: Report = silent) -> dict[str, Subject]:
    """Loads the reward models of a suite onto the subject's mesh, and returns them by path.

    Raises:
        UserError: if a model is not a reward model, or its tokenizer differs from the subject's.
    """
    scorers = {}
    for path in dict.fromkeys(task.reward for task in suite.answers.values() if task.reward is not None):
        model, params = open_model(ModelSection(path=path), subject.model.mesh, report)
        check_reward_model(model, path)
        if load_tokenizer(path).get_vocab() != subject.tokenizer.get_vocab():
            raise UserError(f"{path} and the model that it scores have different tokenizers. They must share one.")
        scorers[path] = Subject(model, params, subject.tokenizer)
    return scorers


def measure_suite(
    suite: SuiteSection,
    subject: Subject,
    *,
    seed: int = 0,
    scorers: Mapping[str, Subject] | None = None,
    report: Report = silent,
) -> SuiteReport:
    """Measures a model on every task of a suite.

    Args:
        suite: the tasks.
        subject: the model.
        seed: seed of sampling. Any model answers the same prompt with the same random numbers.
        scorers: reward models by path, as ``open_scorers`` returns them. By default they are loaded.
        report: called with a line for each task.
    """
    scorers = open_scorers(suite, subject, report) if scorers is None else scorers
    outcomes: list[Outcome] = []
    answers: dict[str, TaskAnswers] = {}
    for name, texts in suite.perplexity.items():
        report(f"{name}: perplexity")
        outcomes += perplexity(name, subject.model, subject.params, text_trees(name, texts, subject))
    for name, choices in suite.choices.items():
        report(f"{name}: multiple choice")
        outcomes += multiple_choice(name, *subject, read_choices(choices), template=choices.template)
    for name, task in suite.answers.items():
        report(f"{name}: answers")
        measured, answers[name] = measure_answers(name, task, subject, seed, scorers)
        outcomes += measured
    return SuiteReport(outcomes, answers)


def measure_answers(
    name: str, task: AnswerTask, subject: Subject, seed: int, scorers: Mapping[str, Subject]
) -> tuple[list[Outcome], TaskAnswers]:
    """Samples the answers of a task, and returns their outcomes and the answers."""
    rows = read_items(task.path, task.limit)
    trees = sample_answers(subject, prompt_ids(rows, subject), task, seed)
    texts = [subject.tokenizer.decode(tree.completions[0], skip_special_tokens=True) for tree in trees]
    outcomes = [*verbosity(name, texts), *diversity(name, texts)]
    if task.safe is not None:
        outcomes += refusals(name, [read_safety(row, task.safe) for row in rows], texts)
    if task.score is not None:
        scores = score_answers(name, load_function(task.score), rows, texts)
        outcomes.append(Outcome.mean(f"{name}/score", scores, share=bool(np.all((scores >= 0) & (scores <= 1)))))
    logps = rewards = None
    if task.temperature == 1:
        logps = np.concatenate(tree_logps(subject.model, subject.params, trees)).astype(np.float64)
        outcomes.append(Outcome(f"{name}/entropy_per_token", -logps, answer_lengths(trees), "neither"))
    if task.reward is not None:
        scorer = scorers[task.reward]
        rewards = np.concatenate(tree_scores(scorer.model, scorer.params, trees))
        outcomes.append(Outcome.mean(f"{name}/reward", rewards))
    return outcomes, TaskAnswers(trees, texts, rewards, logps)


def answer_lengths(trees: Sequence[Tree]) -> np.ndarray:
    """Returns the number of tokens of each answer, ``[N]``."""
    return np.array([len(tree.completions[0]) for tree in trees], np.float64)


def sample_answers(subject: Subject, prompts: Sequence[Sequence[int]], task: AnswerTask, seed: int) -> list[Tree]:
    """Samples one answer to each prompt. Its random numbers depend on the seed and the prompt's index alone."""
    answers: dict[int, Tree] = {}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # similar lengths together: less padding
    for start in range(0, len(prompts), BATCH):
        places = order[start : start + BATCH]
        # The last batch is filled up, so that it runs the same program.
        filled = places + places[-1:] * (min(BATCH, len(prompts)) - len(places))
        width = -(-len(prompts[places[0]]) // WIDTH) * WIDTH
        ends = end_ids(subject.model, subject.tokenizer)
        sampler = Sampler(subject.model, 1, task.max_new_tokens, ends, width, Sampling(task.temperature))
        chunk = [np.asarray(prompts[i], np.int32) for i in filled]
        trees = sampler(subject.params, chunk, jax.random.key(seed), np.asarray(filled))
        answers.update(zip(places, trees, strict=False))
    return [answers[i] for i in range(len(prompts))]


def answer_rows(answers: Mapping[str, Mapping[str, TaskAnswers]], tokenizer: Any) -> list[dict[str, Any]]:
    """Returns a row for each prompt, with every model's answer and reward.

    Args:
        answers: by model and task, all models with the same prompts.
        tokenizer: decodes the prompts.
    """
    rows = []
    for task, first in next(iter(answers.values())).items():
        for i, tree in enumerate(first.trees):
            row: dict[str, Any] = {"task": task, "prompt": tokenizer.decode(tree.prompt)}
            for label, tasks in answers.items():
                row[label] = tasks[task].texts[i]
                rewards = tasks[task].rewards
                if rewards is not None:
                    row[f"{label}_reward"] = float(rewards[i])
            rows.append(row)
    return rows
