"""Reward models: scalar heads on the state of a completion's last token, trained on pairs or rankings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxalign import losses
from jaxalign.keys import stream
from jaxalign.loop import Batch, Method, Metrics, per_example
from jaxalign.masking import Rows, completion_mask
from jaxalign.methods.dpo import CHOSEN, REJECTED
from jaxalign.models.model import Model
from jaxalign.rewards import ensemble


def from_language_model(model: Model, params: Any, key: Array, *, heads: int = 1) -> tuple[Model, Any]:
    """A reward model on a language model's trunk, with fresh heads (normal, std 1/√(D + 1)).

    Args:
      model: the language model, best the one that was fine-tuned on demonstrations.
      params: its parameters. The trunk's arrays are taken over: copy them first if the language model is still needed,
        as a training step reuses its buffers. An untied language-model head is left out.
      key: random key of the heads.
      heads: M, scores per completion; several are an ensemble (see ``jaxalign.rewards.ensemble``).
    """
    scorer = dataclasses.replace(model, config=dataclasses.replace(model.config, num_scores=heads))
    fresh = jax.jit(lambda key: scorer.draw(key)["score"], out_shardings=scorer.param_shardings()["score"])
    trunk = {name: value for name, value in params.items() if name != "head"}
    return scorer, {**trunk, "score": fresh(key)}


def pairs(model: Model, *, centering: float = 0.0, bootstrap_seed: int = 0) -> Method:
    """A Bradley-Terry reward model (Ouyang et al. 2022, arXiv:2203.02155, eq. 1).

    The mean over pairs (and heads) of -log σ(r_c - r_r - margin) + c (r_c + r_r)².

    A tree may bring a ``margin`` in its extras (Touvron et al. 2023, arXiv:2307.09288, eq. 2).

    Args:
      model: with ``config.num_scores`` heads. Several are trained on different bootstrap samples: head m weighs example
        i by a Poisson(1) draw of (``bootstrap_seed``, i, m) (online bagging, Oza and Russell 2001).
      centering: c, the coefficient of ``losses.reward_centering``, which keeps scores around 0.
      bootstrap_seed: of the draws; nothing with one head.
    Returns:
      the method, for ``loop.make_step``. ``loss`` is reported without the bootstrap's weights; the other metrics are of
      the heads' mean, ``rewards/brier`` is (1 - σ(r_c - r_r))², ``rewards/uncertainty`` the heads' standard deviation.
    """

    def loss(scores: Float[Array, "R E 2 M"], rows: Rows) -> Float[Array, "R E M"]:
        if scores.shape[-2] != 2:
            raise ValueError(f"pairs needs trees of 2 completions, got {scores.shape[-2]}: use rankings.")
        chosen, rejected = scores[..., CHOSEN, :], scores[..., REJECTED, :]
        margin = rows.extras["margin"][..., :1] if "margin" in rows.extras else jnp.zeros((*chosen.shape[:-1], 1))
        margin = jnp.where(rows.example_mask[..., None], margin, 0)
        per_pair = losses.bradley_terry(chosen, rejected, margin=jnp.broadcast_to(margin, chosen.shape))
        return per_pair + centering * losses.reward_centering(chosen, rejected)

    def metrics(scores: Float[Array, "R E 2"], rows: Rows) -> Metrics:
        mask = rows.example_mask
        chosen, rejected = scores[..., CHOSEN], scores[..., REJECTED]
        brier = (1 - jax.nn.sigmoid(chosen - rejected)) ** 2
        return {
            **losses.metrics.reward_metrics(chosen, rejected, mask),
            "rewards/brier": losses.metrics.sum_count(brier, mask),
        }

    return _method(model, loss, metrics, bootstrap_seed)


def rankings(model: Model, *, bootstrap_seed: int = 0) -> Method:
    """A reward model of rankings, best completion first (Plackett-Luce).

    The mean over rankings (and heads) of ``losses.plackett_luce`` (Rafailov et al. 2023, arXiv:2305.18290, eq. 18).
    Trees may rank different numbers of completions. The arguments are those of ``pairs``.

    Returns:
      the method, for ``loop.make_step``. ``rewards/concordance`` is the share of all pairs within the rankings that the
      heads' mean orders as they do, ties counting half.
    """

    def loss(scores: Float[Array, "R E K M"], rows: Rows) -> Float[Array, "R E M"]:
        by_head = jnp.moveaxis(scores, -1, -2)
        mask = jnp.broadcast_to(completion_mask(rows)[..., None, :], by_head.shape)
        return losses.plackett_luce(by_head, mask)

    def metrics(scores: Float[Array, "R E K"], rows: Rows) -> Metrics:
        there = completion_mask(rows)
        better = jnp.triu(jnp.ones((there.shape[-1],) * 2, bool), 1)  # row k is ranked above column j > k
        mask = there[..., :, None] & there[..., None, :] & better
        ordered = (jnp.sign(scores[..., :, None] - scores[..., None, :]) + 1) / 2
        return {
            "rewards/mean": losses.metrics.sum_count(scores, there),
            "rewards/concordance": losses.metrics.sum_count(ordered, mask),
        }

    return _method(model, loss, metrics, bootstrap_seed)


def _method(
    model: Model,
    loss: Callable[[Array, Rows], Array],
    metrics: Callable[[Array, Rows], Metrics],
    bootstrap_seed: int,
) -> Method:
    """Scores of all heads, a loss per example and head, the mean over both; what ``pairs`` and ``rankings`` share."""
    heads = model.config.num_scores
    if heads < 1:
        raise ValueError("model has no scalar heads: make one with methods.reward.from_language_model.")

    def prepare(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        used = batch.rows.example_mask
        weight = jnp.broadcast_to((used / jnp.maximum(jnp.sum(used), 1))[..., None], (*used.shape, heads))
        if heads > 1:
            if "index" not in batch.rows.extras:
                raise ValueError("an ensemble needs the index of each example: make the batches with data.batches.")
            weight = weight * bootstrap_weights(batch.rows.extras["index"][..., 0], heads, bootstrap_seed)
        extras = {**batch.rows.extras, "weight": weight}
        return dataclasses.replace(batch, rows=dataclasses.replace(batch.rows, extras=extras)), method_state

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        scores = model.scores(params, rows)
        per_head = jnp.where(rows.example_mask[..., None], loss(scores, rows), 0)
        measured = {
            "loss": losses.metrics.sum_count(ensemble.mean(per_head), rows.example_mask),
            **metrics(ensemble.mean(scores), rows),
        }
        if heads > 1:
            measured["rewards/uncertainty"] = losses.metrics.sum_count(jnp.std(scores, axis=-1), completion_mask(rows))
        return jnp.sum(per_head * rows.extras["weight"]) / heads, measured

    return Method(prepare, microbatch_loss)


def bootstrap_weights(index: Int[Array, "*B"], heads: int, seed: int) -> Float[Array, "*B M"]:
    """How often each example is in each head's bootstrap sample: Poisson(1), by (seed, example, head) alone."""
    root = stream(seed, "bootstrap")

    def draw(i: Array) -> Array:
        return jax.random.poisson(jax.random.fold_in(root, i), 1.0, (heads,))

    return jax.vmap(draw)(index.reshape(-1)).reshape(*index.shape, heads).astype(jnp.float32)


def completion_scores(model: Model, params: Any, batches: Iterable[Batch]) -> Float[np.ndarray, "N K M"]:
    """Returns the scores of every example's completions, in the order of ``extras["index"]``; the M heads last."""
    return per_example(Model.scores, model, params, batches)
