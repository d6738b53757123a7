"""Statistics of texts: perplexity, length, and how much answers repeat themselves and one another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxalign.data.trees import Tree
from jaxalign.evals.outcome import Outcome
from jaxalign.methods.scoring import tree_logps
from jaxalign.models.model import Model


def perplexity(name: str, model: Model, params: Any, trees: Sequence[Tree]) -> list[Outcome]:
    """Returns ``name/perplexity``, exp(-Σ log π / Σ tokens) over the tokens that count.

    Args:
        name: name of the task.
        model: a language model.
        params: its parameters.
        trees: texts, each a tree of one completion.
    """
    logps = tree_logps(model, params, trees)
    counts = np.array([sum(int(mask.sum()) for mask in tree.masks) for tree in trees], np.float64)
    nats = -np.array([float(values.sum()) for values in logps])
    return [Outcome(f"{name}/perplexity", nats, counts, "less", np.exp)]


def verbosity(name: str, answers: Sequence[str]) -> list[Outcome]:
    """Returns ``name/words``, the number of words of an answer.

    >>> verbosity("hh", ["one two", "three"])[0].totals
    array([2., 1.])
    """
    return [Outcome.mean(f"{name}/words", [len(text.split()) for text in answers], good="neither")]


def diversity(name: str, answers: Sequence[str], n: int = 2) -> list[Outcome]:
    """Returns ``name/distinct_n``: the share of an answer's n-grams of words that are distinct, 1 without repetition.

    Distinct-n (Li et al. 2016, arXiv:1510.03055, sec. 5.2) within answers. Unlike distinct-n over all answers, it does
    not fall with their number. See ``distinct_n`` and ``ngram_entropy`` for the latter.
    """
    grams = [_ngrams(text, n) for text in answers]
    distinct = np.array([len(set(words)) for words in grams], np.float64)
    total = np.array([len(words) for words in grams], np.float64)
    if not total.any():  # no answer has n words: nothing repeats
        distinct = total = np.ones(len(grams))
    return [Outcome(f"{name}/distinct_{n}", distinct, total, "more", share=True)]


def distinct_n(answers: Sequence[str], n: int) -> float:
    """Returns distinct n-grams over all n-grams of all answers, NaN without any.

    Source: Li et al. 2016, arXiv:1510.03055, sec. 5.2.

    >>> distinct_n(["a b a b", "a b"], 2)
    0.5
    """
    grams = [gram for text in answers for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def ngram_entropy(answers: Sequence[str], n: int) -> float:
    """Returns -Σ p log p of the n-grams of all answers in nats, NaN without any.

    Source: Zhang et al. 2018, arXiv:1809.05972 (Ent-n).

    >>> round(ngram_entropy(["a b", "c d"], 2), 4)
    0.6931
    """
    counts = np.array(list(Counter(gram for text in answers for gram in _ngrams(text, n)).values()), np.float64)
    p = counts / counts.sum()
    return float(-np.sum(p * np.log(p))) if len(counts) else math.nan


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
