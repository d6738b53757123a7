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
from jaxalign.methods.dpo import CHOSEN, REJECTED, ExtraMetrics
from jaxalign.models.model import Model
from jaxalign.rewards import ensemble


def from_language_model(model: Model, params: Any, key: Array, *, heads: int = 1) -> tuple[Model, Any]:
    """Returns a reward model on a language model's trunk, with fresh heads (normal, std 1/√(D + 1)).

    Args:
        model: the language model, best the one that was fine-tuned on demonstrations.
        params: its parameters. The reward model shares the trunk's arrays, and a training step donates them: copy them
            first if the language model is still needed. An untied language-model head is left out.
        key: random key of the heads.
        heads: M, scores per completion; several are an ensemble (see ``jaxalign.rewards.ensemble``).
    """
    scorer = dataclasses.replace(model, config=dataclasses.replace(model.config, num_scores=heads))
    fresh = jax.jit(lambda key: scorer.init_in_jit(key)["score"], out_shardings=scorer.param_shardings()["score"])
    trunk = {name: value for name, value in params.items() if name != "head"}
    return scorer, {**trunk, "score": fresh(key)}


def pairs(
    model: Model, *, centering: float = 0.0, bootstrap_seed: int = 0, metrics: ExtraMetrics | None = None
) -> Method:
    """Returns the method of a Bradley-Terry reward model (Ouyang et al. 2022, arXiv:2203.02155, eq. 1).

    The mean over pairs (and heads) of -log σ(r_c - r_r - margin) + c (r_c + r_r)².

    A tree may have a ``margin`` in its extras (Touvron et al. 2023, arXiv:2307.09288, eq. 2).

    Args:
        model: with ``config.num_scores`` heads. Several are trained on different bootstrap samples: head m weighs
            example i by a Poisson(1) sample of (``bootstrap_seed``, i, m) (online bagging, Oza and Russell 2001).
        centering: c, the coefficient of ``losses.reward_centering``, which keeps scores around 0.
        bootstrap_seed: seed of the bootstrap samples; not used with one head.
        metrics: further metrics: a function of {"chosen_rewards", "rejected_rewards": [R, E], the mean of the heads,
            "mask": [R, E]} that returns {name: (sum, count)}.

    Returns:
        The method, for ``loop.make_step``. ``loss`` is reported without the bootstrap's weights. The other metrics are
        of the heads' mean: ``rewards/brier`` is (1 - σ(r_c - r_r))², ``rewards/uncertainty`` their standard deviation.
    """

    def loss(scores: Float[Array, "R E 2 M"], rows: Rows) -> Float[Array, "R E M"]:
        if scores.shape[-2] != 2:
            raise ValueError(f"pairs needs trees of 2 completions, got {scores.shape[-2]}. Use rankings.")
        chosen, rejected = scores[..., CHOSEN, :], scores[..., REJECTED, :]
        margin = rows.extras["margin"][..., :1] if "margin" in rows.extras else jnp.zeros((*chosen.shape[:-1], 1))
        margin = jnp.where(rows.example_mask[..., None], margin, 0)
        per_pair = losses.bradley_terry(chosen, rejected, margin=jnp.broadcast_to(margin, chosen.shape))
        return per_pair + centering * losses.reward_centering(chosen, rejected)

    def measure(scores: Float[Array, "R E 2"], rows: Rows) -> tuple[Metrics, dict[str, Array]]:
        mask = rows.example_mask
        chosen, rejected = scores[..., CHOSEN], scores[..., REJECTED]
        brier = (1 - jax.nn.sigmoid(chosen - rejected)) ** 2
        measured: Metrics = {
            **losses.metrics.reward_metrics(chosen, rejected, mask),
            "rewards/brier": losses.metrics.sum_count(brier, mask),
        }
        return measured, {"chosen_rewards": chosen, "rejected_rewards": rejected, "mask": mask}

    return _method(model, loss, measure, metrics, bootstrap_seed)


