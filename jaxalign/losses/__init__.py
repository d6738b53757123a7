"""Alignment objectives as pure functions of arrays.

Every loss is unreduced (one value per example or per token), differentiable with respect to the policy's arguments only,
and runs under ``jit``, ``vmap`` and ``grad`` in the float type it is given.
"""

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
from jaxalign.losses.reference_free import alpha_po, cpo, orpo, simpo
from jaxalign.losses.rewards import bradley_terry, plackett_luce, reward_centering
