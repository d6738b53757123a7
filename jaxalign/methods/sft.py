"""Supervised fine-tuning: the likelihood of the tokens that count, averaged over all of a batch's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxalign import losses
from jaxalign.loop import Batch, Method, Metrics
from jaxalign.masking import Rows
from jaxalign.models.model import Model


def sft(
    model: Model,
    *,
    loss: Callable[[Array], Array] = losses.nll,
    metrics: Callable[[dict[str, Array]], Metrics] | None = None,
) -> Method:
    """Returns the method of SFT: the mean of ``loss(log π(token | before))`` over the tokens of the batch that count.

        L = Σ_i Σ_t m_it ℓ(log π(y_it | x_i, y_i<t)) / Σ_i Σ_t m_it

    The sums are over the whole batch, so a token has the same weight in short and long answers. A mean of microbatch
    means would depend on how the batch is cut.

    Args:
        model: the language model to train.
        loss: function of a token's log-prob in nats: ``losses.nll`` or ``losses.dft``.
        metrics: further metrics: a function of {"logps": [R, S], "mask": [R, S]} that returns {name: (sum, count)}.

    Returns:
        The method, for ``loop.make_step``. ``loss`` and ``nll`` are averaged over tokens, in evaluation too. e^nll is
        the perplexity.
    """

    def prepare(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        mask = batch.rows.mask
        weight = mask / jnp.maximum(jnp.sum(mask), 1)  # of the whole batch: microbatches add
        return batch.with_extras(weight=weight), method_state

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        logps = model.token_logps(params, rows)  # 0 where the mask is False
        per_token = jnp.where(rows.mask, loss(logps), 0)
        # Reported under its own count: averaged over tokens, where other methods average over examples.
        measured: Metrics = {
            "loss": losses.metrics.sum_count(per_token, rows.mask),
            "nll": losses.metrics.sum_count(losses.nll(logps), rows.mask),
        }
        if metrics is not None:
            measured |= metrics({"logps": logps, "mask": rows.mask})
        return jnp.sum(per_token * rows.extras["weight"]), measured

    return Method(prepare, microbatch_loss)
