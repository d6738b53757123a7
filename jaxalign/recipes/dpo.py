"""Direct preference optimisation and its relatives: from a model and preference pairs to an aligned model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxalign.data.kinds import Preference
from jaxalign.errors import UserError
from jaxalign.methods.dpo import pair_metrics
from jaxalign.methods.wirings import Loss
from jaxalign.models.model import Model
from jaxalign.models.open import check_language_model, check_trees
from jaxalign.models.params import Params
from jaxalign.recipes import config_file, fit, steps
from jaxalign.recipes.budget import check_budget
from jaxalign.recipes.config import SAMPLES_RANGES, TRAIN_RANGES, PolicyConfig, check_best_metric, refuse_arguments
from jaxalign.recipes.preference import METHOD_RANGES, DpoSection, build_method, needs_reference
from jaxalign.recipes.reference import with_reference
from jaxalign.reporting import Report
from jaxalign.settings import check_ranges


@dataclasses.dataclass(frozen=True)
class Config(PolicyConfig):
    """Align a model on preference pairs with direct preference optimisation.

    Rerun the same command to resume an interrupted run.

    Args:
        model: the policy, which is also the reference it starts from
        data: preference pairs
        method: the loss
    """

    method: DpoSection = dataclasses.field(default_factory=DpoSection)


load_config = functools.partial(config_file.load_config, Config)


def train(
    config: Config,
    *,
    model: tuple[Model, Params] | None = None,
    tokenizer: Any = None,
    rows: Any = None,
    eval_rows: Any = None,
    loss: Loss | Mapping[Loss, float] | None = None,
    metrics: Callable[..., Any] | None = None,
    rewards: None = None,
    on_step: steps.OnStep | None = None,
    report: Report | None = None,
) -> steps.Result:
    """Aligns a model on preference pairs (see ``methods.dpo``).

    Args:
        config: The configuration. What is passed below replaces what it names.
        model: ``(model, params)``, the policy and its reference; the parameters are not changed.
        tokenizer: A ``transformers`` tokenizer.
        rows: Preference pairs: a list of dicts or a ``datasets.Dataset``.
        eval_rows: Pairs to evaluate on.
        loss: A preference loss of ``jaxalign.losses``, a function ``loss(pc, pr, rc, rr) -> [B]`` of summed log-probs
            in nats, or {loss: weight}.
        metrics: ``metrics(arrays) -> {name: (sum, count)}``; ``arrays`` maps the loss's arguments to arrays.
        rewards: Does not apply.
        on_step: Called as ``on_step(step, state, metrics)`` after each step.
        report: Receives lines of text; None is silent.

    Raises:
        UserError: For settings, rows or a model that cannot be used.
    """
    refuse_arguments("dpo", rewards=rewards)
    validate_config(config, loss)
    run = steps.open_run(config, model=model, tokenizer=tokenizer, on_step=on_step, report=report)
    examples = fit.load_examples(run, Preference, rows, eval_rows)
    check_soft_labels(config, examples)
    plan = fit.plan_steps(run, examples, "pairs")

    reference, params = steps.open_starting_model(run, model)
    check_language_model(reference, config.model.path or "The model")
    check_trees(reference, [*examples.train, *examples.eval], config.data.max_length, "data.max_length")
    prompts = fit.sample_prompts(run, examples.eval or examples.train)
    with steps.open_checkpoints(run, evaluated=bool(examples.eval)) as run:
        steps.record_inputs(run, reference, params, examples[:2], loss=loss, metrics=metrics)
        samples = steps.sample_before(run, reference, params, prompts)
        has_reference = needs_reference(config.method, loss)
        is_live = has_reference and config.method.reference == "live"
        if has_reference and not is_live:
            examples = with_reference(run, reference, params, examples, plan, ld_alpha=config.method.ld_alpha)
        # The step donates what is trained: a copy, if the original is the reference or belongs to the caller.
        copy = is_live or model is not None
        policy = steps.make_trainable(config.lora, reference, params, config.train.seed, copy=copy)
        frozen = params if is_live and policy.fixed is None else None
        method, drawn = build_method(config.method, policy.model, loss, metrics), fit.make_batches(run, examples, plan)
        policy, lines = fit.fit(run, method, policy, plan, *drawn, frozen=frozen, notes=examples.counts)
    return steps.finish(run, policy, lines, prompts=prompts, samples=samples, num_eval=len(examples.eval))


def check_soft_labels(config: Config, examples: fit.Examples) -> None:
    """Raises UserError if a pair lacks the flip probability that ``method.soft_labels`` needs."""
    trees = [*examples.train, *examples.eval]
    if config.method.soft_labels and any("label_smoothing" not in tree.extras for tree in trees):
        raise UserError(
            f"{config.data.path or 'rows'}: not every pair has a field 'label_smoothing', which method.soft_labels "
            "needs. Add it, or leave method.soft_labels out."
        )


def validate_config(config: Config, loss: Loss | Mapping[Loss, float] | None = None) -> None:
    """Raises UserError for settings that make no sense, before anything is read."""
    check_budget(config.budget)
    if config.method.soft_labels and config.method.label_smoothing:
        raise UserError(
            "method.label_smoothing is one number for all pairs, and method.soft_labels is one for each. Set only one."
        )
    check_ranges(config, {**TRAIN_RANGES, **SAMPLES_RANGES, **METHOD_RANGES})
    build_method(config.method, cast(Any, None), loss)  # refuses a loss that does not fit; the model is not read yet
    none = jnp.zeros((1, 1, 2))
    shapes = jax.eval_shape(lambda: pair_metrics(none, none, none[..., 0] > 0, beta=1.0))
    check_best_metric(config.train.best, ("loss", *shapes))
