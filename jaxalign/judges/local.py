"""Local models as judges: the probability of each verdict or score is computed, not sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxalign.data.encode import Encoder
from jaxalign.data.files import located
from jaxalign.data.messages import Message
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges.endpoint import Messages, Reply
from jaxalign.judges.judge import score_questions
from jaxalign.judges.prompts import POINTWISE, Principle
from jaxalign.methods.scoring import tree_logps
from jaxalign.models.model import Model


def label_logps(
    model: Model, params: Any, tokenizer: Any, questions: Sequence[Messages], labels: Sequence[str]
) -> Float[np.ndarray, "n K"]:
    """Returns log π(label | question) for every label, summed over its tokens and the end of turn, in nats.

    A question and its labels are one prompt tree, so the model reads the question once. The end of turn counts, or
    "Score: 1" would include the probability of "Score: 10".

    Args:
        model: The judge.
        params: Its parameters.
        tokenizer: Its tokenizer.
        questions: Lists of messages, ``[n]``. Without a chat template their contents are joined as plain text.
        labels: Whole answers, ``[K]``.

    Returns:
        The log-probabilities. They do not depend on the other questions, up to rounding.

    Raises:
        UserError: If a question is too long or cannot be rendered. The message names its row.

    >>> label_logps(None, None, None, [], ["Verdict: A", "Verdict: B"]).shape
    (0, 2)
    """
    if not questions:
        return np.zeros((0, len(labels)), np.float32)
    encoder = Encoder(tokenizer)
    trees = [Tree.of(*_encode(encoder, question, labels, i)) for i, question in enumerate(questions)]
    return np.stack(tree_logps(model, params, trees))


def local_judge(
    model: Model, params: Any, tokenizer: Any, *, ties: bool = False
) -> Callable[[Sequence[Messages]], list[Reply]]:
    """Returns a model as a judge of pairs: P(A) = π("Verdict: A") / Σ_v π("Verdict: v"), without sampling.

    Args:
        model: As :func:`jaxalign.load_model` returns it.
        params: As :func:`jaxalign.load_model` returns them.
        tokenizer: As :func:`jaxalign.load_tokenizer` returns it.
        ties: Whether "Verdict: tie" is one of the v. Otherwise only pairs on which the two orders disagree are ties.

    Returns:
        A judge for :func:`~jaxalign.judges.judge_pairs`, whose replies have log-probabilities.

    >>> local_judge(None, None, None)([])
    []
    """
    return _choose_label(model, params, tokenizer, "Verdict: ", ("A", "B", "tie") if ties else ("A", "B"))


def local_ranker(model: Model, params: Any, tokenizer: Any, number: int) -> Callable[[Sequence[Messages]], list[Reply]]:
    """Returns a model as a judge of K responses: the likeliest of all K! lines "Ranking: A > B > …".

    Args:
        model: The judge.
        params: Its parameters.
        tokenizer: Its tokenizer.
        number: K, from 2 to 4 (24 rankings; 5 would be 120).

    Returns:
        A judge for :func:`~jaxalign.judges.judge_rankings`.

    Raises:
        UserError: For another number.

    >>> local_ranker(None, None, None, 3)([])
    []
    """
    if not 2 <= number <= 4:
        raise UserError(f"A local judge ranks 2 to 4 answers at once, not {number}. Ask pairwise or pointwise instead.")
    orders = tuple(" > ".join(order) for order in permutations("ABCD"[:number]))
    return _choose_label(model, params, tokenizer, "Ranking: ", orders)


def _choose_label(
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
    """Returns the expected score of each response: Σ_s s π("Score: s") / Σ_s π("Score: s") over s = 1 … 10.

    Source: Liu et al. 2023, arXiv:2303.16634, eq. 1, with the probabilities themselves in place of samples.

    Args:
        model: The judge.
        params: Its parameters.
        tokenizer: Its tokenizer.
        prompts: A prompt for each response, ``[n]``.
        responses: The responses, ``[n]``.
        principle: As for :func:`~jaxalign.judges.judge_scores`.
        template: As for :func:`~jaxalign.judges.judge_scores`.

    Returns:
        The scores, from 1 to 10, ``[n]``.

    Raises:
        UserError: If the lists differ in length, the template is broken or a question is too long.

    >>> local_scores(None, None, None, [], []).shape
    (0,)
    """
    questions = score_questions(prompts, responses, template, principle, think=False)
    return expected_scores(model, params, tokenizer, questions)


def expected_scores(
    model: Model, params: Any, tokenizer: Any, questions: Sequence[Messages]
) -> Float[np.ndarray, " n"]:
    """Returns the expected score that answers each question, ``[n]``, as :func:`local_scores` does.

    >>> expected_scores(None, None, None, []).shape
    (0,)
    """
    scale = np.arange(1, 11)
    logps = label_logps(model, params, tokenizer, questions, [f"Score: {s}" for s in scale])
    return np.exp(logps - np.logaddexp.reduce(logps, axis=1, keepdims=True)) @ scale.astype(float)


def _encode(
    encoder: Encoder, question: Messages, labels: Sequence[str], index: int
) -> tuple[list[int], list[list[int]]]:
    if encoder.tokenizer.chat_template:
        with located(f"Row {index + 1}"):
            return encoder.conversation([Message(m["role"], m["content"]) for m in question], labels)
    end = encoder.tokenizer.eos_token_id
    if end is None:
        raise UserError("The tokenizer has no EOS token, so labels have no end. Give it an eos_token.")
    prompt = encoder.document("\n\n".join(message["content"] for message in question) + "\n")
    return prompt, [[*encoder.continuation(label), end] for label in labels]
