"""What the commands that sample from the policy they train have in common: ppo, grpo, online_dpo."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxalign import loop, losses, optim
from jaxalign.checkpoint import Checkpoints
from jaxalign.data.records import Prompt, read_records
from jaxalign.data.tokenize import tokenize_prompts
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.keys import stream
from jaxalign.methods import experience, rollouts
from jaxalign.methods.collect import Collector, Sampler, informative
from jaxalign.methods.experience import Online
from jaxalign.methods.online_dpo import pairs_of
from jaxalign.models.model import Model
from jaxalign.models.open import check_positions, check_tokens, open_model
from jaxalign.models.params import Params, moving_average, replace_every, union
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.recipes import fit as training
from jaxalign.recipes import run_directory as runs
from jaxalign.recipes.budget import check as check_budget
from jaxalign.recipes.interrupt import Interrupt, telling
from jaxalign.recipes.online_config import (
    RANGES,
    OnlineConfig,
    PenaltySection,
    PromptSection,
    ReferenceSection,
)
from jaxalign.recipes.scorers import make_scorers, size_of, to_bfloat16
from jaxalign.rewards.functions import load_function
from jaxalign.rollout import Sampling
from jaxalign.rollout.text import end_ids
from jaxalign.settings import check_ranges
from jaxalign.tracking import Jsonl, Tracker, read_jsonl

PHASES = "phases.jsonl"
SHOWN = {
    "loss": "loss",
    "score": "objective/scores",
    "kl": "objective/kl",
    "entropy": "policy/entropy_avg",
    "length": "completions/length",
}
NORMALISERS = {"none": experience.raw, "scale": experience.scaled, "standardise": experience.standardised}


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a command makes of its configuration for ``run``.

    Attributes:
        online: the method.
        trained: what is trained, as the method wants it.
        fixed: the part of it that is not.
        policy: takes the policy out of such a tree.
        roles: bytes of what else lies in memory, by role.
        pairs: whether examples become pairs.
    """

    online: Online
    trained: Params
    fixed: Params
    policy: Callable[[Params], Params] = lambda params: params
    roles: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pairs: bool = False


Make = Callable[[Model, Params, Params, Callable[..., Any], Any], Parts]


