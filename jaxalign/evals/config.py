"""Sections of a configuration that say what a suite of evaluations measures; imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math

# The prompt of a multiple-choice item, as lm-evaluation-harness words it.
TEMPLATE = "Question: {prompt}\nAnswer:"
RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "perplexity": {"limit": (1, math.inf), "max_length": (2, math.inf)},
    "choices": {"limit": (1, math.inf)},
    "answers": {"limit": (1, math.inf), "max_new_tokens": (1, math.inf), "temperature": (0, math.inf)},
}


@dataclasses.dataclass(frozen=True)
class TextTask:
    """Perplexity of texts.

    Args:
        path: texts, prompts with completions, instructions or chats, as `jaxalign sft` reads them
        limit: the first so many
        max_length: tokens of a text; a longer one is cut as in training
    """

    path: str
    limit: int | None = None
    max_length: int = 1024


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
    """Multiple choice by likelihood.

    Args:
        path: rows in PIQA's, BLiMP's or TruthfulQA's form, or with prompt, choices and label
        labels: a file with the number of the right choice on each line, where rows do not hold it
        limit: the first so many
        template: around the prompt
    """

    path: str
    labels: str | None = None
    limit: int | None = None
    template: str = TEMPLATE


@dataclasses.dataclass(frozen=True)
class AnswerTask:
    """Sampled answers: their length and repetition, refusals, a score, a reward model's verdict.

    Args:
        path: rows with a field prompt, or transcripts
        limit: the first so many
        max_new_tokens: the longest answer
        temperature: 0 takes the most likely token
        safe: the field that says whether a prompt should be answered (safe or unsafe, as in XSTest): then refusals
            are counted
        score: number_match, exact_match or module:function, of the answer and its row: then its mean is taken
        reward: a reward model, which shares the models' tokenizer: then its score of answers is taken, and two models'
            win rate
    """

    path: str
    limit: int | None = None
    max_new_tokens: int = 64
    temperature: float = 1.0
    safe: str | None = None
    score: str | None = None
    reward: str | None = None


@dataclasses.dataclass(frozen=True)
class SuiteSection:
    """What to measure; a task's name begins the names of its figures.

    Args:
        perplexity: by name, texts
        choices: by name, questions with choices
        answers: by name, prompts to answer
        capabilities: figures that alignment may cost (task/figure)
        gains: figures that alignment is for
    """

    perplexity: dict[str, TextTask] = dataclasses.field(default_factory=dict)
    choices: dict[str, ChoiceTask] = dataclasses.field(default_factory=dict)
    answers: dict[str, AnswerTask] = dataclasses.field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    gains: tuple[str, ...] = ()
