"""The steps that ppo, grpo and online_dpo share: prompts, rewards, a reference, and the iterations."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign import loop, losses, optim, rewards
from jaxalign.data.kinds import Prompt
from jaxalign.data.load import read_source
from jaxalign.data.tokenize import tokenize_prompts
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.keys import stream
from jaxalign.methods import experience, rollouts
from jaxalign.methods.collect import Collector, Sampler, Scorer, informative
from jaxalign.methods.experience import OnlineMethod
from jaxalign.models.model import Model
from jaxalign.models.open import check_language_model, check_positions, check_tokens
from jaxalign.models.params import Params, moving_average, replace_every, union
from jaxalign.recipes.budget import check_budget
from jaxalign.recipes.fit import abstract, is_due
from jaxalign.recipes.interrupt import Interrupt
from jaxalign.recipes.online_config import RANGES, OnlineConfig, PenaltySection, ReferenceSection
from jaxalign.recipes.scorers import make_scorers, size_of, to_bfloat16
from jaxalign.recipes.steps import Run, Trainable, open_budget, open_starting_model, record_inputs, sample_before
from jaxalign.rewards.functions import load_function
from jaxalign.rollout import Sampling
from jaxalign.rollout.text import end_ids
from jaxalign.settings import check_ranges
from jaxalign.tracking import Jsonl, Tracker

PHASES = "phases.jsonl"
# What a progress line shows of an iteration: label → metric.
SHOWN = {
    "loss": "loss",
    "score": "objective/scores",
    "kl": "objective/kl",
    "entropy": "policy/entropy_avg",
    "length": "completions/length",
}
NORMALISERS = {"none": experience.raw, "scale": experience.scaled, "standardise": experience.standardised}


class Prompts(NamedTuple):
    """Tokenised prompts, and the row that each comes from (for rewards that compare with an answer)."""

    ids: list[np.ndarray]
    rows: list[Any]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids))


class Start(NamedTuple):
    """What an online run starts from.

    Attributes:
        model: The policy's model.
        params: Its parameters.
        prompts: Its prompts.
        packing: How examples are packed into rows.
        scorers: Name → (weight, scorer).
        roles: Bytes of the reward model in memory, by role.
    """

    model: Model
    params: Params
    prompts: Prompts
    packing: rollouts.Packing
    scorers: Mapping[str, tuple[float, Scorer]]
    roles: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class TrainableMethod:
    """An online method together with the parameters that it trains.

    Attributes:
        algorithm: The method.
        trainable: The policy's model, and all parameters of the method in two parts, trained and fixed.
        policy: Selects the policy from such a tree of parameters.
        roles: Bytes of further models in memory, by role.
    """

    algorithm: OnlineMethod
    trainable: Trainable
    policy: Callable[[Params], Params] = lambda params: params
    roles: Mapping[str, int] = dataclasses.field(default_factory=dict)


def validate_online_config(config: OnlineConfig, functions: Mapping[str, rewards.Reward] | None) -> None:
    """Raises UserError for settings that make no sense, before anything is read.

    Args:
        config: The configuration.
        functions: Reward functions that were passed, or None.
    """
    check_ranges(config, {key: limits for key, limits in RANGES.items() if hasattr(config, key.split(".")[0])})
    check_budget(config.budget)
    reward = config.reward
    if reward.path is None and reward.adapter is None and not reward.functions and not functions:
        raise UserError("Nothing is rewarded. Set reward.path (a reward model) or reward.functions, or pass rewards.")
    if reward.adapter is not None and (reward.path is not None or reward.hold != "device" or not config.lora.rank):
        raise UserError(
            "reward.adapter is a reward model on the policy's base, which stays on the device and must not be trained. "
            "Set lora.rank, and leave reward.path and reward.hold out."
        )
    reference = config.reference
    if reference.refresh != "never" and config.lora.rank:
        raise UserError("With lora the reference is the base, which does not change. Leave reference.refresh at never.")
    if reference.refresh != "never" and reference.hold == "host":
        raise UserError("A refreshed reference is part of the state. Set reference.hold to device or bfloat16.")
    if reference.refresh == "average" and reference.hold == "bfloat16":
        raise UserError("bfloat16 loses the small steps of a moving average. Set reference.hold to device.")
    for name, weight in {"reward.weight": reward.weight, **(reward.functions or {})}.items():
        if not math.isfinite(weight):
            raise UserError(f"The weight of {name} is {weight}. Give a finite number.")


def load_prompts(run: Run, rows: Any = None) -> Prompts:
    """Reads and tokenises the prompts of a run.

    Args:
        run: The run; its section ``data`` says what to read and how.
        rows: Rows in memory in place of ``data.path``.

    Raises:
        UserError: For a bad source or row.
    """
    data = run.config.data
    if not data.path and rows is None:
        raise UserError("The prompts are missing. Set data.path, or pass rows.")
    records, _ = read_source(Prompt, data.path if rows is None else rows, report=run.report, **data.reading)
    texts, result = tokenize_prompts(
        records[: data.limit], run.tokenizer, max_length=data.max_length, template=data.template, on_error=data.on_error
    )
    run.report(f"prompts: {result}")
    return Prompts([np.asarray(ids, np.int32) for ids, _ in texts], [row for _, row in texts])


def start_online(
    run: Run,
    *,
    model: tuple[Model, Params] | None,
    rows: Any,
    functions: Mapping[str, rewards.Reward] | None,
    num_completions: int,
) -> Start:
    """Reads prompts, opens the policy and its rewards, and chooses the rows that examples are packed into.

    Args:
        run: The run.
        model: The policy, in place of the configured one.
        rows: Prompts in memory, in place of the configured ones.
        functions: Reward functions, in addition to the configured ones. One that ``reward.functions`` names has the
            weight given there, another one has weight 1.
        num_completions: Answers to each prompt.

    Raises:
        UserError: For prompts, a policy or rewards that cannot be used.
    """
    config = run.config
    prompts = load_prompts(run, rows)
    given, weights = dict(functions or {}), dict(config.reward.functions or {})
    scoring = {**{name: load_function(name) for name in weights if name not in given}, **given}
    base, params = open_starting_model(run, model)
    check_language_model(base, config.model.path or "The model")
    check_tokens(base, prompts.ids)
    room = prompts.longest + config.rollout.max_new_tokens
    check_positions(base, room, "The length of the longest prompt and rollout.max_new_tokens")
    rows_per_microbatch = config.train.rows_per_microbatch or run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    packing = rollouts.Packing.for_lengths(
        run.mesh, prompts.longest, num_completions, config.rollout.max_new_tokens, rows=rows_per_microbatch
    )
    section = dataclasses.replace(config.reward, functions={name: weights.get(name, 1.0) for name in scoring})
    scorers, roles = make_scorers(
        section, scoring, run.tokenizer, base, params, packing, config.train.batch_size, run.report
    )
    return Start(base, params, prompts, packing, scorers, roles)


def record_start(run: Run, start: Start, **functions: Any) -> dict[str, list[str]]:
    """Records the inputs of a run, and returns sampled answers of the untrained policy."""
    examples = [Tree.of(prompt, [prompt]) for prompt in start.prompts.ids]  # fingerprints are of trees
    record_inputs(run, start.model, start.params, (examples,), **functions)
    return sample_before(run, start.model, start.params, shown_prompts(run, start))


def shown_prompts(run: Run, start: Start) -> list[np.ndarray]:
    """Returns the prompts that are answered before and after training."""
    return start.prompts.ids[: run.config.samples.prompts]


def score_shaping(run: Run) -> Callable[..., Any]:
    """Returns the function that normalises scores and charges for answers without an end."""
    reward = run.config.reward
    return functools.partial(
        experience.shape_scores,
        normaliser=NORMALISERS[reward.normalise],
        clip=math.inf if reward.clip is None else reward.clip,
        missing_eos_penalty=reward.missing_eos_penalty,
    )


def kl_controller(kl: PenaltySection) -> experience.Controller:
    """Returns the controller of the KL coefficient: fixed, or adapted to a target."""
    if kl.target is None:
        return losses.fixed_kl
    return functools.partial(losses.adaptive_kl, target=kl.target, gain=kl.gain)


def copy_reference(section: ReferenceSection, params: Params) -> Params:
    """Returns a copy of the parameters, held as the section says. The step donates the original."""
    copied = to_bfloat16(params) if section.hold == "bfloat16" else jax.tree.map(jnp.copy, params)
    return jax.device_get(copied) if section.hold == "host" and section.refresh == "never" else copied


def make_refresher(
    section: ReferenceSection, policy: Callable[[Params], Params]
) -> Callable[[Params, Params, int], Params]:
    """Returns the update of a refreshed reference: (reference, trained, iterations done) -> reference."""

    def refresh(reference: Params, params: Params, iteration: int) -> Params:
        if section.refresh == "average":
            return moving_average(reference, policy(params), iteration, rate=section.rate)
        new = replace_every(reference, policy(params), iteration, every=section.every)
        return jax.tree.map(lambda old, leaf: leaf.astype(old.dtype), reference, new)

    return refresh


def report_roles(run: Run, roles: Mapping[str, int]) -> None:
    """Reports the bytes in memory by role."""
    entries = [f"{role} {size / 2**20:,.1f}" for role, size in roles.items() if size]
    run.report(f"MiB in memory: {', '.join(entries)}, in all {sum(roles.values()) / 2**20:,.1f}")


def report_phases(run: Run, lines: Sequence[Mapping[str, float]]) -> None:
    """Reports the median seconds of each phase of an iteration. The first one compiles."""
    names = [name for name in (lines[-1] if lines else {}) if name != "step"]
    medians = ", ".join(f"{name} {statistics.median(line[name] for line in lines):.2f} s" for name in names)
    run.report(f"an iteration, by phase (median): {medians}")


class Compiled(NamedTuple):
    """The parts of an iteration, ready to run from ``state``: collect, prepare, step, and how examples are packed."""

    state: loop.TrainState
    position: int | None
    collect: Callable[..., Any]
    prepare: rollouts.Prepare
    step_fn: loop.StepFn
    packing: rollouts.Packing
    refresh: Callable[[Params, Params, int], Params] | None


def compile_iteration(
    run: Run,
    start: Start,
    method: TrainableMethod,
    *,
    kl: PenaltySection,
    reference: Params | None,
) -> Compiled:
    """Makes the state of a run, or restores its latest checkpoint, and the functions of an iteration.

    Args:
        run: The run.
        start: Its prompts, rewards and packing.
        method: The method; its trained parameters are donated to the first step.
        kl: The KL coefficient at the start.
        reference: A copy of the policy, or None if the method has no reference or adapters have their base.
    """
    config, fixed = run.config, method.trainable.fixed
    steps = config.train.iterations * config.train.epochs * config.train.minibatches
    optimizer, schedule = optim.make_optimizer(config.optim, steps)
    is_moving = reference is not None and config.reference.refresh != "never"
    method_state = experience.init_state(kl.beta, reference=reference if is_moving else ())
    key = stream(config.train.seed, "loop")
    state = loop.init_state(method.trainable.trained, optimizer, key, method_state=method_state)
    roles = {"trained": state.params, "fixed": fixed, "optimiser": state.opt_state, "reference": reference}
    report_roles(run, {**{role: size_of(tree) for role, tree in roles.items()}, **method.roles, **start.roles})
    del roles
    position = None
    if run.checkpoints is not None and run.is_resuming:
        like = jax.tree.map(abstract, state)
        del state
        state, position = run.checkpoints.restore(like)
        run.report(f"resuming after iteration {position}")
    prepare = rollouts.make_prepare(
        method.algorithm,
        start.packing,
        size=config.train.batch_size,
        length=config.rollout.max_new_tokens,
        frozen={} if reference is None or is_moving else {"reference": reference},
        fixed=fixed,
    )
    return Compiled(
        state,
        position,
        make_collector(run, start, method),
        prepare,
        loop.make_step(method.algorithm.step, optimizer, state, fixed=fixed, learning_rate=schedule),
        start.packing,
        make_refresher(config.reference, method.policy) if is_moving else None,
    )


def make_collector(run: Run, start: Start, method: TrainableMethod) -> Collector:
    """Returns the function that samples and scores the examples of an iteration."""
    rollout, train = run.config.rollout, run.config.train
    sampler = Sampler(
        method.trainable.model,
        start.packing.num_completions,
        rollout.max_new_tokens,
        end_ids(start.model, run.tokenizer),
        width=start.prompts.longest,
        sampling=Sampling(temperature=rollout.temperature, top_p=rollout.top_p),
    )

    def sample(params: Params, prompts: Sequence[np.ndarray], key: jax.Array, ids: np.ndarray) -> Any:
        return sampler(method.policy(union(params, method.trainable.fixed)), prompts, key, ids)

    return Collector(
        sample,
        start.scorers,
        start.prompts.ids,
        start.prompts.rows,
        train.batch_size,
        train.seed,
        chunk_size=rollout.chunk,
        keep=informative if rollout.rounds > 1 else None,
        rounds=rollout.rounds,
    )


def fit_online(run: Run, method: TrainableMethod, parts: Compiled) -> tuple[Trainable, list[dict[str, Any]]]:
    """Runs the iterations from where the state stands, with metrics, budget, guards and checkpoints.

    Returns:
        The trained policy (no value model; within the budget if one is set), and the lines of the metrics file.
    """
    config, train = run.config, run.config.train
    state, done, resuming = parts.state, parts.position or 0, parts.position is not None
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt())
        tracker = stack.enter_context(
            Tracker(
                run.directory,
                total_steps=train.iterations,
                config=config.log,
                resume_step=parts.position,
                settings=run.settings,
                shown=SHOWN,
                report=run.report,
            )
        )
        phases = None
        if run.directory is not None:
            phases = stack.enter_context(contextlib.closing(Jsonl(run.directory / PHASES, resume_step=parts.position)))
        seconds = [] if phases is None else list(phases.lines)
        budget = stack.enter_context(open_budget(run, method.trainable, policy=method.policy, unit="iteration"))
        if budget is not None and not resuming:
            tracker.log_eval(0, budget.begin(state), prefix="budget/")
        update = functools.partial(
            rollouts.update,
            step_fn=parts.step_fn,
            packing=parts.packing,
            weights=method.algorithm.weights,
            size=train.batch_size,
            epochs=train.epochs,
            num_minibatches=train.minibatches,
            max_kl=train.max_update_kl,
        )
        for iteration in rollouts.iterate(
            state, parts.collect, parts.prepare, update, iterations=train.iterations, refresh=parts.refresh
        ):
            state, done = iteration.state, done + 1
            tracker.log(done, iteration.metrics)
            seconds.append({"step": done, **iteration.seconds})
            if phases is not None:
                phases.log(done, iteration.seconds)
            if run.on_step is not None:
                run.on_step(done, state, iteration.metrics)
            if budget is not None and is_due(config.budget.every, done, train.iterations):
                figures, exceeded = budget.measure(state, done)
                tracker.log_eval(done, figures, prefix="budget/")
                if exceeded is not None:
                    state, done = budget.restore(state)
                    run.report(f"{exceeded} The model of iteration {done} is the result.")
                    break
            checkpoint_due = is_due(train.checkpoint_every, done, train.iterations)
            if run.checkpoints is not None and (interrupt.requested or checkpoint_due):
                run.checkpoints.save(state, position=done)
            max_kl = math.inf if train.stop_kl is None else train.stop_kl
            experience.guard(iteration.metrics, max_kl=max_kl, min_entropy=train.stop_entropy)
            if interrupt.requested:
                raise KeyboardInterrupt
    report_phases(run, seconds)
    fixed = method.trainable.fixed
    trained = Trainable(
        method.trainable.model, method.policy(state.params), None if fixed is None else method.policy(fixed)
    )
    return trained, tracker.lines
