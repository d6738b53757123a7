"""Sections of the training recipes' configurations, and the checks that need no data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, Literal

from jaxalign.data.feedback import Signals
from jaxalign.errors import UserError
from jaxalign.models.config import LoraConfig
from jaxalign.optim import OptimConfig
from jaxalign.recipes.budget import BudgetSection
from jaxalign.settings import MeshSection, ModelSection, SourceSection
from jaxalign.tracking import LogConfig


@dataclasses.dataclass(frozen=True)
class LoraSection:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685). The trained model is saved with the adapters merged.

    Args:
        rank: rank of each adapter; 0 trains all parameters and no adapters
        alpha: adapters are scaled by alpha / rank
        targets: a regular expression; projections in whose name (self_attn.q_proj, mlp.up_proj, …) it matches somewhere
            get an adapter
        rslora: scale by alpha / √rank
    """

    rank: int = 0
    alpha: float = 32.0
    targets: str = "_proj"
    rslora: bool = False

    @property
    def config(self) -> LoraConfig | None:
        """The model's own description of these adapters; None without adapters."""
        return LoraConfig(self.rank, self.alpha, self.targets, self.rslora) if self.rank else None


@dataclasses.dataclass(frozen=True)
class DataSection(SourceSection):
    """Which examples.

    Args:
        holdout: records held out for evaluation, as a count or as a share; no prompt is on both sides
        eval_path: evaluate on the records of this file instead
        max_length: maximum tokens of an example, prompt and one answer; a longer prompt loses its beginning
        max_completion_length: maximum tokens of an answer; a longer one loses its end
    """

    holdout: int | float = 0.1
    eval_path: str | None = None
    max_length: int = 1024
    max_completion_length: int | None = None


@dataclasses.dataclass(frozen=True)
class SftDataSection(DataSection):
    """Which demonstrations: texts, prompts with completions, instructions, or chats.

    Args:
        loss_on: learn the assistant's turns, or all tokens
    """

    loss_on: Literal["assistant", "all"] = "assistant"


@dataclasses.dataclass(frozen=True)
class KtoDataSection(DataSection):
    """Which answers: rows with labels, pairs (split into two answers), OpenAssistant trees with votes, or a log.

    Args:
        signals: the fields of a log that say whether an answer was liked; none for rows with labels, pairs and trees
    """

    signals: Signals = dataclasses.field(default_factory=Signals)


@dataclasses.dataclass(frozen=True)
class TrainSection:
    """The loop.

    Args:
        batch_size: examples a step
        steps: optimiser steps; by default as many as epochs take
        epochs: passes over the training examples, where steps is not given
        rows_per_microbatch: packed rows computed at a time, by default one per device that rows are spread over;
            memory grows with it, results do not depend on it
        row_lengths: lengths a packed row may have, in tokens; by default chosen from the data
        eval_every: steps between evaluations on the held-out examples; 0 for before and after only
        checkpoint_every: steps between checkpoints, from which an interrupted run continues; 0 for the last step only;
            evaluations and the first Ctrl-C save one too
        keep: number of latest checkpoints to keep, in addition to the best one
        best: the metric whose best checkpoint is kept; one of those logged by evaluation
        best_mode: whether a larger or a smaller value is better
        seed: of the held-out split, the order of the data and everything random
        resume: auto continues from the run's latest checkpoint; never refuses a directory that contains a run
    """

    batch_size: int = 32
    steps: int | None = None
    epochs: float = 1.0
    rows_per_microbatch: int | None = None
    row_lengths: tuple[int, ...] | None = None
    eval_every: int = 0
    checkpoint_every: int = 10
    keep: int = 1
    best: str = "eval/loss"
    best_mode: Literal["max", "min"] = "min"
    seed: int = 0
    resume: Literal["auto", "never"] = "auto"


@dataclasses.dataclass(frozen=True)
class SamplesSection:
    """Answers sampled before and after training, to see what changed.

    Args:
        prompts: number of held-out prompts to answer; 0 for none
        max_new_tokens: maximum tokens of an answer
        temperature: 0 takes the most likely token
    """

    prompts: int = 3
    max_new_tokens: int = 64
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """The sections of every offline recipe.

    Args:
        model: where to start
        data: examples
        output: directory for checkpoints, metrics and the trained model; null writes nothing
        lora: train adapters in place of all parameters
        optim: the optimiser
        train: the loop
        mesh: devices
        log: dashboards
    """

    model: ModelSection = dataclasses.field(default_factory=ModelSection)
    data: DataSection = dataclasses.field(default_factory=DataSection)
    output: str | None = None
    lora: LoraSection = dataclasses.field(default_factory=LoraSection)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)


@dataclasses.dataclass(frozen=True)
class PolicyConfig(TrainingConfig):
    """The sections of the offline recipes that train a language model.

    Args:
        samples: answers before and after
        budget: how much capability training may cost
    """

    samples: SamplesSection = dataclasses.field(default_factory=SamplesSection)
    budget: BudgetSection = dataclasses.field(default_factory=BudgetSection)


def check_best_metric(best: str, metrics: Iterable[str]) -> None:
    """Checks that evaluation computes the metric by which the best checkpoint is chosen.

    Raises:
        UserError: If it does not; the message lists the metrics.
    """
    known = [f"eval/{name}" for name in metrics]
    if best not in known:
        raise UserError(f"train.best is {best}. Give one of {', '.join(known)}.")


def refuse_arguments(recipe: str, **arguments: Any) -> None:
    """Refuses arguments of ``train`` that do not apply to a recipe.

    Raises:
        UserError: For the first argument that is not None.
    """
    for name, value in arguments.items():
        if value is not None:
            raise UserError(f"recipes.{recipe}.train does not use the argument {name}. Leave it out.")


TRAIN_RANGES = {
    "train.batch_size": (1, math.inf),
    "train.steps": (1, math.inf),
    "train.epochs": (0, math.inf),
    "train.row_lengths": (2, math.inf),
    "train.rows_per_microbatch": (1, math.inf),
    "train.eval_every": (0, math.inf),
    "train.checkpoint_every": (0, math.inf),
    "train.keep": (1, math.inf),
    "train.seed": (0, 2**31 - 1),
    "lora.rank": (0, math.inf),
    "data.limit": (1, math.inf),
    "data.holdout": (0, math.inf),
    "log.every": (1, math.inf),
}
SAMPLES_RANGES = {
    "samples.prompts": (0, math.inf),
    "samples.max_new_tokens": (1, math.inf),
    "samples.temperature": (0, math.inf),
}
