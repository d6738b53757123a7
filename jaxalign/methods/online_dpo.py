"""Online DPO: the policy's own completions, two of which a reward model or a judge makes into a pair.

An iteration samples K completions of each prompt, scores them, measures the reference once, takes the best and the
worst, and steps on ``methods.dpo``. A judge is a scorer too (``judges.judge_scorer``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxalign import losses
from jaxalign.data.trees import Tree
from jaxalign.losses.controllers import fixed_kl
from jaxalign.masking import Rows
from jaxalign.methods.dpo import dpo
from jaxalign.methods.experience import (
    Experience,
    Measured,
    Online,
    OnlineState,
    advance,
    reference_logps,
    shape_scores,
)
from jaxalign.methods.rollouts import Metrics, Prepare
from jaxalign.models.model import Model


def online_dpo(
    model: Model, *, beta: float, loss: Callable[..., Array] = losses.dpo, shape: Callable[..., Any] = shape_scores
) -> Online:
    """Online DPO (Guo et al. 2024, arXiv:2402.04792): DPO on pairs that the policy of the iteration sampled.

    Use it with ``pairs_of(make_prepare(...))``, and a minibatch packing of two completions.

    Args:
      model: the policy's; the reference is ``frozen["reference"]``, one in the method state, or the base of adapters.
      beta: as in ``dpo``.
      loss: as in ``dpo``.
      shape: (moments, experience) -> (scores that decide, moments): a penalty for answers that did not end, say.
    Returns:
      the method, for ``rollouts.iterate``.
    """

    def measure(params: Any, frozen: Mapping[str, Any], rows: Rows) -> Measured:
        return {"ref_logps": reference_logps(model, params, frozen, rows)}

    def experience(state: OnlineState, x: Experience) -> tuple[Measured, OnlineState, Measured]:
        assert x.ref_logps is not None
        scores, moments = shape(state.scores, x)
        after, metrics = advance(state, x, moments, fixed_kl)
        return {"ref_logps": x.ref_logps, "rewards": x.mask * scores[..., None]}, after, metrics

    return Online(measure, experience, None, dpo(model, beta=beta, loss=loss))


def pairs_of(prepare: Prepare) -> Prepare:
    """What ``prepare`` gives, made into pairs, chosen first; prompts whose completions all tie drop out.

    ``rewards/tied`` is their share.
    """

    def prepared(params: Any, method_state: OnlineState, trees: Sequence[Tree]) -> tuple[list[Tree], Any, Metrics]:
        measured, method_state, metrics = prepare(params, method_state, trees)
        pairs = [pair for tree in measured if (pair := best_and_worst(tree)) is not None]
        return pairs, method_state, {**metrics, "rewards/tied": 1 - len(pairs) / len(measured)}

    return prepared


def best_and_worst(tree: Tree) -> Tree | None:
    """The completions of the highest and the lowest reward, with the log-probs of the reference; None if all tie.

    A completion's reward stands on each of its tokens that count (``rewards``); of equal ones the first is taken.
    """
    rewards = np.array(
        [float(np.max(each[mask])) for each, mask in zip(tree.token_extras["rewards"], tree.masks, strict=False)]
    )
    order = int(np.argmax(rewards)), int(np.argmin(rewards))
    if rewards[order[0]] == rewards[order[1]]:
        return None
    ref_logps = [tree.token_extras["ref_logps"][k][tree.masks[k]].sum() for k in order]
    return Tree.of(
        tree.prompt,
        [tree.completions[k] for k in order],
        [tree.masks[k] for k in order],
        ref_logps=np.array(ref_logps),
    )
