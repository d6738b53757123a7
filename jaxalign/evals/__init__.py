"""Measurements of a model on items of files, with intervals, and of what aligning it changed.

A task is a function from a model (or its answers) and items to ``Outcome``s. ``figure`` and ``difference`` turn
outcomes into numbers with intervals, and ``tax`` compares two models. ``measure_suite`` and ``measure_tax`` do this for
all tasks of a suite.

Names load on first use, so that importing the sections of a suite (``evals.config``) costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxalign.evals.choices import Choice as Choice
    from jaxalign.evals.choices import multiple_choice as multiple_choice
    from jaxalign.evals.choices import parse_choice as parse_choice
    from jaxalign.evals.config import AnswerTask as AnswerTask
    from jaxalign.evals.config import ChoiceTask as ChoiceTask
    from jaxalign.evals.config import SuiteSection as SuiteSection
    from jaxalign.evals.config import TextTask as TextTask
    from jaxalign.evals.exchange import Exchange as Exchange
    from jaxalign.evals.exchange import Tax as Tax
    from jaxalign.evals.exchange import tax as tax
    from jaxalign.evals.items import Subject as Subject
    from jaxalign.evals.outcome import Difference as Difference
    from jaxalign.evals.outcome import Estimate as Estimate
    from jaxalign.evals.outcome import Good as Good
    from jaxalign.evals.outcome import NotFinite as NotFinite
    from jaxalign.evals.outcome import Outcome as Outcome
    from jaxalign.evals.outcome import difference as difference
    from jaxalign.evals.outcome import figure as figure
    from jaxalign.evals.preference import WinsReport as WinsReport
    from jaxalign.evals.preference import length_controlled_win_rate as length_controlled_win_rate
    from jaxalign.evals.preference import measure_wins as measure_wins
    from jaxalign.evals.preference import win_rate as win_rate
    from jaxalign.evals.suite import SuiteReport as SuiteReport
    from jaxalign.evals.suite import TaskAnswers as TaskAnswers
    from jaxalign.evals.suite import measure_suite as measure_suite
    from jaxalign.evals.suite_tax import TaxReport as TaxReport
    from jaxalign.evals.suite_tax import measure_tax as measure_tax
    from jaxalign.evals.text import distinct_n as distinct_n
    from jaxalign.evals.text import diversity as diversity
    from jaxalign.evals.text import is_refusal as is_refusal
    from jaxalign.evals.text import ngram_entropy as ngram_entropy
    from jaxalign.evals.text import perplexity as perplexity
    from jaxalign.evals.text import refusals as refusals
    from jaxalign.evals.text import verbosity as verbosity

_NAMES = {
    "choices": ("Choice", "multiple_choice", "parse_choice"),
    "config": ("AnswerTask", "ChoiceTask", "SuiteSection", "TextTask"),
    "exchange": ("Exchange", "Tax", "tax"),
    "items": ("Subject",),
    "outcome": ("Difference", "Estimate", "Good", "NotFinite", "Outcome", "difference", "figure"),
    "preference": ("WinsReport", "length_controlled_win_rate", "measure_wins", "win_rate"),
    "suite": ("SuiteReport", "TaskAnswers", "measure_suite"),
    "suite_tax": ("TaxReport", "measure_tax"),
    "text": ("distinct_n", "diversity", "is_refusal", "ngram_entropy", "perplexity", "refusals", "verbosity"),
}
_HOME = {name: f"jaxalign.evals.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [*_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'jaxalign.evals' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
