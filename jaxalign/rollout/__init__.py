"""Sampling completions from a model."""

from jaxalign.rollout.generate import Rollout as Rollout
from jaxalign.rollout.generate import generate as generate