def run(
    config: OnlineConfig,
    make: Make,
    *,
    samples_each: int,
    penalty: PenaltySection | None = None,
    referenced: bool = True,
) -> None:
    """The whole job. What can be wrong is found before anything is written.

    Args:
        config: the command's settings.
        make: (model, trained policy, its fixed rest, the shaping of scores, the controller) -> the method's parts.
        samples_each: K.
        penalty: the price of KL; None where the loss has its own.
        referenced: whether the method has a reference at all.
    """
    check(config)
    job = training.start(config)
    console, train = job.console, config.train
    tokenizer = load_tokenizer(config.model.path)
    prompts, rows = read_prompts(config.data, tokenizer, console)
    functions = {name: load_function(name) for name in (config.reward.functions or {})}
    base, params = open_model(config.model, job.mesh, lambda line: console.print(line, markup=False))
    room = max(map(len, prompts)) + config.rollout.max_new_tokens
    check_tokens(base, prompts)
    check_positions(base, room, "The longest prompt plus rollout.max_new_tokens")
    devices = job.mesh.shape["data"] * job.mesh.shape["fsdp"]
    micro = train.rows_per_microbatch or devices
    packing = rollouts.Packing.fit(
        job.mesh, max(map(len, prompts)), samples_each, config.rollout.max_new_tokens, rows=micro
    )
    scorers, roles = make_scorers(config.reward, functions, tokenizer, base, params, packing, train.batch_size, console)
    steps = train.iterations * train.epochs * train.minibatches
    optimizer, schedule = optim.make_optimizer(config.optim, steps)

    with Checkpoints(job.output / runs.CHECKPOINTS, keep=train.keep) as kept, telling(kept):
        resuming = kept.latest_step() is not None
        examples = [Tree.of(prompt, [prompt]) for prompt in prompts]  # as what is fingerprinted is
        training.begin(job, base.config, params, tokenizer, (examples,), resuming=resuming)
        shown = prompts[: config.samples.prompts]
        answered = training.answers_before(job, base, params, tokenizer, shown, resuming=resuming)
        reference = hold_reference(config.reference, params) if referenced and not config.lora.rank else None
        model, params, fixed = training.trainable(config.lora, base, params, train.seed)
        shape = functools.partial(
            experience.shape_scores,
            normaliser=NORMALISERS[config.reward.normalise],
            clip=math.inf if config.reward.clip is None else config.reward.clip,
            missing_eos_penalty=config.reward.missing_eos_penalty,
        )
        kl = penalty or PenaltySection(beta=0.0)
        parts = make(model, params, fixed, shape, controller(kl))
        del params
        moving = reference is not None and config.reference.refresh != "never"
        method_state = experience.init_state(kl.beta, reference=reference if moving else ())
        state = loop.init_state(parts.trained, optimizer, stream(train.seed, "loop"), method_state=method_state)
        roles = {
            "trained": size_of(state.params),
            "fixed": size_of(parts.fixed),
            "optimiser": size_of(state.opt_state),
            "reference": size_of(reference),
            **parts.roles,
            **roles,
        }
        tell_roles(roles, config.reference.hold, console)
        parts = dataclasses.replace(parts, trained=None)
        position = 0
        if resuming:
            like = jax.tree.map(training.abstract, state)
            del state
            state, position = kept.restore(like)
            console.print(f"going on after iteration {position}")
        step_fn = loop.make_step(parts.online.step, optimizer, state, fixed=parts.fixed, learning_rate=schedule)
        frozen = {} if reference is None or moving else {"reference": reference}
        prepare = rollouts.make_prepare(
            parts.online,
            packing,
            size=train.batch_size,
            length=config.rollout.max_new_tokens,
            frozen=frozen,
            fixed=parts.fixed,
        )
        if parts.pairs:
            prepare = pairs_of(prepare)
        sampler = Sampler(
            model,
            samples_each,
            config.rollout.max_new_tokens,
            end_ids(model, tokenizer),
            width=max(map(len, prompts)),
            sampling=Sampling(temperature=config.rollout.temperature, top_p=config.rollout.top_p),
        )

        def draw(params: Params, prompts: Sequence[np.ndarray], key: jax.Array, ids: np.ndarray) -> Any:
            return sampler(parts.policy(union(params, parts.fixed)), prompts, key, ids)

        collect = Collector(
            draw,
            scorers,
            prompts,
            rows,
            train.batch_size,
            train.seed,
            chunk_size=config.rollout.chunk,
            keep=informative if config.rollout.rounds > 1 else None,
            rounds=config.rollout.rounds,
        )
        with (
            Interrupt() as interrupt,
            Tracker(
                job.output,
                total_steps=train.iterations,
                config=config.log,
                resume_step=position or None,
                settings=job.settings,
                shown=SHOWN,
            ) as tracker,
            contextlib.closing(Jsonl(job.output / PHASES, resume_step=position or None)) as phases,
            training.budget_of(
                job, parts.fixed, (model, tokenizer), resuming=resuming, policy=parts.policy, unit="iteration"
            ) as budget,
        ):
            done = position
            if budget is not None and not resuming:
                tracker.log_eval(0, budget.begin(state), prefix="budget/")
            for found in rollouts.iterate(
                state,
                collect,
                prepare,
                step_fn,
                dataclasses.replace(packing, num_completions=2) if parts.pairs else packing,
                iterations=train.iterations,
                weights=parts.online.weights,
                size=train.batch_size,
                epochs=train.epochs,
                num_minibatches=train.minibatches,
                max_kl=train.max_update_kl,
                refresh=refresher(config.reference, parts.policy) if moving else None,
            ):
                state, done = found.state, done + 1
                tracker.log(done, found.metrics)
                phases.log(done, found.seconds)
                if budget is not None and training.is_due(config.budget.every, done, train.iterations):
                    figures, exceeded = budget.measure(state, done)
                    tracker.log_eval(done, figures, prefix="budget/")
                    if exceeded is not None:
                        state, done = budget.restore(state)
                        console.print(f"{exceeded} The model of iteration {done} is kept.", markup=False)
                        break
                if interrupt.asked or training.is_due(train.checkpoint_every, done, train.iterations):
                    kept.save(state, position=done)
                experience.guard(found.metrics, max_kl=_limit(train.stop_kl), min_entropy=train.stop_entropy)
                if interrupt.asked:
                    raise KeyboardInterrupt

    policy, rest = parts.policy(state.params), parts.policy(parts.fixed) if parts.fixed is not None else None
    model, policy = training.save(job, model, policy, rest, tokenizer)
    answered["after"] = training.sample(job, model, policy, tokenizer, shown)
    runs.write_samples(job.output, answered)
    tell_phases(read_jsonl(job.output / PHASES), console)
    training.report(job, held=0, answered=answered)


