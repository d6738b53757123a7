"""Preference losses without a reference model: SimPO, AlphaPO, SimPER, CPO, ORPO."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import log_sigmoid
from jaxtyping import Array, Float

from jaxalign import _checks as check
from jaxalign.losses.divergences import bounded_expm1
from jaxalign.losses.pairwise import logistic_link

Logps = Float[Array, "*B"]


def simpo(
    policy_chosen_avg_logps: Logps,
    policy_rejected_avg_logps: Logps,
    *,
    beta: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Logps:
    """Computes the loss of simple preference optimisation (SimPO).

        -log σ(β(a_c - a_r) - γ)

    Args:
        policy_chosen_avg_logps: a_c, average log-probability of the chosen completion's tokens, nats per token,
            ``[...]``.
        policy_rejected_avg_logps: a_r, the same of the rejected completion.
        beta: β, scale of the reward (2 to 10 in the paper, larger than DPO's).
        gamma: γ, target margin.
        label_smoothing: as in ``dpo``.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> simpo(jnp.array([-0.5]), jnp.array([-1.0]), beta=2.0, gamma=0.5)
    Array([0.4740...], dtype=float32)

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    a_c, a_r = _averages(policy_chosen_avg_logps, policy_rejected_avg_logps)
    return logistic_link(beta * (a_c - a_r) - gamma, label_smoothing=label_smoothing)


def alpha_po(
    policy_chosen_avg_logps: Logps,
    policy_rejected_avg_logps: Logps,
    *,
    beta: float,
    gamma: float,
    alpha: float,
    label_smoothing: float = 0.0,
) -> Logps:
    """Computes AlphaPO, SimPO with a reward that is a power of the likelihood.

        -log σ(β(r_c - r_r) - γ),        r = (1 - exp(-α a)) / α

    The limit α → 0 is SimPO; use ``simpo`` at α = 0. The exponent is cut as in ``forward_kl``.

    Args:
        policy_chosen_avg_logps: a_c, average log-probability of the chosen completion's tokens, nats per token,
            ``[...]``.
        policy_rejected_avg_logps: a_r, the same of the rejected completion.
        beta: β, scale of the reward.
        gamma: γ, target margin.
        alpha: α, curvature of the reward, not 0.
        label_smoothing: as in ``dpo``.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> alpha_po(jnp.array([-0.5]), jnp.array([-1.0]), beta=2.0, gamma=0.5, alpha=0.25)
    Array([0.4008...], dtype=float32)

    Source: Gupta et al. 2025, arXiv:2501.03884.
    """
    a_c, a_r = _averages(policy_chosen_avg_logps, policy_rejected_avg_logps)
    margin = (bounded_expm1(-alpha * a_r) - bounded_expm1(-alpha * a_c)) / alpha
    return logistic_link(beta * margin - gamma, label_smoothing=label_smoothing)


def simper(policy_chosen_avg_logps: Logps, policy_rejected_avg_logps: Logps) -> Logps:
    """Computes SimPER, which optimises inverse perplexities and has no hyper-parameters.

        exp(a_r) - exp(a_c)

    Args:
        policy_chosen_avg_logps: a_c, average log-probability of the chosen completion's tokens, nats per token,
            ``[...]``.
        policy_rejected_avg_logps: a_r, the same of the rejected completion.

    Returns:
        loss per pair, in (-1, 1), ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> simper(jnp.array([-0.5]), jnp.array([-1.0]))
    Array([-0.2386...], dtype=float32)

    Source: Xiao et al. 2025, arXiv:2502.00883.
    """
    a_c, a_r = _averages(policy_chosen_avg_logps, policy_rejected_avg_logps)
    return jnp.exp(a_r) - jnp.exp(a_c)


def cpo(
    policy_chosen_logps: Logps, policy_rejected_logps: Logps, *, beta: float, label_smoothing: float = 0.0
) -> Logps:
    """Computes contrastive preference optimisation (CPO), which is DPO under a uniform reference.

        logistic_link(β(pc - pr))

    pc and pr are the two arguments. The paper adds the negative log-likelihood of the chosen completion, ``nll``.

    Args:
        policy_chosen_logps: log-probabilities of the chosen completions under the policy, nats, ``[...]``.
        policy_rejected_logps: the same of the rejected completions.
        beta: β, scale of the reward.
        label_smoothing: as in ``dpo``.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> cpo(jnp.array([-1.0]), jnp.array([-4.0]), beta=0.1)
    Array([0.5543...], dtype=float32)

    Source: Xu et al. 2024, arXiv:2401.08417, eq. 3.
    """
    pc, pr = check.to_floats(policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps)
    return logistic_link(beta * (pc - pr), label_smoothing=label_smoothing)


def orpo(policy_chosen_avg_logps: Logps, policy_rejected_avg_logps: Logps) -> Logps:
    """Computes the penalty of odds ratio preference optimisation (ORPO).

        -log σ(log-odds(a_c) - log-odds(a_r)),        log-odds(a) = a - log(1 - exp a)

    The paper's objective (eq. 6) is the negative log-likelihood of the chosen completion plus λ times this penalty.

    Args:
        policy_chosen_avg_logps: a_c, average log-probability of the chosen completion's tokens, nats per token, at most
            0, ``[...]``.
        policy_rejected_avg_logps: a_r, the same of the rejected completion.

    Returns:
        loss per pair, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> orpo(jnp.array([-0.5]), jnp.array([-1.0]))
    Array([0.3202...], dtype=float32)

    Source: Hong et al. 2024, arXiv:2403.07691, eq. 7.
    """
    a_c, a_r = _averages(policy_chosen_avg_logps, policy_rejected_avg_logps)
    return -log_sigmoid(_log_odds(a_c) - _log_odds(a_r))


def _log_odds(avg_logps: Logps) -> Logps:
    # A log-probability of 0 has infinite odds. The largest normal number below 0 keeps it finite, with gradient 0.
    below_zero = jnp.minimum(avg_logps, -jnp.finfo(avg_logps.dtype).tiny)
    return below_zero - jnp.log(-jnp.expm1(below_zero))


def _averages(policy_chosen_avg_logps: Logps, policy_rejected_avg_logps: Logps) -> list[Array]:
    return check.to_floats(
        policy_chosen_avg_logps=policy_chosen_avg_logps, policy_rejected_avg_logps=policy_rejected_avg_logps
    )
