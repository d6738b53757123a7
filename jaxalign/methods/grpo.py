"""GRPO and its relatives: combinations of the parts of ``policy_gradient``.

====================  ==========================  ============  ============  ====================  ============
name                  advantage                   ratio of      loss          reduction             KL
====================  ==========================  ============  ============  ====================  ============
``grpo``              group_relative              tokens        clip          sequence_mean         k3, in loss
``dr_grpo``           group_relative, no std      tokens        clip          fixed_length_mean     none
``dapo``              group_relative              tokens        clip, higher  token_mean            none
``rloo``              leave_one_out               sequences     clip          sequence_mean         k1, in reward
``reinforce_pp``      reward to go, whitened      tokens        clip          token_mean            k1, in reward
``reinforce_pp_b``    centred, whitened           tokens        clip          token_mean            k2, in loss
``gspo``              group_relative              token means   clip, narrow  sequence_mean         none
``cispo``             group_relative              tokens        cispo         token_mean            none
====================  ==========================  ============  ============  ====================  ============
"""

from __future__ import annotations

import functools
from typing import Any

from jaxalign import advantages, losses
from jaxalign.losses import reductions
from jaxalign.methods.experience import OnlineMethod
from jaxalign.methods.policy_gradient import of_sequences, of_token_means, policy_gradient
from jaxalign.models.model import Model

_group = advantages.per_sequence(advantages.group_relative)
# Shao et al. 2024, arXiv:2402.03300, eq. 3.
grpo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=losses.ppo_clip,
    weights=reductions.sequence_mean_weights,
    loss_kl="k3",
)
# Yu et al. 2025, arXiv:2503.14476, eqs. 8 and 10; see also ``collect.informative`` and ``collect.overlong_penalty``.
dapo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=functools.partial(losses.ppo_clip, clip_low=0.2, clip_high=0.28),
    weights=reductions.token_mean_weights,
)
# Ahmadian et al. 2024, arXiv:2402.14740, sec. 3: the completion is one action. The clip acts on steps after the first.
rloo = functools.partial(
    policy_gradient,
    advantage=advantages.per_sequence(advantages.leave_one_out),
    loss=losses.ppo_clip,
    weights=reductions.sequence_mean_weights,
    ratio=of_sequences,
    reward_kl="k1",
)
# Hu et al. 2025, arXiv:2501.03262.
reinforce_pp = functools.partial(
    policy_gradient,
    advantage=advantages.reinforce_plus_plus,
    loss=losses.ppo_clip,
    weights=reductions.token_mean_weights,
    reward_kl="k1",
)
reinforce_pp_b = functools.partial(
    policy_gradient,
    advantage=advantages.reinforce_plus_plus_baseline,
    loss=losses.ppo_clip,
    weights=reductions.token_mean_weights,
    loss_kl="k2",
)
# Zheng et al. 2025, arXiv:2507.18071, eqs. 5 and 7.
gspo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=functools.partial(losses.ppo_clip, clip_low=3e-4, clip_high=4e-4),
    weights=reductions.sequence_mean_weights,
    ratio=of_token_means,
)
# MiniMax-M1, 2025, arXiv:2506.13585, eqs. 4 and 5.
cispo = functools.partial(
    policy_gradient,
    advantage=_group,
    loss=functools.partial(losses.cispo, max_ratio=5.0),
    weights=reductions.token_mean_weights,
)


def dr_grpo(model: Model, *, length: int, **options: Any) -> OnlineMethod:
    """Returns Dr. GRPO (Liu et al. 2025, arXiv:2503.20783): without the standard deviation, over a constant length.

    Args:
        model: as in ``policy_gradient``.
        length: tokens to divide by: the maximum length of a completion.
        **options: further arguments of ``policy_gradient``.
    """
    options = {
        "advantage": advantages.per_sequence(functools.partial(advantages.group_relative, scale=False)),
        "loss": losses.ppo_clip,
        "weights": functools.partial(reductions.fixed_length_mean_weights, length=length),
        **options,
    }
    return policy_gradient(model, **options)
