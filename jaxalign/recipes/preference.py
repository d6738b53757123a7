"""The loss of a preference recipe: its configuration, and the method made of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxalign import losses
from jaxalign.errors import UserError
from jaxalign.loop import Method
from jaxalign.methods.dpo import dpo
from jaxalign.methods.wirings import WIRINGS, Loss, Wiring, name_of, required_options, wire
from jaxalign.models.model import Model
from jaxalign.rewards.call import load_reward

# β where the configuration gives none, for losses with a reference. Those without one have scales of their own.
BETA = 0.1
METHOD_RANGES = {
    "method.beta": (1e-6, math.inf),
    "method.label_smoothing": (0, 0.5),
    "method.tau": (1e-6, math.inf),
    "method.ld_alpha": (0, 1),
    "method.sft": (0, math.inf),
}


@dataclasses.dataclass(frozen=True)
class DpoSection:
    """The loss. A hyper-parameter that is set and that the loss does not take is refused.

    Args:
        loss: a preference loss of jaxalign.losses by its name (dpo, ipo, simpo, orpo, …; nll for SFT on the chosen
            answers), the user's own as module:function, or a weighted sum as {name: weight}
        beta: strength of the pull to the reference, by default 0.1; scale of the reward without a reference
        label_smoothing: probability that a preference label is flipped (cDPO)
        gamma: target margin (simpo, alpha_po)
        tau: temperature of discopop
        alpha: of alpha_po, or of the alpha divergence
        delta: reward shift of bco_pair; by default a running mean
        divergence: the divergence from the reference (f-DPO); by default reverse KL
        average: length averages (true) or sums (false) of log-probs; by default what the loss is defined on
        sft: coefficient of an SFT term on the chosen answers; by default what the loss's paper adds
        wpo: weight pairs by how likely the policy is to write them (WPO)
        ld_alpha: weight of tokens beyond the length of the shorter answer (LD-DPO)
        soft_labels: take label_smoothing from each pair's field of that name, as `jaxalign judge` writes it
        reference: cached computes the reference's log-probs once, before training; live computes them in every step,
            from a second copy of the parameters, or with lora from the base itself
    """

    loss: str | dict[str, float] = "dpo"
    beta: float | None = None
    label_smoothing: float | None = None
    gamma: float | None = None
    tau: float | None = None
    alpha: float | None = None
    delta: float | None = None
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha_divergence"] | None = None
    average: bool | None = None
    sft: float | None = None
    wpo: bool = False
    ld_alpha: float | None = None
    soft_labels: bool = False
    reference: Literal["cached", "live"] = "cached"


def build_method(
    section: DpoSection,
    model: Model,
    loss: Loss | Mapping[Loss, float] | None = None,
    metrics: Callable[..., Any] | None = None,
) -> Method:
    """Returns the method of a configuration.

    Args:
        section: The configuration.
        model: The policy.
        loss: A loss, or {loss: weight}, in place of the one that the section names.
        metrics: Further metrics; see ``methods.dpo.dpo``.

    Raises:
        UserError: For a loss that is unknown or not one of pairs, or hyper-parameters that it lacks or does not take.
    """
    loss, options = resolve_loss(section, loss)
    return dpo(
        model,
        loss=loss,
        average=section.average,
        sft=section.sft,
        wpo=section.wpo,
        ld_alpha=section.ld_alpha,
        soft_labels=section.soft_labels,
        metrics=metrics,
        **options,
    )


def needs_reference(section: DpoSection, loss: Loss | Mapping[Loss, float] | None = None) -> bool:
    """Returns whether the loss takes log-probs of a reference."""
    loss, options = resolve_loss(section, loss)
    placeholder = {"label_smoothing": 0.25} if section.soft_labels else {}
    return any(term.wiring.reference for term in wire(loss, **options | placeholder)[0])


def resolve_loss(
    section: DpoSection, loss: Loss | Mapping[Loss, float] | None = None
) -> tuple[Loss | Mapping[Loss, float], dict[str, Any]]:
    """Returns the loss or the sum of losses that a section names, and the hyper-parameters that are set."""
    if loss is None:
        names = section.loss
        loss = find_loss(names) if isinstance(names, str) else {find_loss(name): w for name, w in names.items()}
    options: dict[str, Any] = {
        "beta": section.beta,
        "label_smoothing": section.label_smoothing,
        "gamma": section.gamma,
        "tau": section.tau,
        "alpha": section.alpha,
        "delta": section.delta,
    }
    if section.divergence is not None:
        options["divergence"] = getattr(losses, section.divergence)
    if section.divergence == "alpha_divergence":
        if section.alpha is None:
            raise UserError("method.divergence is alpha_divergence. Set method.alpha too.")
        options["divergence"] = functools.partial(losses.alpha_divergence, alpha=options.pop("alpha"))
    for function in loss if isinstance(loss, Mapping) else [loss]:
        if section.beta is None and "beta" in required_options(function) and WIRINGS.get(function, Wiring()).reference:
            options["beta"] = BETA
    return loss, {name: value for name, value in options.items() if value is not None}


def find_loss(name: str) -> Loss:
    """Returns the preference loss of that name, or the function that ``module:function`` names.

    >>> find_loss("simpo") is losses.simpo
    True
    """
    if ":" in name:
        return load_reward(name)
    known = {name_of(loss): loss for loss in (*WIRINGS, losses.nll)}
    if name not in known:
        raise UserError(f"method.loss is {name}. Give module:function, or one of {', '.join(known)}.")
    return known[name]
