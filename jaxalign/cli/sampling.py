"""Answers to prompts of any length, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.models.model import Model
from jaxalign.rollout import generate

WIDTH = 64  # prompts are padded to a multiple of this, so that a few programs serve all


def end_ids(model: Model, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer: those of the model's configuration and the tokenizer's own."""
    ids = {*model.config.eos_token_ids}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))


def answers(
    model: Model,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    max_new_tokens: int,
    key: jax.Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    batch_size: int = 8,
) -> list[str]:
    """The completion of each prompt (token ids), decoded without special tokens.

    The random numbers of an answer depend on ``key`` and its place in ``prompts`` alone. The width of a batch is that
    of its longest prompt, so another ``batch_size`` may round differently, and an answer then turn at a near tie.
    """
    texts = []
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        width = -(-max(map(len, chunk)) // WIDTH) * WIDTH
        tokens = np.zeros((len(chunk), width), np.int32)
        mask = np.zeros((len(chunk), width), bool)
        for row, prompt in enumerate(chunk):
            tokens[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = True
        rollout = generate(
            model,
            params,
            tokens,
            prompt_mask=mask,
            max_new_tokens=max_new_tokens,
            key=key,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_id=end_ids(model, tokenizer),
            example_ids=np.arange(start, start + len(chunk)),
        )
        for ids, kept in zip(*jax.device_get((rollout.tokens, rollout.mask)), strict=True):
            texts.append(tokenizer.decode(ids[kept], skip_special_tokens=True))
    return texts
