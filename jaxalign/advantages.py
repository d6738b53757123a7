"""Advantages: how much better an action was than expected. Also per-token rewards with a KL penalty, and whitening."""

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
    """Generalised advantage estimation over the tokens that count::

        δ_t = r_t + γ V_{t+1} - V_t        A_t = δ_t + γλ A_{t+1}        R_t = A_t + V_t

    where t + 1 is the next True position of the row, and V and A after the last one are 0 (the text has ended). Source:
    Schulman et al. 2015, arXiv:1506.02438, eqs. 11 and 16.

    Args:
      rewards, values: r and V, ``[..., T]``, one trajectory per row.
      mask: True on the tokens of the trajectory; holes are skipped over.
      gamma: discount γ.
      lam: λ: 0 trusts the values, 1 the rewards.
    Returns:
      (advantages, returns), each ``[..., T]``, 0 where masked whatever stands there; not whitened.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> rewards, values = jnp.array([[0.0, 9.0, 1.0]]), jnp.array([[0.5, 9.0, 0.25]])
    >>> mask = jnp.array([[True, False, True]])
    >>> gae(rewards, values, mask, gamma=1.0, lam=1.0)
    (Array([[0.5 , 0.  , 0.75]], dtype=float32), Array([[1., 0., 1.]], dtype=float32))
    """
    values = check.to_float("values", values)
    check.at_least_axes("values", values, 1, "[..., T]")
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
    """GRPO's advantages within the samples of a prompt: (r - mean r) / (std r + eps), the sample std (K - 1).

    Source: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300, sec. 4.1.2. Without the scale it is Dr. GRPO's, Liu et
    al. 2025, arXiv:2503.20783.

    Args:
      rewards: of the K samples of each prompt, ``[..., K]``.
      scale: divide by the standard deviation.
      eps: added to it.
    Returns:
      advantages, ``[..., K]``; 0 at K = 1.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> group_relative(jnp.array([[0.0, 1.0, 2.0]]))
    Array([[-0.9999,  0.    ,  0.9999]], dtype=float32)
    """
    rewards = check.to_number("rewards", rewards)
    check.at_least_axes("rewards", rewards, 1, "[..., K]")
    if rewards.shape[-1] == 1:
        return jnp.zeros_like(rewards)
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if not scale:
        return centred
    return centred / (jnp.std(rewards, axis=-1, ddof=1, keepdims=True) + eps)


def leave_one_out(rewards: Float[Array, "*B K"]) -> Float[Array, "*B K"]:
    """RLOO's advantages: r_k - mean of the other K - 1 samples of the prompt, which is (r_k - mean r) K/(K - 1).

    Source: Kool et al. 2019, https://openreview.net/forum?id=r1lgTGL5DE; for language models Ahmadian et al.
    2024, arXiv:2402.14740.

    Args:
      rewards: of the K samples of each prompt, ``[..., K]``.
    Returns:
      advantages, ``[..., K]``, which sum to 0; 0 at K = 1.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> leave_one_out(jnp.array([[0.0, 1.0, 5.0]]))
    Array([[-3. , -1.5,  4.5]], dtype=float32)
    """
    rewards = check.to_number("rewards", rewards)
    check.at_least_axes("rewards", rewards, 1, "[..., K]")
    num_samples = rewards.shape[-1]
    if num_samples == 1:
        return jnp.zeros_like(rewards)
    return (rewards - jnp.mean(rewards, axis=-1, keepdims=True)) * (num_samples / (num_samples - 1))