def check(config: OnlineConfig) -> None:
    """Raise for settings that make no sense, before anything is read."""
    check_ranges(config, {key: limits for key, limits in RANGES.items() if hasattr(config, key.split(".")[0])})
    check_budget(config.budget)
    reward = config.reward
    if reward.path is None and reward.adapter is None and not reward.functions:
        raise UserError("there is nothing to reward: give reward.path (a reward model) or reward.functions.")
    if reward.adapter is not None and (reward.path is not None or reward.hold != "device" or not config.lora.rank):
        raise UserError(
            "reward.adapter is a reward model on the policy's base, which stays on the device and must not be trained: "
            "give lora.rank, and leave reward.path and reward.hold away."
        )
    reference = config.reference
    if reference.refresh != "never" and config.lora.rank:
        raise UserError("with lora the reference is the base, which stays; leave reference.refresh at never.")
    if reference.refresh != "never" and reference.hold == "host":
        raise UserError("a reference that is refreshed is part of the state; give reference.hold device or bfloat16.")
    if reference.refresh == "average" and reference.hold == "bfloat16":
        raise UserError("bfloat16 rounds a moving average's small steps away; give reference.hold device.")
    weights = {"reward.weight": reward.weight, **(reward.functions or {})}
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise UserError(f"the weight of {name} is {weight}; give a finite number.")


def read_prompts(data: PromptSection, tokenizer: Any, console: Console) -> tuple[list[np.ndarray], list[Any]]:
    """Prompts as the model reads them, and the row that each stands in."""
    records, report = read_records(
        Prompt,
        data.path,
        columns=data.columns,
        format=data.format,
        on_error=data.on_error,
        split=data.split,
        name=data.name,
        data_dir=data.data_dir,
    )
    console.print(f"{data.path}: {report}", markup=False)
    found, told = tokenize_prompts(
        records[: data.limit], tokenizer, max_length=data.max_length, template=data.template, on_error=data.on_error
    )
    console.print(f"prompts: {told}", markup=False)
    return [np.asarray(ids, np.int32) for ids, _ in found], [row for _, row in found]


def controller(kl: PenaltySection) -> experience.Controller:
    """The controller of the KL's price."""
    if kl.target is None:
        return losses.fixed_kl
    return functools.partial(losses.adaptive_kl, target=kl.target, gain=kl.gain)


def hold_reference(reference: ReferenceSection, params: Params) -> Params:
    """A reference held as the section says: a copy, because the optimiser's step reuses the buffers of the original."""
    held = to_bfloat16(params) if reference.hold == "bfloat16" else jax.tree.map(jnp.copy, params)
    return jax.device_get(held) if reference.hold == "host" and reference.refresh == "never" else held


def refresher(
    reference: ReferenceSection, policy: Callable[[Params], Params]
) -> Callable[[Params, Params, int], Params]:
    """(reference, what is trained, iterations done) -> reference."""

    def refresh(held: Params, params: Params, iteration: int) -> Params:
        if reference.refresh == "average":
            return moving_average(held, policy(params), iteration, rate=reference.rate)
        new = replace_every(held, policy(params), iteration, every=reference.every)
        return jax.tree.map(lambda old, leaf: leaf.astype(old.dtype), held, new)

    return refresh


def tell_roles(roles: Mapping[str, int], hold: str, console: Console) -> None:
    """What the run will hold in memory, before it starts."""
    table = Table(title="bytes held")
    table.add_column("role")
    table.add_column("MiB", justify="right")
    for role, size in roles.items():
        note = f" ({hold})" if role == "reference" and size else ""
        table.add_row(f"{role}{note}", f"{size / 2**20:,.1f}")
    table.add_row("all", f"{sum(roles.values()) / 2**20:,.1f}")
    console.print(table)


def tell_phases(lines: Sequence[Mapping[str, float]], console: Console) -> None:
    """Seconds of each phase of an iteration, the median: the first one compiles."""
    names = [name for name in (lines[-1] if lines else {}) if name != "step"]
    medians = ", ".join(f"{name} {statistics.median(line[name] for line in lines):.2f} s" for name in names)
    console.print(f"an iteration, by phase (median): {medians}")


def _limit(value: float | None) -> float:
    return math.inf if value is None else value
