"""Training of the offline recipes: batches, the loop with evaluation and checkpoints, and its resumption."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jaxalign import loop, optim
from jaxalign.data.batches import batches, evaluation_batches
from jaxalign.data.kinds import Record
from jaxalign.data.load import read_examples, tokenize_examples
from jaxalign.data.shapes import choose_shapes
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.keys import stream
from jaxalign.recipes.config import DataSection, TrainSection
from jaxalign.recipes.interrupt import Interrupt
from jaxalign.recipes.steps import Run, Trainable, open_budget
from jaxalign.tracking import Tracker


class Examples(NamedTuple):
    """Prompt trees to train on and to evaluate on, and counts of what was cut, as metrics."""

    train: list[Tree]
    eval: list[Tree]
    counts: Mapping[str, int]


class Plan(NamedTuple):
    """The steps of a run, the options that all its batches share, its optimiser and its learning-rate schedule."""

    steps: int
    options: dict[str, Any]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def load_examples(run: Run, kind: type[Record], rows: Any = None, eval_rows: Any = None) -> Examples:
    """Reads, splits and tokenises the examples of a run.

    Args:
        run: The run; its sections ``data`` and ``train.seed`` say what to read and how.
        kind: The kind of record that the recipe learns from.
        rows: Rows in memory in place of ``data.path``.
        eval_rows: Rows in memory in place of ``data.eval_path``.

    Raises:
        UserError: For a bad source or row, or if nothing is left to train on.
    """
    data: DataSection = run.config.data
    records = read_examples(
        kind,
        data.path or None,
        rows=rows,
        eval_source=data.eval_path,
        eval_rows=eval_rows,
        holdout=data.holdout,
        seed=run.config.train.seed,
        limit=data.limit,
        report=run.report,
        signals=getattr(data, "signals", None),
        **data.reading,
    )
    (train, counts), (held_out, eval_counts) = (
        tokenize_examples(
            part,
            run.tokenizer,
            purpose,
            loss_on=getattr(data, "loss_on", "assistant"),
            max_length=data.max_length,
            max_completion_length=data.max_completion_length,
            template=data.template,
            on_error=data.on_error,
            report=run.report,
        )
        for part, purpose in zip(records, ("training", "held out"), strict=True)
    )
    return Examples(train, held_out, {**counts, **eval_counts})


def plan_steps(run: Run, examples: Examples, noun: str) -> Plan:
    """Chooses row shapes, counts the steps, makes the optimiser, and reports the work ahead.

    Args:
        run: The run.
        examples: Its examples.
        noun: What one example is called in the report.

    Raises:
        UserError: For numbers that make no batch.
    """
    train: TrainSection = run.config.train
    trees = [*examples.train, *examples.eval]
    row_devices = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    rows = train.rows_per_microbatch or row_devices
    if rows % row_devices:
        raise UserError(
            f"train.rows_per_microbatch is {rows}. It must be a multiple of the mesh's data × fsdp = {row_devices}."
        )
    if train.row_lengths is None:
        shapes = choose_shapes(trees, batch_size=train.batch_size, rows_per_microbatch=rows)
    else:
        shapes = [(length, slots) for length in train.row_lengths for slots in (length // 2, length)]
        longest = max(map(len, trees))
        if longest > max(train.row_lengths):
            raise UserError(
                f"train.row_lengths is {list(train.row_lengths)}, and the longest example has {longest} tokens "
                "(prompt and all answers). Allow longer rows, or lower data.max_length."
            )
    steps = train.steps
    if steps is None:
        steps = math.ceil(train.epochs * len(examples.train) / train.batch_size)
    if steps < 1:
        raise UserError(f"The run has {steps} steps. Set train.steps or train.epochs so that it has 1 or more.")
    run.report(f"{steps} steps of {train.batch_size} {noun}, in rows of {shapes} (tokens, targets)")
    options = {"batch_size": train.batch_size, "rows_per_microbatch": rows, "shapes": shapes}
    return Plan(steps, options, *optim.make_optimizer(run.config.optim, steps))


def make_batches(run: Run, examples: Examples, plan: Plan) -> tuple[Any, Any]:
    """Returns training batches, and evaluation batches (None without evaluation examples), indexed by step."""
    drawn = batches(examples.train, seed=run.config.train.seed, **plan.options)
    return drawn, evaluation_batches(examples.eval, **plan.options) if examples.eval else None


def fit(
    run: Run,
    method: loop.Method,
    policy: Trainable,
    plan: Plan,
    train_batches: Any,
    eval_batches: Any,
    *,
    frozen: Any = None,
    notes: Mapping[str, float] | None = None,
    derive: Callable[[dict[str, float]], dict[str, float]] = lambda metrics: metrics,
) -> tuple[Trainable, list[dict[str, Any]]]:
    """Trains to the last step, from the latest checkpoint if there is one.

    Args:
        run: The run.
        method: The loss to minimise.
        policy: What is trained; ``policy.trained`` is donated to the first step.
        plan: Steps and optimiser.
        train_batches: Packed batches, indexed by step.
        eval_batches: Packed batches to evaluate on, or None.
        frozen: See ``loop.make_step``.
        notes: Values to record at step 0.
        derive: Adds metrics that follow from those of an evaluation.

    Returns:
        The trained policy, within the budget if one is set, and the lines of the metrics file.
    """
    train, steps, resuming = run.config.train, plan.steps, run.is_resuming
    state, resume_step = start_state(run, policy, plan, method.method_state)
    step_fn = loop.make_step(
        method, plan.optimizer, state, frozen=frozen, fixed=policy.fixed, learning_rate=plan.schedule
    )
    evaluate = loop.make_eval(method, frozen=frozen, fixed=policy.fixed)
    on_mesh = None if eval_batches is None else loop.OnMesh(eval_batches, run.mesh)
    with (
        Interrupt() as interrupt,
        Tracker(
            run.directory,
            total_steps=steps,
            config=run.config.log,
            resume_step=resume_step,
            settings=run.settings,
            report=run.report,
        ) as tracker,
        open_budget(run, policy) as budget,
    ):

        def log_evaluation(step: int) -> dict[str, float]:
            if on_mesh is None:
                return {}
            return tracker.log_eval(step, derive(evaluate(state.params, state.method_state, on_mesh)))

        if not resuming:
            log_evaluation(0)
            tracker.note(0, {f"data/{name}": count for name, count in (notes or {}).items()})
            if budget is not None:
                tracker.log_eval(0, budget.begin(state), prefix="budget/")
        trained = loop.run(step_fn, state, loop.OnMesh(train_batches, run.mesh), steps=steps)
        for step, (state, metrics) in enumerate(trained, start=1 + (resume_step or 0)):
            tracker.log(step, metrics)
            if run.on_step is not None:
                run.on_step(step, state, metrics)
            if budget is not None and is_due(budget.section.every, step, steps):
                figures, exceeded = budget.measure(state, step)
                tracker.log_eval(step, figures, prefix="budget/")
                if exceeded is not None:
                    state, step = budget.restore(state)
                    run.report(f"{exceeded} The model of step {step} is the result.")
                    log_evaluation(step)  # of the result, not of the state beyond the budget
                    break
            measured = log_evaluation(step) if is_due(train.eval_every, step, steps) else {}
            save_due = measured or interrupt.requested or is_due(train.checkpoint_every, step, steps)
            if run.checkpoints is not None and save_due:
                run.checkpoints.save(state, metrics=measured)
            if interrupt.requested:
                raise KeyboardInterrupt
    return policy._replace(trained=state.params), tracker.lines


def start_state(run: Run, policy: Trainable, plan: Plan, method_state: Any) -> tuple[loop.TrainState, int | None]:
    """Returns the first state of a run, or its latest checkpoint and the step of it."""
    key = stream(run.config.train.seed, "loop")
    state = loop.init_state(policy.trained, plan.optimizer, key, method_state=method_state)
    step = None if run.checkpoints is None else run.checkpoints.latest_step()
    if run.checkpoints is None or step is None:
        return state, None
    like = jax.tree.map(abstract, state)
    # Two states may not fit into memory, and the caller still has a reference to this one.
    jax.tree.map(lambda leaf: leaf.delete(), (state.params, state.opt_state))
    state, _ = run.checkpoints.restore(like)
    run.report(f"resuming after step {step}")
    return state, step


def is_due(every: int, step: int, last: int) -> bool:
    """Returns whether an action of every so many steps is due. It always is at the last step; 0 means only there."""
    return step == last or (every > 0 and step % every == 0)


def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Returns an array's shape, type and sharding, so that the array can be freed before a checkpoint is read."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def sample_prompts(run: Run, trees: Sequence[Tree]) -> list[Any]:
    """Returns the first different prompts of the trees, as many as the section ``samples`` asks for."""
    return [tree.prompt for tree in trees[: run.config.samples.prompts]]
