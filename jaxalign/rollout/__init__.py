"""Generation: completions sampled from a model, as token ids with their log-probabilities or as text."""

from jaxalign.rollout.generate import Progress as Progress
from jaxalign.rollout.generate import Rollout as Rollout
from jaxalign.rollout.generate import generate as generate
from jaxalign.rollout.generate import stream as stream
from jaxalign.rollout.sample import Sampling as Sampling
from jaxalign.rollout.stops import stop_strings as stop_strings
from jaxalign.rollout.text import generate_text as generate_text
from jaxalign.rollout.text import stream_text as stream_text
from jaxalign.rollout.trees import rollout_trees as rollout_trees
