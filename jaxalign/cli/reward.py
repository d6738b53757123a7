"""``jaxalign reward``: from a language model and comparisons to a reward model on disk."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from rich.table import Table

from jaxalign import loop, optim
from jaxalign.data.batches import evaluation_batches
from jaxalign.data.records import Preference, Ranking, Record
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.judges.reliability import Calibration, calibration
from jaxalign.keys import stream
from jaxalign.methods import reward
from jaxalign.models.model import Model
from jaxalign.models.open import check_trees, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.models.weights import own_padding
from jaxalign.optim import OptimConfig
from jaxalign.paths import write_whole
from jaxalign.recipes import fit as training
from jaxalign.recipes.config import TRAIN_RANGES, DataSection, LoraSection, TrainSection, check_best
from jaxalign.recipes.examples import batch_options, make_trees, read_examples
from jaxalign.settings import MeshSection, ModelSection, check_ranges
from jaxalign.tracking import LogConfig

CALIBRATION = "calibration.json"
METRICS = {
    "pairs": ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "rewards/brier"),
    "rankings": ("loss", "rewards/mean", "rewards/concordance"),
}


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """The loss.

    Args:
        learn: from pairs (Bradley-Terry), or from rankings of two or more (Plackett-Luce)
        heads: scores per completion; several are an ensemble, each head trained on a bootstrap sample of its own
        centering: coefficient of the penalty (r_chosen + r_rejected)², which keeps scores around 0 (pairs)
    """

    learn: Literal["pairs", "rankings"] = "pairs"
    heads: int = 1
    centering: float = 0.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a reward model on preference pairs or rankings.

    The same command goes on where an interrupted run stopped.

    Args:
        model: the trunk: a language model, best the fine-tuned one; or a reward model, to train it further
        data: comparisons
        output: directory for checkpoints, metrics and the trained model
        method: the loss
        lora: train adapters and the heads in place of all parameters
        optim: the optimiser
        train: the loop
        mesh: devices
        log: dashboards
    """

    model: ModelSection
    data: DataSection
    output: str
    method: RewardSection = dataclasses.field(default_factory=RewardSection)
    lora: LoraSection = dataclasses.field(default_factory=LoraSection)
    optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
    train: TrainSection = dataclasses.field(default_factory=TrainSection)
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)


def run(config: Config) -> None:
    """The whole job. What can be wrong is found before anything is written."""
    check(config)
    job = training.start(config)
    kind: type[Record] = Preference if config.method.learn == "pairs" else Ranking

    tokenizer = load_tokenizer(config.model.path)
    records, held_records = read_examples(kind, config.data, config.train.seed, job.console)
    trees, cut = make_trees(records, tokenizer, config.data, "training", job.console)
    held, cut_held = make_trees(held_records, tokenizer, config.data, "held out", job.console)
    options, steps = batch_options(trees, held, config.train, job.mesh.shape["data"] * job.mesh.shape["fsdp"])
    optimizer, schedule = optim.make_optimizer(config.optim, steps)

    base, params = open_model(config.model, job.mesh, lambda line: job.console.print(line, markup=False))
    began = params
    check_trees(base, [*trees, *held], config.data.max_length, "data.max_length")
    own_padding(base.config, tokenizer)  # raises now, and not when the trained model is saved
    if not base.config.num_scores:
        heads = stream(config.train.seed, "heads")
        base, params = reward.from_language_model(base, params, heads, heads=config.method.heads)
    elif base.config.num_scores != config.method.heads:
        raise UserError(f"method.heads is {config.method.heads}, and the reward model has {base.config.num_scores}.")
    training.announce(job, steps, options, config.method.learn)

    with training.checkpoints(job, evaluated=bool(held)) as kept:
        resuming = kept.latest_step() is not None
        training.begin(job, base.config, began, tokenizer, (trees, held), resuming=resuming)
        model, params, fixed = training.trainable(config.lora, base, params, config.train.seed)
        if config.method.learn == "pairs":
            method = reward.pairs(model, centering=config.method.centering, bootstrap_seed=config.train.seed)
        else:
            method = reward.rankings(model, bootstrap_seed=config.train.seed)
        params = training.fit(
            job,
            method,
            params,
            optimizer,
            trees=trees,
            held=held,
            counts=cut | cut_held,
            options=options,
            steps=steps,
            kept=kept,
            schedule=schedule,
            fixed=fixed,
        )

    model, params = training.save(job, model, params, fixed, tokenizer)
    if held and config.method.learn == "pairs":
        found = calibrate(model, params, held, options)
        if found is None:
            job.console.print("the scores are not finite: the run diverged; lower optim.learning_rate")
        else:
            tell_calibration(job, found)
    training.report(job, held=len(held))


def check(config: Config) -> None:
    """Raise for settings that make no sense, before anything is read."""
    check_ranges(config, {**TRAIN_RANGES, "method.heads": (1, math.inf), "method.centering": (0, math.inf)})
    if config.method.centering and config.method.learn == "rankings":
        raise UserError("method.centering is for pairs; leave it at 0 for rankings.")
    check_best(config.train.best, METRICS[config.method.learn])


def calibrate(model: Model, params: Any, held: Sequence[Tree], options: dict[str, Any]) -> Calibration | None:
    """Whether σ(r_a - r_b) of held-out pairs is how often a is preferred; a is the chosen one of every other pair.

    None if the scores are not finite.
    """
    feed = loop.OnMesh(evaluation_batches(held, **options), model.mesh)
    scores = reward.completion_scores(model, params, feed).astype(np.float64).mean(-1)  # of the heads
    if not np.all(np.isfinite(scores)):
        return None
    first = np.arange(len(held)) % 2  # whichever is asked about must not give the answer away
    margin = np.where(first == 0, scores[:, 0] - scores[:, 1], scores[:, 1] - scores[:, 0])
    return calibration((1 / (1 + np.exp(-margin))).tolist(), 1 - first)


def tell_calibration(job: training.Run, found: Calibration) -> None:
    """A table of said and seen, and the same in a file."""
    table = Table(title="held-out pairs: probability said, frequency seen")
    for column in ("probability", "pairs", "mean said", "seen"):
        table.add_column(column, justify="right")
    for each in found.bins:
        if each.size:
            cells = (f"{each.low:.1f} to {each.high:.1f}", str(each.size))
            table.add_row(*cells, f"{each.probability:.3f}", f"{each.outcome:.3f}")
    job.console.print(table)
    (low, high), (brier_low, brier_high) = found.ece_ci, found.brier_ci
    job.console.print(
        f"expected calibration error {found.ece:.3f} [{low:.3f}, {high:.3f}] "
        f"(a perfectly calibrated model would stay below {found.ece_by_luck:.3f}), "
        f"Brier score {found.brier:.3f} [{brier_low:.3f}, {brier_high:.3f}]"
    )
    bins = [each._asdict() for each in found.bins if each.size]
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    write_whole(job.output / CALIBRATION, json.dumps({**fields, "bins": bins}, indent=2, allow_nan=False) + "\n")
