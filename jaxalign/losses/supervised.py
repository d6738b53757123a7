"""Supervised and distillation losses: negative log-likelihood, DFT, generalised Jensen-Shannon."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxalign import _checks as check

Logits = Float[Array, "*B V"]


def nll(logps: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Computes the negative log-likelihood.

        -log π

    Args:
        logps: of the target tokens, nats, ``[...]``.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.

    >>> nll(jnp.array([-1.5]))
    Array([1.5], dtype=float32)
    """
    return -check.to_float("logps", logps)


def dft(logps: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Computes dynamic fine-tuning (DFT), the likelihood-weighted negative log-likelihood.

        -stop_gradient(π) log π

    Args:
        logps: of the target tokens, nats, ``[...]``.

    Returns:
        loss, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.

    >>> dft(jnp.log(jnp.array([0.5])))
    Array([0.3465...], dtype=float32)

    Source: Wu et al. 2025, arXiv:2508.05629.
    """
    logps = check.to_float("logps", logps)
    return -jax.lax.stop_gradient(jnp.exp(logps)) * logps


def distill_forward_kl(
    student_logits: Logits, teacher_logits: Logits, *, temperature: float = 1.0
) -> Float[Array, "*B"]:
    """Computes KL(teacher ‖ student) per token, which covers all that the teacher may say.

        Σ_v p_T (log p_T - log p_S)

    Args:
        student_logits: unnormalised log-probabilities of the student, ``[..., V]``.
        teacher_logits: the same of the teacher; held constant.
        temperature: divides both.

    Returns:
        loss per token in nats, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> distill_forward_kl(jnp.zeros([1, 2]), jnp.log(jnp.array([[0.9, 0.1]])))
    Array([0.3680...], dtype=float32)

    Source: Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2023, arXiv:2306.13649, sec. 2.
    """
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return _kl(teacher, student)


def distill_reverse_kl(
    student_logits: Logits, teacher_logits: Logits, *, temperature: float = 1.0
) -> Float[Array, "*B"]:
    """Computes KL(student ‖ teacher) per token, which seeks the teacher's mode.

        Σ_v p_S (log p_S - log p_T)

    Args:
        student_logits: unnormalised log-probabilities of the student, ``[..., V]``.
        teacher_logits: the same of the teacher; held constant.
        temperature: divides both.

    Returns:
        loss per token in nats, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape; the message names it.

    >>> distill_reverse_kl(jnp.zeros([1, 2]), jnp.log(jnp.array([[0.9, 0.1]])))
    Array([0.5108...], dtype=float32)

    Source: Gu et al. 2023 (MiniLLM), arXiv:2306.08543, eq. 1; Agarwal et al. 2023, arXiv:2306.13649, sec. 2.
    """
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    return _kl(student, teacher)


def generalized_jsd(
    student_logits: Logits, teacher_logits: Logits, *, beta: float, temperature: float = 1.0
) -> Float[Array, "*B"]:
    """Computes the generalised Jensen-Shannon divergence per token.

        β KL(p_T ‖ m) + (1-β) KL(p_S ‖ m),        m = β p_T + (1-β) p_S

    It vanishes as β goes to 0 or 1. Divided by β or 1-β, its limits are ``distill_forward_kl`` and
    ``distill_reverse_kl``.

    Args:
        student_logits: unnormalised log-probabilities of the student, ``[..., V]``.
        teacher_logits: the same of the teacher; held constant.
        beta: β, the teacher's share of the mixture, in (0, 1).
        temperature: divides both.

    Returns:
        loss per token in nats, ``[...]``.

    Raises:
        TypeError: if an argument has the wrong type; the message names it.
        ValueError: if an argument has the wrong shape, or if β is outside (0, 1); the message names it.

    >>> generalized_jsd(jnp.zeros([1, 2]), jnp.log(jnp.array([[0.9, 0.1]])), beta=0.5)
    Array([0.1017...], dtype=float32)

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649, eq. 1.
    """
    check.in_interval("beta", beta, 0, 1, open_low=True)
    student, teacher = _log_probs(student_logits, teacher_logits, temperature)
    mixture = jnp.logaddexp(student + jnp.log1p(-beta), teacher + jnp.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(log_p: Logits, log_q: Logits) -> Float[Array, "*B"]:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _log_probs(student_logits: Logits, teacher_logits: Logits, temperature: float) -> tuple[Array, Array]:
    student, teacher = check.to_floats(student_logits=student_logits, teacher_logits=teacher_logits)
    check.has_axis("student_logits", student, "[..., V]")
    wide = jnp.promote_types(student.dtype, jnp.float32)
    student, teacher = (jax.nn.log_softmax(x.astype(wide) / temperature, axis=-1) for x in (student, teacher))
    return student, jax.lax.stop_gradient(teacher)
