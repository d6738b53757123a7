"""The alignment tax on a suite: a model before and after alignment, measured on the same items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.evals.config import SuiteSection
from jaxalign.evals.exchange import Tax, tax
from jaxalign.evals.items import Subject
from jaxalign.evals.outcome import Estimate, Outcome
from jaxalign.evals.preference import length_controlled_win_rate, win_rate, wins_of_scores
from jaxalign.evals.suite import TaskAnswers, answer_lengths, measure_suite, open_scorers
from jaxalign.evals.suite_check import check_lengths
from jaxalign.methods.scoring import tree_logps
from jaxalign.reporting import Report, silent
from jaxalign.stats import DEFAULT, Bootstrap


@dataclass(frozen=True)
class TaxReport:
    """Comparison of a model before and after alignment.

    Attributes:
        tax: differences of all figures, and exchange rates.
        length_controlled: win rate at equal length, by task with a reward model.
        before: answers of the first model, by task.
        after: answers of the second model, by task.
    """

    tax: Tax
    length_controlled: dict[str, Estimate]
    before: dict[str, TaskAnswers]
    after: dict[str, TaskAnswers]

    def plain(self) -> dict[str, Any]:
        """Returns the figures for JSON."""
        controlled = {name: rate.plain() for name, rate in self.length_controlled.items()}
        return self.tax.plain() | {"length_controlled_win_rate": controlled}


def check_comparable(before: Subject, after: Subject) -> None:
    """Raises UserError if two models have different tokenizers or chat templates: they would read different texts."""
    if before.tokenizer.get_vocab() != after.tokenizer.get_vocab():
        raise UserError("The two models have different tokenizers. Compare models that share one.")
    if before.tokenizer.chat_template != after.tokenizer.chat_template:
        raise UserError("The two models have different chat templates. Give both the same chat_template.jinja.")


def measure_tax(
    suite: SuiteSection,
    before: Subject,
    after: Subject,
    *,
    seed: int = 0,
    bootstrap: Bootstrap = DEFAULT,
    report: Report = silent,
) -> TaxReport:
    """Measures two models on a suite, and compares them item by item.

    Args:
        suite: the tasks. Its ``capabilities`` and ``gains`` have exchange rates.
        before: the model before alignment.
        after: the model after alignment, with the same tokenizer.
        seed: seed of sampled answers.
        bootstrap: settings of all intervals.
        report: called with a line for each task.

    Raises:
        UserError: if the tokenizers differ, or an item is too long for a model.
    """
    check_comparable(before, after)
    for subject in (before, after):
        check_lengths(suite, subject)
    scorers = open_scorers(suite, before, report)
    report("before:")
    old = measure_suite(suite, before, seed=seed, scorers=scorers, report=report)
    report("after:")
    new = measure_suite(suite, after, seed=seed, scorers=scorers, report=report)
    old_outcomes, new_outcomes = compare_answers(suite, before, old.answers, new.answers)
    compared = tax(
        [*old.outcomes, *old_outcomes],
        [*new.outcomes, *new_outcomes],
        capabilities=suite.capabilities,
        gains=suite.gains,
        bootstrap=bootstrap,
    )
    controlled = win_rates_at_equal_length(old.answers, new.answers, bootstrap)
    return TaxReport(compared, controlled, old.answers, new.answers)


def compare_answers(
    suite: SuiteSection, before: Subject, old: Mapping[str, TaskAnswers], new: Mapping[str, TaskAnswers]
) -> tuple[list[Outcome], list[Outcome]]:
    """Computes the figures that need two models: KL(after ‖ before), and the win rate of the second model.

    KL is the mean of log π_after - log π_before over answers that the second model sampled (k1, unbiased), for each
    answer and for each token. Only answers at temperature 1 are samples of the policy.

    Returns:
        The outcomes of the first model (against itself: KL 0, win rate ½), and those of the second.
    """
    first: list[Outcome] = []
    second: list[Outcome] = []
    for name in suite.answers:
        trees, policy = new[name].trees, new[name].logps
        if policy is not None:
            kl = policy - np.concatenate(tree_logps(before.model, before.params, trees))
            for values, outcomes in ((np.zeros(len(trees)), first), (kl, second)):
                outcomes.append(Outcome.mean(f"{name}/kl", values, good="neither"))
                outcomes.append(Outcome(f"{name}/kl_per_token", values, answer_lengths(trees), "neither"))
        wins = wins_over(old[name], new[name])
        if wins is not None:
            first += win_rate(name, np.full(len(wins), 0.5))
            second += win_rate(name, wins)
    return first, second


def wins_over(old: TaskAnswers, new: TaskAnswers) -> np.ndarray | None:
    """Returns the wins ``[N]`` of the second model's answers by their reward, None without a reward model.

    Equal answers tie. Their scores can differ by rounding, because other answers share their packed rows.
    """
    if old.rewards is None or new.rewards is None:
        return None
    pairs = zip(old.trees, new.trees, strict=True)
    same = [np.array_equal(before.completions[0], after.completions[0]) for before, after in pairs]
    return np.where(same, 0.5, wins_of_scores(new.rewards, old.rewards))


def win_rates_at_equal_length(
    old: Mapping[str, TaskAnswers], new: Mapping[str, TaskAnswers], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """Estimates the second model's win rate at equal length (in characters), by task with a reward model."""
    rates = {}
    for name in new:
        wins = wins_over(old[name], new[name])
        if wins is not None:
            lengths, baseline = ([*map(len, answers[name].texts)] for answers in (new, old))
            rates[name] = length_controlled_win_rate(wins, lengths, baseline, bootstrap=bootstrap)
    return rates
