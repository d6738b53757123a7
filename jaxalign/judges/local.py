"""A model of ours as a judge: what it would give each verdict or score, computed and not sampled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxalign.data.encode import Encoder
from jaxalign.data.files import Problem
from jaxalign.data.records import Message
from jaxalign.data.shapes import LENGTHS
from jaxalign.data.trees import Tree, pack
from jaxalign.errors import UserError
from jaxalign.judges.endpoint import Messages, Reply
from jaxalign.judges.judge import same_number
from jaxalign.judges.prompts import POINTWISE, Principle, render
from jaxalign.masking import Rows, completion_sums
from jaxalign.models.model import Model

CHUNK = 256
"""Questions packed together."""
SHAPES = [(length, length // part) for length in LENGTHS for part in (8, 4, 2, 1)]
"""Rows of T columns, of which S are targets: few, since a label is short."""


def label_logps(
    model: Model, params: Any, tokenizer: Any, questions: Sequence[Messages], labels: Sequence[str]
) -> Float[np.ndarray, "n K"]:
    """log π(label | question) for every label, summed over its tokens and the end of turn, in nats.

    A question and its labels are one prompt tree: the question passes through the model once. With the end of turn
    counted, "Score: 1" does not stand for all that begins like it.

    Args:
        model, params, tokenizer: the judge.
        questions: each a list of messages, ``[n]``; without a chat template their contents are joined as plain text.
        labels: whole answers, ``[K]``.

    Returns:
        the log-probabilities; the same whatever other questions there are, but for rounding.

    Raises:
        UserError: if a question is too long or cannot be rendered; the sentence names its row.

    >>> label_logps(None, None, None, [], ["Verdict: A", "Verdict: B"]).shape
    (0, 2)
    """
    if not questions:
        return np.zeros((0, len(labels)), np.float32)
    encoder = Encoder(tokenizer)
    longest = min(LENGTHS[-1], model.config.max_position_embeddings)
    trees = []
    for i, question in enumerate(questions):
        prompt, completions = _encode(encoder, question, labels, i)
        tree = Tree.of(prompt, completions, index=np.full(len(labels), i, np.int32))
        if len(prompt) + max(map(len, completions)) > longest or len(tree) > LENGTHS[-1]:
            raise UserError(
                f"row {i + 1}: the question has {len(prompt)} tokens, the model takes {longest}: shorten it"
            )
        trees.append(tree)
    found = np.full((len(trees), len(labels)), np.nan, np.float32)
    for start in range(0, len(trees), CHUNK):
        packed = pack(trees[start : start + CHUNK], shapes=SHAPES, num_completions=len(labels))
        for m in range(packed.used):
            rows = jax.tree.map(lambda x, m=m: x[m], packed.rows)
            logps = np.asarray(_logps(model, params, rows))
            used = rows.example_mask
            found[rows.extras["index"][used][:, 0]] = logps[used]
    return found


def local_judge(
    model: Model, params: Any, tokenizer: Any, *, ties: bool = False
) -> Callable[[Sequence[Messages]], list[Reply]]:
    """A model of ours as a judge of pairs: P(A) = π("Verdict: A") / Σ_v π("Verdict: v"), no sampling.

    Args:
        model, params, tokenizer: as :func:`jaxalign.load_model` and :func:`jaxalign.load_tokenizer` give them.
        ties: is "Verdict: tie" among the v? Otherwise ties are pairs on which the two orders disagree.

    Returns:
        a judge for :func:`~jaxalign.judges.judge_pairs`, whose replies carry the log-probabilities.

    >>> local_judge(None, None, None)([])
    []
    """
    return _choosing(model, params, tokenizer, "Verdict: ", ("A", "B", "tie") if ties else ("A", "B"))


def local_ranker(model: Model, params: Any, tokenizer: Any, number: int) -> Callable[[Sequence[Messages]], list[Reply]]:
    """A model of ours as a judge of K responses: the likeliest of all K! lines "Ranking: A > B > …".

    Args:
        model, params, tokenizer: the judge.
        number: K, from 2 to 4 (24 rankings; 5 would be 120).

    Returns:
        a judge for :func:`~jaxalign.judges.judge_rankings`.

    Raises:
        UserError: for another number.

    >>> local_ranker(None, None, None, 3)([])
    []
    """
    if not 2 <= number <= 4:
        raise UserError(f"a local judge ranks 2 to 4 answers at once, not {number}: ask pairwise or pointwise instead")
    orders = tuple(" > ".join(order) for order in permutations("ABCD"[:number]))
    return _choosing(model, params, tokenizer, "Ranking: ", orders)


def _choosing(
    model: Model, params: Any, tokenizer: Any, mark: str, names: Sequence[str]
) -> Callable[[Sequence[Messages]], list[Reply]]:
    def judge(questions: Sequence[Messages]) -> list[Reply]:
        logps = label_logps(model, params, tokenizer, questions, [mark + name for name in names])
        logps = logps - np.logaddexp.reduce(logps, axis=1, keepdims=True)
        chosen = [names[k] for k in logps.argmax(1)]
        alternatives = [{name: float(value) for name, value in zip(names, row, strict=True)} for row in logps]
        return [Reply(mark + name, logprobs=(row,)) for name, row in zip(chosen, alternatives, strict=True)]

    return judge


def local_scores(
    model: Model,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    responses: Sequence[str],
    *,
    principle: Principle | None = None,
    template: str | Path = POINTWISE,
) -> Float[np.ndarray, " n"]:
    """The expected score of each response: Σ_s s π("Score: s") / Σ_s π("Score: s") over s = 1 … 10.

    Source: Liu et al. 2023, arXiv:2303.16634, eq. 1, with the probabilities themselves in place of samples.

    Args:
        model, params, tokenizer: the judge.
        prompts, responses: one of each per item, ``[n]``.
        principle, template: as for :func:`~jaxalign.judges.judge_scores`.

    Returns:
        the scores, from 1 to 10, ``[n]``.

    Raises:
        UserError: if the lists differ in length, the template is broken or a question is too long.

    >>> local_scores(None, None, None, [], []).shape
    (0,)
    """
    same_number(prompts, responses)
    text = "" if principle is None else principle.text
    questions = [
        [{"role": "user", "content": render(template, prompt=p, response=r, principle=text, think=False)}]
        for p, r in zip(prompts, responses, strict=True)
    ]
    return expected_scores(model, params, tokenizer, questions)


def expected_scores(
    model: Model, params: Any, tokenizer: Any, questions: Sequence[Messages]
) -> Float[np.ndarray, " n"]:
    """:func:`local_scores` of questions that are written already, ``[n]``.

    >>> expected_scores(None, None, None, []).shape
    (0,)
    """
    scale = np.arange(1, 11)
    logps = label_logps(model, params, tokenizer, questions, [f"Score: {s}" for s in scale])
    return np.exp(logps - np.logaddexp.reduce(logps, axis=1, keepdims=True)) @ scale.astype(float)


@functools.partial(jax.jit, static_argnums=0)
def _logps(model: Model, params: Any, rows: Rows) -> Float[Array, "R E K"]:
    return completion_sums(model.token_logps(params, rows), rows)


def _encode(
    encoder: Encoder, question: Messages, labels: Sequence[str], index: int
) -> tuple[list[int], list[list[int]]]:
    if encoder.tokenizer.chat_template:
        found = encoder.conversation([Message(m["role"], m["content"]) for m in question], labels)
        if isinstance(found, Problem):
            raise UserError(f"row {index + 1}: {found.text}")
        return found
    end = encoder.tokenizer.eos_token_id
    if end is None:
        raise UserError("the tokenizer has no EOS token, so no label could end: give it an eos_token")
    prompt = encoder.document("\n\n".join(message["content"] for message in question) + "\n")
    return prompt, [[*encoder.continuation(label), end] for label in labels]