def per_sequence(
    group: Callable[[Float[Array, "*B K"]], Float[Array, "*B K"]],
) -> Callable[[Float[Array, "*B K C"], Bool[Array, "*B K C"]], Float[Array, "*B K C"]]:
    """(token rewards, mask) -> advantages in which every token has its completion's: group(Σ_t r_kt) on all of them.

    Args:
      group: of the K samples of a prompt, such as ``group_relative`` or ``leave_one_out``.
    Returns:
      the function; advantages are 0 where masked.

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
    """REINFORCE++: the rewards still to come, Σ_{s≥t} r_s, whitened over all tokens of the batch.

    Source: Hu et al. 2025, arXiv:2501.03262, for rewards that hold the KL penalty (``kl_shaped_rewards``).

    Args:
      rewards: per token, ``[..., C]``.
      mask: True on the tokens, of the same shape.
    Returns:
      advantages, 0 where masked.

    >>> reinforce_plus_plus(jnp.array([[0.0, 1.0], [0.0, -1.0]]), jnp.ones((2, 2), bool))
    Array([[ 1.,  1.],
           [-1., -1.]], dtype=float32)
    """
    return whiten(gae(rewards, jnp.zeros_like(rewards), mask, gamma=1.0, lam=1.0)[0], mask)


def reinforce_plus_plus_baseline(
    rewards: Float[Array, "*B K C"], mask: Bool[Array, "*B K C"]
) -> Float[Array, "*B K C"]:
    """REINFORCE++-baseline: rewards less their prompt's mean, then whitened over all tokens of the batch.

    Source: Hu et al. 2025, arXiv:2501.03262.

    Args:
      rewards: per token, of the K samples of each prompt, ``[..., K, C]``.
      mask: True on the tokens, of the same shape.
    Returns:
      advantages, 0 where masked.

    >>> rewards = jnp.array([[[3.0], [1.0]], [[9.0], [7.0]]])
    >>> reinforce_plus_plus_baseline(rewards, jnp.ones(rewards.shape, bool))[..., 0]
    Array([[ 1., -1.],
           [ 1., -1.]], dtype=float32)
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
    """Per-token rewards of RLHF: -β kl_t everywhere, plus the score on the last token.

    Source: Ziegler et al. 2019, arXiv:1909.08593, eq. 2, spread over tokens as in Ouyang et al. 2022, arXiv:2203.02155.

    Args:
      scores: one per completion, ``[...]``.
      logps, ref_logps: of its tokens under policy and reference, nats, ``[..., T]``.
      mask: True on its tokens, ``[..., T]``.
      beta: price of a nat of KL.
      estimator: as in ``jaxalign.logprobs.kl_estimate``.
    Returns:
      rewards, ``[..., T]``, 0 where masked; a row with no valid token drops its score.
    Raises:
      TypeError, ValueError: for a wrong type, shape or estimator, naming the argument.

    >>> logps, ref_logps, mask = jnp.array([[-1.0, -1.0, -1.0]]), jnp.zeros([1, 3]), jnp.array([[True, True, False]])
    >>> kl_shaped_rewards(jnp.array([2.0]), logps, ref_logps, mask, beta=0.5)
    Array([[0.5, 2.5, 0. ]], dtype=float32)
    """
    logps, ref_logps = check.real(logps=logps, ref_logps=ref_logps)
    check.at_least_axes("logps", logps, 1, "[..., T]")
    mask = check.to_mask("mask", mask, logps.shape, "logps")
    scores = check.to_number("scores", scores)
    check.same_shape("scores", scores, logps.shape[:-1], "logps without its last axis")
    kl = kl_estimate(jnp.where(mask, logps, 0), jnp.where(mask, ref_logps, 0), estimator=estimator)
    position = jnp.arange(mask.shape[-1])
    last = jnp.max(jnp.where(mask, position, -1), axis=-1, keepdims=True, initial=-1)
    return jnp.where(mask, -beta * kl + jnp.where(position == last, scores[..., None], 0), 0)


def whiten(x: Float[Array, "*B"], mask: Bool[Array, "*B"], *, shift_mean: bool = True) -> Float[Array, "*B"]:
    """Whitening over all entries that count: (x - mean) / √(var + 1e-8), with the biased variance.

    Source: https://github.com/openai/lm-human-preferences, lm_human_preferences/utils/core.py (Ziegler et al. 2019).

    Args:
      x: values of any shape; the statistics are over all of it.
      mask: which entries count, of the same shape.
      shift_mean: False puts the mean back.
    Returns:
      whitened values, 0 where masked; finite for no or one valid entry.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> whiten(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False]))
    Array([-1.,  1.,  0.], dtype=float32)
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
