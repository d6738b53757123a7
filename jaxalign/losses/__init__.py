"""Alignment objectives as pure functions of arrays.

Losses are unreduced (a value per example or per token) and differentiable with respect to the policy's arguments only.
They run under ``jit``, ``vmap`` and ``grad`` in the float type of their arguments. Metrics are in the module
``jaxalign.losses.metrics``.
"""

from jaxalign.losses import metrics as metrics
from jaxalign.losses.controllers import KLState as KLState
from jaxalign.losses.controllers import adaptive_kl as adaptive_kl
from jaxalign.losses.controllers import best_of_n_kl as best_of_n_kl
from jaxalign.losses.controllers import fixed_kl as fixed_kl
from jaxalign.losses.divergences import alpha_divergence as alpha_divergence
from jaxalign.losses.divergences import forward_kl as forward_kl
from jaxalign.losses.divergences import jensen_shannon as jensen_shannon
from jaxalign.losses.divergences import reverse_kl as reverse_kl
from jaxalign.losses.pairwise import aot as aot
from jaxalign.losses.pairwise import aot_unpaired as aot_unpaired
from jaxalign.losses.pairwise import discopop as discopop
from jaxalign.losses.pairwise import dpo as dpo
from jaxalign.losses.pairwise import exo_pair as exo_pair
from jaxalign.losses.pairwise import hinge as hinge
from jaxalign.losses.pairwise import ipo as ipo
from jaxalign.losses.pairwise import log_ratios as log_ratios
from jaxalign.losses.pairwise import logistic_link as logistic_link
from jaxalign.losses.pairwise import robust_dpo as robust_dpo
from jaxalign.losses.pointwise import apo_down as apo_down
from jaxalign.losses.pointwise import apo_zero as apo_zero
from jaxalign.losses.pointwise import apo_zero_unpaired as apo_zero_unpaired
from jaxalign.losses.pointwise import bco as bco
from jaxalign.losses.pointwise import bco_pair as bco_pair
from jaxalign.losses.pointwise import kto as kto
from jaxalign.losses.pointwise import kto_kl as kto_kl
from jaxalign.losses.pointwise import nca_pair as nca_pair
from jaxalign.losses.pointwise import sppo_hard as sppo_hard
from jaxalign.losses.policy import cispo as cispo
from jaxalign.losses.policy import dual_clip as dual_clip
from jaxalign.losses.policy import ppo_clip as ppo_clip
from jaxalign.losses.policy import reinforce as reinforce
from jaxalign.losses.policy import sapo as sapo
from jaxalign.losses.policy import value_clip as value_clip
from jaxalign.losses.reductions import fixed_length_mean as fixed_length_mean
from jaxalign.losses.reductions import fixed_length_mean_weights as fixed_length_mean_weights
from jaxalign.losses.reductions import sequence_mean as sequence_mean
from jaxalign.losses.reductions import sequence_mean_weights as sequence_mean_weights
from jaxalign.losses.reductions import sequence_sum as sequence_sum
from jaxalign.losses.reductions import sequence_sum_weights as sequence_sum_weights
from jaxalign.losses.reductions import token_mean as token_mean
from jaxalign.losses.reductions import token_mean_weights as token_mean_weights
from jaxalign.losses.reductions import weighted_sum as weighted_sum
from jaxalign.losses.reference_free import alpha_po as alpha_po
from jaxalign.losses.reference_free import cpo as cpo
from jaxalign.losses.reference_free import orpo as orpo
from jaxalign.losses.reference_free import simper as simper
from jaxalign.losses.reference_free import simpo as simpo
from jaxalign.losses.rewards import bradley_terry as bradley_terry
from jaxalign.losses.rewards import plackett_luce as plackett_luce
from jaxalign.losses.rewards import reward_centering as reward_centering
from jaxalign.losses.sequence import a_star_po as a_star_po
from jaxalign.losses.sequence import gmpo as gmpo
from jaxalign.losses.sequence import gspo as gspo
from jaxalign.losses.sequence import off_policy_mask as off_policy_mask
from jaxalign.losses.sequence import optimal_value as optimal_value
from jaxalign.losses.sequence import vespo as vespo
from jaxalign.losses.supervised import dft as dft
from jaxalign.losses.supervised import distill_forward_kl as distill_forward_kl
from jaxalign.losses.supervised import distill_reverse_kl as distill_reverse_kl
from jaxalign.losses.supervised import generalized_jsd as generalized_jsd
from jaxalign.losses.supervised import nll as nll
from jaxalign.losses.weighting import average_logps as average_logps
from jaxalign.losses.weighting import ld_logps as ld_logps
from jaxalign.losses.weighting import sum_logps as sum_logps
from jaxalign.losses.weighting import wpo_weights as wpo_weights
