"""Settings that ppo, grpo and online_dpo share."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from jaxalign.optim import OptimConfig
from jaxalign.recipes.budget import BudgetSection
from jaxalign.recipes.config import TRAIN_RANGES, LoraSection, SamplesSection
from jaxalign.settings import MeshSection, ModelSection, SourceSection
from jaxalign.tracking import LogConfig


@dataclasses.dataclass(frozen=True)
class PromptSection(SourceSection):
    """Which prompts. Rows may contain further fields that rewards read, such as an answer to compare with.

    Args:
        max_length: maximum tokens of a prompt; a longer one loses its beginning
    """

    max_length: int = 256


@dataclasses.dataclass(frozen=True)
class ScoreSection:
    """What is rewarded: the weighted sum of a reward model and of functions.

    Args:
        path: a reward model that shares the policy's tokenizer
        adapter: instead, a reward model's adapters on the policy's own base, which both then share (lora.rank)
        weight: of the reward model
        heads: how the scores of several heads are combined
        dtype: type that the reward model computes in; bfloat16 is also the type it is stored in
        hold: where it is stored between passes: on the device, or on the host
        functions: functions and their weights, as {number_match: 1.0} or {my_module:my_function: 0.5}
        normalise: none, divide by the running standard deviation (scale), or first subtract the running mean too
            (standardise)
        clip: bound on normalised scores
        missing_eos_penalty: subtracted from the score of an answer that reached max_new_tokens
    """

    path: str | None = None
    adapter: str | None = None
    weight: float = 1.0
    heads: Literal["mean", "minimum"] = "mean"
    dtype: Literal["float32", "bfloat16"] = "float32"
    hold: Literal["device", "host"] = "device"
    functions: dict[str, float] | None = None
    normalise: Literal["none", "scale", "standardise"] = "none"
    clip: float | None = None
    missing_eos_penalty: float = 0.0


@dataclasses.dataclass(frozen=True)
class RolloutSection:
    """How answers are sampled.

    Args:
        max_new_tokens: maximum tokens of an answer
        temperature: divides the logits
        top_p: sample from the most likely tokens whose probabilities add up to this
        chunk: prompts sampled at a time; functions score one chunk while the next is sampled; null for all at once
        rounds: with more than one, prompts whose answers all score the same are replaced by others, trying up to this
            many times train.batch_size (DAPO's dynamic sampling)
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    chunk: int | None = None
    rounds: int = 1


@dataclasses.dataclass(frozen=True)
class PenaltySection:
    """The KL penalty.

    Args:
        beta: coefficient of the KL to the reference, at the start
        target: adapt the coefficient to this KL, nats per answer; null keeps it constant
        gain: rate of the adaptation (Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2)
    """

    beta: float = 0.05
    target: float | None = None
    gain: float = 0.1


@dataclasses.dataclass(frozen=True)
class ReferenceSection:
    """The policy's reference, the model it starts from. With lora the base is the reference, and this has no effect.

    Args:
        hold: a copy on the device, one in bfloat16, or one on the host that is copied to the device once an iteration
        refresh: never, a copy of the policy every so many iterations (replace), or a moving average (average)
        every: iterations between two replacements
        rate: of the moving average
    """

    hold: Literal["device", "bfloat16", "host"] = "device"
    refresh: Literal["never", "replace", "average"] = "never"
    every: int = 10
    rate: float = 0.05


@dataclasses.dataclass(frozen=True)
class OnlineTrainSection:
    """The loop.

    Args:
        batch_size: prompts an iteration
        iterations: of sampling, scoring and updating
        epochs: passes over an iteration's answers
        minibatches: optimiser steps that each pass is cut into
        rows_per_microbatch: packed rows computed at a time, by default one per device that rows are spread over;
            memory grows with it, results do not depend on it
        max_update_kl: skip further epochs of an iteration after one with a larger policy/approxkl_avg
        stop_kl: stop the run if the KL to the reference is larger, nats per answer
        stop_entropy: stop the run if the policy's entropy is lower, nats per token
        checkpoint_every: iterations between checkpoints, from which an interrupted run resumes; 0 for the last only
        keep: number of latest checkpoints to keep
        seed: of the order of prompts and everything random
        resume: auto continues from the run's latest checkpoint; never refuses a directory that contains a run
    """

    batch_size: int = 32
    iterations: int = 100
    epochs: int = 1
    minibatches: int = 1
    rows_per_microbatch: int | None = None
    max_update_kl: float | None = None
    stop_kl: float | None = 100.0
    stop_entropy: float = 0.01
    checkpoint_every: int = 5
    keep: int = 1
    seed: int = 0
    resume: Literal["auto", "never"] = "auto"


@dataclasses.dataclass(frozen=True)
class OnlineConfig:
    """The sections of every online recipe. Each adds the section of its method.

    Args:
        model: the policy, best fine-tuned first, and its reference
        data: prompts
        output: directory for checkpoints, metrics and the trained model
        reward: what is rewarded
        rollout: how answers are sampled
        reference: the reference model
        lora: train adapters in place of all parameters
        optim: the optimiser
        train: the loop
        budget: how much capability training may cost
        mesh: devices
        log: dashboards
        samples: answers before and after
    """

    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    data: PromptSection = dataclasses.field(default_factory=PromptSection)
    output: str | None = None
    reward: ScoreSection = dataclasses.field(default_factory=ScoreSection)
    rollout: RolloutSection = dataclasses.field(default_factory=RolloutSection)
    reference: ReferenceSection = dataclasses.field(default_factory=ReferenceSection)
    lora: LoraSection = dataclasses.field(default_factory=LoraSection)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: OnlineTrainSection = dataclasses.field(default_factory=OnlineTrainSection)
    budget: BudgetSection = dataclasses.field(default_factory=BudgetSection)
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    samples: SamplesSection = dataclasses.field(default_factory=SamplesSection)


SHARED = ("train.batch_size", "train.rows_per_microbatch", "train.checkpoint_every", "train.keep", "train.seed")
RANGES = {
    **{key: limits for key, limits in TRAIN_RANGES.items() if key in SHARED or key.startswith(("samples.", "lora."))},
    "log.every": (1, math.inf),
    "data.limit": (1, math.inf),
    "data.max_length": (1, math.inf),
    "train.iterations": (1, math.inf),
    "train.epochs": (1, math.inf),
    "train.minibatches": (1, math.inf),
    "train.max_update_kl": (0, math.inf),
    "train.stop_kl": (0, math.inf),
    "train.stop_entropy": (0, math.inf),
    "rollout.max_new_tokens": (1, math.inf),
    "rollout.temperature": (1e-6, math.inf),
    "rollout.top_p": (1e-6, 1),
    "rollout.chunk": (1, math.inf),
    "rollout.rounds": (1, math.inf),
    "kl.beta": (0, math.inf),
    "kl.target": (1e-6, math.inf),
    "kl.gain": (0, math.inf),
    "reference.every": (1, math.inf),
    "reference.rate": (0, 1),
    "reward.clip": (0, math.inf),
    "reward.missing_eos_penalty": (0, math.inf),
}
