"""A stub of a language model that compiles at once: the logits after a token are its row of a table."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.logprobs import token_logps
from jaxalign.masking import gather_columns


@dataclasses.dataclass(frozen=True)
class Bigrams:
    """The part of a model that methods call; ``params`` is the table [V, V]."""

    lora: Any = None

    def token_logps(self, params, rows):
        logits = gather_columns(params[rows.tokens], rows.source)
        return jnp.where(rows.mask, token_logps(logits, rows.target), 0)


def text_logps(table, tree):
    """log π(completion | prompt) of a tree of one completion, by NumPy."""
    text = np.concatenate([tree.prompt, tree.completions[0]])
    table = np.asarray(table, np.float64)
    logps = table - np.log(np.sum(np.exp(table), -1, keepdims=True))
    return logps[text[:-1], text[1:]][len(tree.prompt) - 1 :].sum()


def tables(seed, size, scale):
    """(policy, reference): two tables, which differ by noise of this scale."""
    random = np.random.default_rng(seed)
    policy = random.normal(size=(size, size))
    return policy, policy + scale * random.normal(size=policy.shape)
