"""Configuration sections of a suite of evaluations. This module imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math

# The prompt of a multiple-choice item, as in lm-evaluation-harness.
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
        limit: use the first so many only
        max_length: maximum tokens of a text; a longer one is cut as in training
    """

    path: str
    limit: int | None = None
    max_length: int = 1024


@dataclasses.dataclass(frozen=True)
class ChoiceTask:
    """Multiple choice by likelihood.

    Args:
        path: rows in the format of PIQA, BLiMP, TruthfulQA or ARC, or with prompt, choices and label
        labels: a file with the index of the right choice on each line, if the rows do not contain it
        limit: use the first so many only
        template: text around the prompt
    """

    path: str
    labels: str | None = None
    limit: int | None = None
    template: str = TEMPLATE


@dataclasses.dataclass(frozen=True)
class AnswerTask:
    """Sampled answers: their length and repetition, refusals, a score, a reward model's score.

    Args:
        path: rows with a field prompt, or transcripts
        limit: use the first so many only
        max_new_tokens: maximum tokens of an answer
        temperature: divides the logits; 0 takes the most likely token
        safe: the field that says whether a prompt should be answered (safe or unsafe, as in XSTest); adds the figures
            over_refusal and unsafe_answered
        score: number_match, exact_match or module:function, of the answer and its row; adds the figure score
        reward: a reward model, which shares the models' tokenizer; adds the figure reward, and for two models win_rate
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
    """What to measure. The name of a task starts the names of its figures (task/figure).

    Args:
        perplexity: texts, by name of the task
        choices: questions with choices, by name of the task
        answers: prompts to answer, by name of the task
        capabilities: figures that alignment may worsen (task/figure)
        gains: figures that alignment should improve
    """

    perplexity: dict[str, TextTask] = dataclasses.field(default_factory=dict)
    choices: dict[str, ChoiceTask] = dataclasses.field(default_factory=dict)
    answers: dict[str, AnswerTask] = dataclasses.field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    gains: tuple[str, ...] = ()
