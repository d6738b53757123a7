"""Judges as rewards of online methods: a score per completion, or a preference between two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges.judge import Ask, judge_pairs, judge_scores
from jaxalign.judges.prompts import POINTWISE, Principle
from jaxalign.rewards.call import Reward, Rows, Texts


def judge_reward(
    judge: Ask,
    *,
    principle: Principle | None = None,
    template: str | Path = POINTWISE,
    think: bool = False,
    on_failure: float | None = None,
) -> Reward:
    """Returns a reward function for online methods: r = score / 10, from 0.1 to 1.

    Args:
        judge: Function from questions to replies.
        principle: As for :func:`~jaxalign.judges.judge_scores`.
        template: As for :func:`~jaxalign.judges.judge_scores`.
        think: As for :func:`~jaxalign.judges.judge_scores`.
        on_failure: Reward of an answer whose reply contains no score. None raises instead.

    Returns:
        A function ``(prompts, completions, rows) -> scores``.

    >>> from jaxalign.judges import Reply
    >>> reward = judge_reward(lambda questions: [Reply("Score: 7")] * len(questions))
    >>> reward(["Why?"], ["So."], [{}])
    array([0.7])
    """

    def judge_reward(prompts: Texts, completions: Texts, rows: Rows) -> NDArray[np.float64]:
        del rows
        scores = judge_scores(judge, prompts, completions, principle=principle, template=template, think=think)
        failed = [i for i, score in enumerate(scores) if score is None]
        if failed and on_failure is None:
            raise UserError(f"Row {failed[0] + 1}: the judge gave no score. Read its replies, or set on_failure.")
        return np.array([on_failure if score is None else score / 10 for score in scores], np.float64)

    return judge_reward


def judge_scorer(
    judge: Ask, tokenizer: Any, **options: Any
) -> Callable[[Sequence[Tree], Sequence[Mapping[str, Any]]], NDArray[np.float64]]:
    """Returns a scorer of two completions per prompt: 1 for the preferred one, 0 for the other.

    A completion is preferred if the judge prefers it in both presentation orders. A tie, contradicting orders or a
    failure score both completions 0, so they make no pair.

    Args:
        judge: Function from questions to replies, such as ``endpoint_judge(...)``.
        tokenizer: Decodes prompts and completions.
        **options: Further arguments of :func:`~jaxalign.judges.judge_pairs`.

    Returns:
        A function ``(trees, rows) -> scores [B, 2]`` for ``jaxalign.methods.online_dpo``.

    A judge that always prefers the answer shown first contradicts itself, so both answers score 0:

    >>> from types import SimpleNamespace
    >>> from jaxalign.judges.endpoint import Reply
    >>> tokenizer = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)))
    >>> score = judge_scorer(lambda questions: [Reply("A")] * len(questions), tokenizer)
    >>> score([Tree.of([1], [[2], [3]])], [{}])
    array([[0., 0.]])
    """

    def score(trees: Sequence[Tree], rows: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        del rows
        if any(len(tree.completions) != 2 for tree in trees):
            raise ValueError("A judge compares two completions. Sample num_completions=2.")
        texts = [[tokenizer.decode(c, skip_special_tokens=True) for c in tree.completions] for tree in trees]
        prompts = [tokenizer.decode(tree.prompt, skip_special_tokens=True) for tree in trees]
        judged = judge_pairs(judge, prompts, *map(list, zip(*texts, strict=True)), **options)
        return np.array([[pair.winner == "first", pair.winner == "second"] for pair in judged], np.float64)

    return score
