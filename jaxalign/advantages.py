"""Advantages (how much better an action was than expected), per-token rewards with a KL penalty, and whitening."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxalign import _checks as check
from jaxalign.logprobs import kl_estimate


def gae(
    rewards: Float[Array, "*B T"],
    values: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    gamma: float,
    lam: float,
) -> tuple[Float[Array, "*B T"], Float[Array, "*B T"]]:
    """Computes generalised advantage estimates (GAE) and returns over the tokens that count.

        δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γλ A_{t+1}        R_t = A_t + V_t

    t + 1 is the next True position of the row. V and A after the last one are 0, because the text has ended.

    Args:
        rewards: r, one per token, ``[..., T]``, one trajectory per row.
        values: V, ``[..., T]``.
        mask: True on the tokens of the trajectory, ``[..., T]``; holes are skipped.
        gamma: γ, discount.
        lam: λ: 0 trusts the values, 1 the rewards.

    Returns:
        ``(advantages, returns)``, each ``[..., T]``, 0 where masked whatever the inputs contain there; not whitened.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> rewards, values = jnp.array([[0.0, 9.0, 1.0]]), jnp.array([[0.5, 9.0, 0.25]])
    >>> mask = jnp.array([[True, False, True]])
    >>> gae(rewards, values, mask, gamma=1.0, lam=1.0)
    (Array([[0.5 , 0.  , 0.75]], dtype=float32), Array([[1., 0., 1.]], dtype=float32))

    Source: Schulman et al. 2015, arXiv:1506.02438, eqs. 11 and 16.
    """
    values = check.to_float("values", values, "[..., T]")
    rewards = check.to_number("rewards", rewards)
    check.same_shape("rewards", rewards, values.shape, "values")
    mask = check.to_mask("mask", mask, values.shape, "values")
    dtype = jnp.result_type(rewards, values)
    rewards, values = (jnp.where(mask, x, 0).astype(dtype) for x in (rewards, values))
    discount, decay = jnp.asarray(gamma, dtype), jnp.asarray(gamma * lam, dtype)

    def step(after: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        next_value, next_advantage = after
        reward, value, counts = now
        advantage = reward + discount * next_value - value + decay * next_advantage
        return (jnp.where(counts, value, next_value), jnp.where(counts, advantage, next_advantage)), advantage

    zeros = jnp.zeros(values.shape[:-1], dtype)
    time_first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (rewards, values, mask))
    _, advantages = jax.lax.scan(step, (zeros, zeros), time_first, reverse=True)
    advantages = jnp.where(mask, jnp.moveaxis(advantages, 0, -1), 0)
    return advantages, advantages + values


def group_relative(rewards: Float[Array, "*B K"], *, scale: bool = True, eps: float = 1e-4) -> Float[Array, "*B K"]:
    """Computes GRPO's advantages within the K samples of each prompt.

        (r - mean r) / (std r + eps)

    std is the sample standard deviation (K - 1). Without the scale these are Dr. GRPO's advantages. Equal rewards give
    0, up to the rounding of their mean divided by ``eps``.

    Args:
        rewards: of the K samples of each prompt, ``[..., K]``.
        scale: divide by the standard deviation.
        eps: added to it.

    Returns:
        advantages, ``[..., K]``; 0 at K = 1.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> group_relative(jnp.array([[0.0, 1.0, 2.0]]))
    Array([[-0.9999,  0.    ,  0.9999]], dtype=float32)

    Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, sec. 4.1.2; Dr. GRPO: Liu et al. 2025, arXiv:2503.20783.
    """
    rewards = check.to_number("rewards", rewards, "[..., K]")
    if rewards.shape[-1] == 1:
        return jnp.zeros_like(rewards)
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if not scale:
        return centred
    return centred / (jnp.std(rewards, axis=-1, ddof=1, keepdims=True) + eps)


def leave_one_out(rewards: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """Computes RLOO's advantages: a sample's reward minus the mean of the prompt's other samples.

        r_k - mean_{j≠k} r_j = (r_k - mean r) K/(K - 1)

    Args:
        rewards: of the K samples of each prompt, ``[..., K]``.

    Returns:
        advantages, ``[..., K]``, which sum to 0; 0 at K = 1.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> leave_one_out(jnp.array([[0.0, 1.0, 5.0]]))
    Array([[-3. , -1.5,  4.5]], dtype=float32)

    Source: Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE; for language models Ahmadian et al. 2024,
    arXiv:2402.14740.
    """
    centred = group_relative(rewards, scale=False)
    num_samples = centred.shape[-1]
    return centred * (num_samples / max(num_samples - 1, 1))


def per_sequence(
    group: Callable[[Float[Array, "*B K"]], Float[Array, "*B K"]],
) -> Callable[[Float[Array, "*B K C"], Bool[Array, "*B K C"]], Float[Array, "*B K C"]]:
    """Returns a function that gives every token the advantage of its completion's summed reward.

    Args:
        group: advantages of the K samples of a prompt, such as ``group_relative`` or ``leave_one_out``.

    Returns:
        a function ``(token rewards, mask) -> advantages``, all ``[..., K, C]``; advantages are 0 where masked.

    >>> rewards, mask = jnp.array([[[0.0, 1.0], [0.0, 0.0]]]), jnp.array([[[True, True], [True, False]]])
    >>> per_sequence(leave_one_out)(rewards, mask)
    Array([[[ 1.,  1.],
            [-1.,  0.]]], dtype=float32)
    """

    def advantages(rewards: Float[Array, "*B K C"], mask: Bool[Array, "*B K C"]) -> Float[Array, "*B K C"]:
        scores = jnp.sum(jnp.where(mask, rewards, 0), axis=-1)
        return jnp.where(mask, group(scores)[..., None], 0)

    return advantages


def reinforce_plus_plus(rewards: Float[Array, "*B K C"], mask: Bool[Array, "*B K C"]) -> Float[Array, "*B K C"]:
    """Computes REINFORCE++'s advantages: the rewards to come, whitened over all tokens of the batch.

        whiten(Σ_{s≥t} r_s)

    The rewards contain the KL penalty (``kl_shaped_rewards``).

    Args:
        rewards: per token, ``[..., C]``.
        mask: True on the tokens, ``[..., C]``.

    Returns:
        advantages, ``[..., C]``, 0 where masked.

    >>> reinforce_plus_plus(jnp.array([[0.0, 1.0], [0.0, -1.0]]), jnp.ones((2, 2), bool))
    Array([[ 1.,  1.],
           [-1., -1.]], dtype=float32)

    Source: Hu et al. 2025, arXiv:2501.03262.
    """
    return whiten(gae(rewards, jnp.zeros_like(rewards), mask, gamma=1.0, lam=1.0)[0], mask)


def reinforce_plus_plus_baseline(
    rewards: Float[Array, "*B K C"], mask: Bool[Array, "*B K C"]
) -> Float[Array, "*B K C"]:
    """Computes REINFORCE++-baseline: rewards minus their prompt's mean, whitened over all tokens of the batch.

    Args:
        rewards: per token, of the K samples of each prompt, ``[..., K, C]``.
        mask: True on the tokens, ``[..., K, C]``.

    Returns:
        advantages, ``[..., K, C]``, 0 where masked.

    >>> rewards = jnp.array([[[3.0], [1.0]], [[9.0], [7.0]]])
    >>> reinforce_plus_plus_baseline(rewards, jnp.ones(rewards.shape, bool))[..., 0]
    Array([[ 1., -1.],
           [ 1., -1.]], dtype=float32)

    Source: Hu et al. 2025, arXiv:2501.03262.
    """
    centred = per_sequence(lambda scores: group_relative(scores, scale=False))
    return whiten(centred(rewards, mask), mask)


def kl_shaped_rewards(
    scores: Float[Array, "*B"],
    logps: Float[Array, "*B T"],
    ref_logps: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    beta: float | Float[Array, ""],
    estimator: str = "k1",
) -> Float[Array, "*B T"]:
    """Computes the per-token rewards of RLHF: a KL penalty on each token, and the score on the last one.

        -β kl_t + [t is the last token] score

    Args:
        scores: one per completion, ``[...]``.
        logps: log-probabilities of the completion's tokens under the policy, nats, ``[..., T]``.
        ref_logps: the same under the reference.
        mask: True on the completion's tokens, ``[..., T]``.
        beta: β, price of a nat of KL.
        estimator: ``k1``, ``k2`` or ``k3``, as in ``jaxalign.logprobs.kl_estimate``.

    Returns:
        rewards, ``[..., T]``, 0 where masked; a row with no valid token drops its score.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape, or if the estimator is unknown; the message names it.

    >>> logps, ref_logps, mask = jnp.array([[-1.0, -1.0, -1.0]]), jnp.zeros([1, 3]), jnp.array([[True, True, False]])
    >>> kl_shaped_rewards(jnp.array([2.0]), logps, ref_logps, mask, beta=0.5)
    Array([[0.5, 2.5, 0. ]], dtype=float32)

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2, spread over tokens as in Ouyang et al. 2022, arXiv:2203.02155.
    """
    logps, ref_logps = check.to_floats(logps=logps, ref_logps=ref_logps)
    check.has_axis("logps", logps, "[..., T]")
    mask = check.to_mask("mask", mask, logps.shape, "logps")
    scores = check.to_number("scores", scores)
    check.same_shape("scores", scores, logps.shape[:-1], "logps without its last axis")
    kl = kl_estimate(jnp.where(mask, logps, 0), jnp.where(mask, ref_logps, 0), estimator=estimator)
    position = jnp.arange(mask.shape[-1])
    last = jnp.max(jnp.where(mask, position, -1), axis=-1, keepdims=True, initial=-1)
    return jnp.where(mask, -beta * kl + jnp.where(position == last, scores[..., None], 0), 0)


def whiten(x: Float[Array, "*B"], mask: Bool[Array, "*B"], *, shift_mean: bool = True) -> Float[Array, "*B"]:
    """Whitens values over all entries that count, with the biased variance.

        (x - mean) / √(var + 1e-8)

    Equal values give 0 (or their mean, if it is put back), up to the rounding of their mean times 1e4.

    Args:
        x: values of any shape; the statistics are over all of it.
        mask: True on entries that count, of the same shape.
        shift_mean: False adds the mean back.

    Returns:
        whitened values, of the same shape, 0 where masked; finite for 0 or 1 valid entries.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> whiten(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)

    Source: https://github.com/openai/lm-human-preferences, lm_human_preferences/utils/core.py (Ziegler et al. 2019).
    """
    x = check.to_float("x", x)
    mask = check.to_mask("mask", mask, x.shape, "x")
    dtype = x.dtype
    x = jnp.where(mask, x, 0).astype(jnp.promote_types(dtype, jnp.float32))  # 1e-8 is 0 in float16
    count = jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    mean = jnp.sum(x) / count
    centred = jnp.where(mask, x - mean, 0)
    whitened = centred * jax.lax.rsqrt(jnp.sum(centred**2) / count + 1e-8)
    return (whitened if shift_mean else jnp.where(mask, whitened + mean, 0)).astype(dtype)
