"""The inputs of each preference loss, and the terms that its paper adds: one table, keyed by the loss function.

Your own loss is called as ``loss(pc, pr, rc, rr) -> [B]``, with summed log-probs of the chosen and the rejected
completion, first of the policy, then of the reference. To wire it in another way, add a row to ``WIRINGS``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array

from jaxalign import losses
from jaxalign.errors import UserError

Loss = Callable[..., Array]
KEYWORD_ONLY, EMPTY = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Wiring:
    """What a preference loss takes, and what its paper adds.

    Attributes:
        average: log-probs averaged over the tokens of each completion (nats per token) in place of their sums.
        reference: the log-probs of the reference, after those of the policy.
        coupled: the values of a batch depend on one another, by a sort over the batch.
        sft: coefficient of the SFT term that the paper adds: the chosen completions' negative log-likelihood per token.
        running_delta: ``delta`` is the running mean of rewards, kept in the method state, unless it is given.
    """

    average: bool = False
    reference: bool = True
    coupled: bool = False
    sft: float = 0.0
    running_delta: bool = False


WIRINGS: dict[Loss, Wiring] = {
    losses.dpo: Wiring(),
    losses.robust_dpo: Wiring(),
    losses.hinge: Wiring(),
    losses.exo_pair: Wiring(),
    losses.nca_pair: Wiring(),
    losses.sppo_hard: Wiring(),
    losses.apo_zero: Wiring(),
    losses.apo_down: Wiring(),
    losses.discopop: Wiring(),
    losses.bco_pair: Wiring(running_delta=True),
    losses.ipo: Wiring(average=True),
    losses.aot: Wiring(coupled=True),
    losses.aot_unpaired: Wiring(coupled=True),
    losses.simpo: Wiring(average=True, reference=False),
    losses.alpha_po: Wiring(average=True, reference=False),
    losses.simper: Wiring(average=True, reference=False),
    losses.cpo: Wiring(reference=False, sft=1.0),
    losses.orpo: Wiring(average=True, reference=False, sft=1.0),
}


class Term(NamedTuple):
    """One loss of a weighted sum.

    Attributes:
        loss: the loss with its hyper-parameters bound.
        wiring: what it takes.
        weight: its coefficient in the sum.
        names: the names of its array arguments.
        takes: the names of its hyper-parameters.
    """

    loss: Loss
    wiring: Wiring
    weight: float
    names: tuple[str, ...]
    takes: frozenset[str]


def wire(
    loss: Loss | Mapping[Loss, float], *, average: bool | None = None, **options: Any
) -> tuple[tuple[Term, ...], float]:
    """Returns the terms of a loss, or of a weighted sum of losses, and the coefficient of the SFT term.

    ``losses.nll`` in the sum is the SFT term, with its weight.

    Args:
        loss: a preference loss of ``jaxalign.losses``, a function of four log-probs, or {loss: weight}.
        average: length averages (True) or sums (False) in place of what the table names.
        **options: hyper-parameters; each goes to the losses of the sum that take it.

    Raises:
        UserError: if a loss is not a preference loss, lacks a hyper-parameter, or if none takes one that is given.
    """
    weights = dict(loss) if isinstance(loss, Mapping) else {loss: 1.0}
    sft = weights.pop(losses.nll, 0.0)
    terms = tuple(_term(function, weight, average, options) for function, weight in weights.items())
    taken = frozenset().union(*(term.takes for term in terms))
    if unknown := sorted(options.keys() - taken):
        named = " + ".join(map(name_of, dict(loss) if isinstance(loss, Mapping) else [loss]))
        raise UserError(f"loss={named} does not take {unknown[0]}. Give none but: {', '.join(sorted(taken)) or '-'}.")
    return terms, sft + sum(term.wiring.sft for term in terms)


def name_of(loss: Loss) -> str:
    """Returns the name of a loss, also of one whose arguments are partly bound."""
    return getattr(_unwrap(loss), "__name__", repr(loss))


def required_options(loss: Loss) -> list[str]:
    """Returns the names of the hyper-parameters without a default.

    >>> required_options(losses.simpo)
    ['beta', 'gamma']
    """
    parameters = inspect.signature(loss).parameters.values()
    return [p.name for p in parameters if p.kind is KEYWORD_ONLY and p.default is EMPTY]


def bind(loss: Loss, arrays: int, options: Mapping[str, Any]) -> tuple[Loss, tuple[str, ...], frozenset[str]]:
    """Returns the loss with those of the options bound that it takes, its arrays' names, its hyper-parameters' names.

    Raises:
        UserError: if it does not take that many arrays, or lacks a hyper-parameter.
    """
    parameters = inspect.signature(loss).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    required = sum(p.default is EMPTY for p in positional)
    if not (variadic or required <= arrays <= len(positional)):
        raise UserError(f"loss={name_of(loss)} takes {required} arrays. Give a loss that takes {arrays}.")
    for name in required_options(loss):
        if name not in options:
            raise UserError(f"loss={name_of(loss)} needs a value of {name}. Give {name}=….")
    keywords = [p.name for p in parameters if p.kind is KEYWORD_ONLY]
    bound = functools.partial(loss, **{name: options[name] for name in keywords if name in options})
    return bound, tuple(p.name for p in positional[:arrays]), frozenset(keywords)


def _term(loss: Loss, weight: float, average: bool | None, options: Mapping[str, Any]) -> Term:
    wiring = WIRINGS.get(_unwrap(loss))
    if wiring is None and getattr(losses, name_of(loss), None) is _unwrap(loss):
        raise UserError(f"loss={name_of(loss)} is not a loss of pairs. Give one of {', '.join(map(name_of, WIRINGS))}.")
    wiring = wiring or Wiring()
    if average is not None:
        wiring = dataclasses.replace(wiring, average=average)
    if "delta" in options:
        wiring = dataclasses.replace(wiring, running_delta=False)
    bound, names, takes = bind(loss, 4 if wiring.reference else 2, options)
    return Term(bound, wiring, weight, names, takes)


def _unwrap(loss: Loss) -> Loss:
    return _unwrap(loss.func) if isinstance(loss, functools.partial) else loss
