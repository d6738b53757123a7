"""The model's plain forward pass, text by text, for tests that compare packed rows with it."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

LENGTH = 32


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens, mask):
    return model.logits(params, tokens, mask)


def text_logits(model, params, texts: Sequence[np.ndarray]) -> list[jax.Array]:
    """Logits [T, V] of each text. All texts are padded on the right to one length, so that one program serves them."""
    tokens = np.zeros((len(texts), LENGTH), np.int32)
    mask = np.arange(LENGTH) < np.array([[len(text)] for text in texts])
    tokens[mask] = np.concatenate(texts)
    logits = _logits(model, params, jnp.asarray(tokens), jnp.asarray(mask))
    return [row[: len(text)] for row, text in zip(logits, texts, strict=True)]
