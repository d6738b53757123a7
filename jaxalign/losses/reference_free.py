"""Preference losses without a reference model: SimPO, CPO, ORPO, AlphaPO."""

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
    """Simple preference optimisation: -log σ(β(a_c - a_r) - γ).

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.

    Args:
      policy_chosen_avg_logps, policy_rejected_avg_logps: a_c and a_r, nats per token, ``[...]``.
      beta: scale of the reward (2 to 10 in the paper, larger than DPO's).
      gamma: target margin.
      label_smoothing: as in ``dpo``.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> simpo(jnp.array([-0.5]), jnp.array([-1.0]), beta=2.0, gamma=0.5)
    Array([0.4740...], dtype=float32)
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
    """AlphaPO, SimPO with a bent reward: -log σ(β(r_c - r_r) - γ), r = (1 - exp(-α a)) / α.

    Source: Gupta et al. 2025, arXiv:2501.03884. α → 0 is SimPO; at α = 0 use that. The exponent is cut as in
    ``forward_kl``.

    Args:
      policy_chosen_avg_logps, policy_rejected_avg_logps: a_c and a_r, nats per token, ``[...]``.
      beta: scale of the reward.
      gamma: target margin.
      alpha: bend of the reward, not 0.
      label_smoothing: as in ``dpo``.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> alpha_po(jnp.array([-0.5]), jnp.array([-1.0]), beta=2.0, gamma=0.5, alpha=0.25)
    Array([0.4008...], dtype=float32)
    """
    a_c, a_r = _averages(policy_chosen_avg_logps, policy_rejected_avg_logps)
    margin = (bounded_expm1(-alpha * a_r) - bounded_expm1(-alpha * a_c)) / alpha
    return logistic_link(beta * margin - gamma, label_smoothing=label_smoothing)


def cpo(
    policy_chosen_logps: Logps, policy_rejected_logps: Logps, *, beta: float, label_smoothing: float = 0.0
) -> Logps:
    """Contrastive preference optimisation, DPO under a uniform reference: logistic_link(β(pc - pr)).

    Source: Xu et al. 2024, arXiv:2401.08417, eq. 3; the paper adds the negative log-likelihood of the chosen
    completion.

    Args:
      policy_chosen_logps, policy_rejected_logps: nats, ``[...]``.
      beta: scale of the reward.
      label_smoothing: as in ``dpo``.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> cpo(jnp.array([-1.0]), jnp.array([-4.0]), beta=0.1)
    Array([0.5543...], dtype=float32)
    """
    pc, pr = check.real(policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps)
    return logistic_link(beta * (pc - pr), label_smoothing=label_smoothing)


def orpo(policy_chosen_avg_logps: Logps, policy_rejected_avg_logps: Logps) -> Logps:
    """Odds ratio preference optimisation's penalty: -log σ(log-odds(a_c) - log-odds(a_r)).

    log-odds(a) = a - log(1 - exp a). Source: Hong et al. 2024, arXiv:2403.07691, eq. 7; the whole objective (eq. 6) is
    the negative log-likelihood of the chosen completion plus λ times this.

    Args:
      policy_chosen_avg_logps, policy_rejected_avg_logps: a_c and a_r, nats per token, ``[...]``, at most 0.
    Returns:
      loss per pair, ``[...]``.
    Raises:
      TypeError, ValueError: for a wrong type or shape, naming the argument.

    >>> orpo(jnp.array([-0.5]), jnp.array([-1.0]))
    Array([0.3202...], dtype=float32)
    """
    a_c, a_r = _averages(policy_chosen_avg_logps, policy_rejected_avg_logps)
    return -log_sigmoid(_log_odds(a_c) - _log_odds(a_r))


def _log_odds(avg_logps: Logps) -> Logps:
    # A log-prob of 0 has infinite odds: the smallest normal number below keeps the result finite, its gradient 0.
    below_zero = jnp.minimum(avg_logps, -jnp.finfo(avg_logps.dtype).tiny)
    return below_zero - jnp.log(-jnp.expm1(below_zero))


def _averages(policy_chosen_avg_logps: Logps, policy_rejected_avg_logps: Logps) -> list[Array]:
    return check.real(
        policy_chosen_avg_logps=policy_chosen_avg_logps, policy_rejected_avg_logps=policy_rejected_avg_logps
    )
