"""Generation: completions sampled from a model, with the log-probabilities they were sampled with."""

from jaxalign.rollout.generate import Progress as Progress
from jaxalign.rollout.generate import Rollout as Rollout
from jaxalign.rollout.generate import generate as generate
from jaxalign.rollout.generate import stream as stream
from jaxalign.rollout.sample import Sampling as Sampling
from jaxalign.rollout.stops import stop_strings as stop_strings
from jaxalign.rollout.trees import rollout_trees as rollout_trees
