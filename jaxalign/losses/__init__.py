"""Alignment objectives as pure functions of arrays."""

from jaxalign.losses.pairwise import dpo as dpo
from jaxalign.losses.pairwise import log_ratios as log_ratios
from jaxalign.losses.pairwise import logistic_link as logistic_link
