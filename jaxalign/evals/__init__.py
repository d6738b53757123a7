"""What a model can do and how it behaves, on items of a file, with intervals; and what aligning it changed.

A task is a function from a model (or its answers) and items to ``Outcome``s; adding one is writing one. ``figure`` and
``difference`` turn outcomes into numbers with intervals, ``tax`` puts two models side by side.
"""

from jaxalign.evals.choices import Choice, multiple_choice, parse_choice
from jaxalign.evals.likelihood import perplexity, tree_logps
from jaxalign.evals.outcome import Difference, Estimate, Good, NotFinite, Outcome, difference, figure
from jaxalign.evals.preference import length_controlled_win_rate, win_rate
from jaxalign.evals.refusal import is_refusal, refusals
from jaxalign.evals.tax import Exchange, Tax, tax
from jaxalign.evals.text import distinct_n, diversity, ngram_entropy, verbosity

__all__ = [
    "Choice",
    "Difference",
    "Estimate",
    "Exchange",
    "Good",
    "NotFinite",
    "Outcome",
    "Tax",
    "difference",
    "distinct_n",
    "diversity",
    "figure",
    "is_refusal",
    "length_controlled_win_rate",
    "multiple_choice",
    "ngram_entropy",
    "parse_choice",
    "perplexity",
    "refusals",
    "tax",
    "tree_logps",
    "verbosity",
    "win_rate",
]
