"""Alignment objectives as pure functions of arrays.

Losses are unreduced (a value per example or per token) and differentiable with respect to the policy's arguments only.
They run under ``jit``, ``vmap`` and ``grad`` in the float type of their arguments. Metrics are in the module
``jaxalign.losses.metrics``.
"""

from jaxalign.losses import metrics
from jaxalign.losses.controllers import KLState, adaptive_kl, best_of_n_kl, fixed_kl
from jaxalign.losses.divergences import alpha_divergence, forward_kl, jensen_shannon, reverse_kl
from jaxalign.losses.pairwise import (
    aot,
    aot_unpaired,
    discopop,
    dpo,
    exo_pair,
    hinge,
    ipo,
    log_ratios,
    logistic_link,
    robust_dpo,
)
from jaxalign.losses.pointwise import (
    apo_down,
    apo_zero,
    apo_zero_unpaired,
    bco,
    bco_pair,
    kto,
    kto_kl,
    nca_pair,
    sppo_hard,
)
from jaxalign.losses.policy import cispo, dual_clip, ppo_clip, reinforce, sapo, value_clip
from jaxalign.losses.reductions import (
    fixed_length_mean,
    fixed_length_mean_weights,
    sequence_mean,
    sequence_mean_weights,
    sequence_sum,
    sequence_sum_weights,
    token_mean,
    token_mean_weights,
    weighted_sum,
)
from jaxalign.losses.reference_free import alpha_po, cpo, orpo, simper, simpo
from jaxalign.losses.rewards import bradley_terry, plackett_luce, reward_centering
from jaxalign.losses.sequence import a_star_po, gmpo, gspo, off_policy_mask, optimal_value, vespo
from jaxalign.losses.supervised import dft, distill_forward_kl, distill_reverse_kl, generalized_jsd, nll
from jaxalign.losses.weighting import average_logps, ld_logps, sum_logps, wpo_weights

__all__ = [
    "KLState",
    "a_star_po",
    "adaptive_kl",
    "alpha_divergence",
    "alpha_po",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "apo_zero_unpaired",
    "average_logps",
    "bco",
    "bco_pair",
    "best_of_n_kl",
    "bradley_terry",
    "cispo",
    "cpo",
    "dft",
    "discopop",
    "distill_forward_kl",
    "distill_reverse_kl",
    "dpo",
    "dual_clip",
    "exo_pair",
    "fixed_kl",
    "fixed_length_mean",
    "fixed_length_mean_weights",
    "forward_kl",
    "generalized_jsd",
    "gmpo",
    "gspo",
    "hinge",
    "ipo",
    "jensen_shannon",
    "kto",
    "kto_kl",
    "ld_logps",
    "log_ratios",
    "logistic_link",
    "metrics",
    "nca_pair",
    "nll",
    "off_policy_mask",
    "optimal_value",
    "orpo",
    "plackett_luce",
    "ppo_clip",
    "reinforce",
    "reverse_kl",
    "reward_centering",
    "robust_dpo",
    "sapo",
    "sequence_mean",
    "sequence_mean_weights",
    "sequence_sum",
    "sequence_sum_weights",
    "simper",
    "simpo",
    "sppo_hard",
    "sum_logps",
    "token_mean",
    "token_mean_weights",
    "value_clip",
    "vespo",
    "weighted_sum",
    "wpo_weights",
]