def rankings(model: Model, *, bootstrap_seed: int = 0, metrics: ExtraMetrics | None = None) -> Method:
    """Returns the method of a reward model of rankings, best completion first (Plackett-Luce).

    The mean over rankings (and heads) of ``losses.plackett_luce`` (Rafailov et al. 2023, arXiv:2305.18290, eq. 18).
    Trees may rank different numbers of completions.

    Args:
        model: as for ``pairs``.
        bootstrap_seed: as for ``pairs``.
        metrics: as for ``pairs``, of {"rewards": [R, E, K], "mask": [R, E, K]}.

    Returns:
        The method, for ``loop.make_step``. ``rewards/concordance`` is the share of all pairs within the rankings that
        the heads' mean orders as the ranking does; ties count half.
    """

    def loss(scores: Float[Array, "R E K M"], rows: Rows) -> Float[Array, "R E M"]:
        by_head = jnp.moveaxis(scores, -1, -2)
        mask = jnp.broadcast_to(completion_mask(rows)[..., None, :], by_head.shape)
        return losses.plackett_luce(by_head, mask)

    def measure(scores: Float[Array, "R E K"], rows: Rows) -> tuple[Metrics, dict[str, Array]]:
        exists = completion_mask(rows)
        better = jnp.triu(jnp.ones((exists.shape[-1],) * 2, bool), 1)  # row k is ranked above column j > k
        mask = exists[..., :, None] & exists[..., None, :] & better
        ordered = (jnp.sign(scores[..., :, None] - scores[..., None, :]) + 1) / 2
        measured: Metrics = {
            "rewards/mean": losses.metrics.sum_count(scores, exists),
            "rewards/concordance": losses.metrics.sum_count(ordered, mask),
        }
        return measured, {"rewards": scores, "mask": exists}

    return _method(model, loss, measure, metrics, bootstrap_seed)


def _method(
    model: Model,
    loss: Callable[[Array, Rows], Array],
    measure: Callable[[Array, Rows], tuple[Metrics, dict[str, Array]]],
    metrics: ExtraMetrics | None,
    bootstrap_seed: int,
) -> Method:
    """Returns the mean over examples and heads of a loss of scores; ``pairs`` and ``rankings`` share it."""
    heads = model.config.num_scores
    if heads < 1:
        raise ValueError("The model has no scalar heads. Add them with methods.reward.from_language_model.")

    def prepare(params: Any, frozen: Any, method_state: Any, batch: Batch) -> tuple[Batch, Any]:
        used = batch.rows.example_mask
        weight = jnp.broadcast_to((used / jnp.maximum(jnp.sum(used), 1))[..., None], (*used.shape, heads))
        if heads > 1:
            if "index" not in batch.rows.extras:
                raise ValueError("An ensemble needs the index of its examples. Build the batches with data.batches.")
            weight = weight * bootstrap_weights(batch.rows.extras["index"][..., 0], heads, bootstrap_seed)
        return batch.with_extras(weight=weight), method_state

    def microbatch_loss(params: Any, rows: Rows) -> tuple[Array, Metrics]:
        scores = model.scores(params, rows)
        per_head = jnp.where(rows.example_mask[..., None], loss(scores, rows), 0)
        measured, arrays = measure(ensemble.mean(scores), rows)
        measured["loss"] = losses.metrics.sum_count(ensemble.mean(per_head), rows.example_mask)
        if metrics is not None:
            measured |= metrics(arrays)
        if heads > 1:
            measured["rewards/uncertainty"] = losses.metrics.sum_count(jnp.std(scores, axis=-1), completion_mask(rows))
        return jnp.sum(per_head * rows.extras["weight"]) / heads, measured

    return Method(prepare, microbatch_loss)


def bootstrap_weights(index: Int[Array, "*B"], heads: int, seed: int) -> Float[Array, "*B M"]:
    """Returns how often the bootstrap sample of a head contains an example: Poisson(1) of (seed, example, head)."""
    root = stream(seed, "bootstrap")

    def count(i: Array) -> Array:
        return jax.random.poisson(jax.random.fold_in(root, i), 1.0, (heads,))

    return jax.vmap(count)(index.reshape(-1)).reshape(*index.shape, heads).astype(jnp.float32)


def completion_scores(model: Model, params: Any, batches: Iterable[Batch]) -> Float[np.ndarray, "N K M"]:
    """Returns the scores of every example's completions, in the order of ``extras["index"]``; the M heads last."""
    return per_example(Model.scores, model, params, batches)
