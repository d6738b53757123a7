"""What all methods start from: a world, a model pretrained on it and fine-tuned, and how much each may learn from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.batches import Batches, batches
from jaxalign.data.trees import Tree
from jaxalign.loop import Batch, OnMesh, StepFn, TrainState, init_state, make_step, run
from jaxalign.methods.collect import Sampler
from jaxalign.methods.sft import sft
from jaxalign.models.model import Model
from jaxalign.testbed import learner
from jaxalign.testbed.annotators import Judge, Thumbs
from jaxalign.testbed.gold import Weights, gold
from jaxalign.testbed.world import Instruction, World, make_world

Kept = TypeVar("Kept")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A study's world, annotators and budgets.

    Args:
        weights: of the gold reward's parts
        pairs: comparisons that people make; as many thumbs are given, and as many verdicts by the judge
        temperature: of people's choices, in units of gold reward; larger is noisier
        thumbs: of people who rate single answers
        judge: the AI judge
        ceiling: leave out pairs with an answer of a larger gold reward, so that they do not cover the good ones
        pretrain_steps: batches of 32 texts
        sft_steps: batches of 32 demonstrations
        steps: batches of 32 pairs or thumbs, of every method that learns from a fixed set
        sft_learning_rate: of fine-tuning
        learning_rate: of every method after it
        beta: of DPO and KTO
        iterations: of PPO, each of 64 prompts
        price: of a nat of KL in PPO
        n: of best-of-n
        held_out: share of instructions that only measurements see
    """

    weights: Weights = Weights()  # noqa: RUF009  # frozen
    pairs: int = 512
    temperature: float = 0.5
    thumbs: Thumbs = Thumbs()  # noqa: RUF009  # frozen
    judge: Judge = Judge()  # noqa: RUF009  # frozen
    ceiling: float | None = None
    pretrain_steps: int = 300
    sft_steps: int = 40
    steps: int = 40
    sft_learning_rate: float = 3e-4
    learning_rate: float = 1e-4
    beta: float = 0.3
    iterations: int = 16
    price: float = 0.1
    n: int = 8
    held_out: float = 0.3


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What all methods start from, of a seed; compared by identity.

    Attributes:
      setting: the study's.
      seed: of everything.
      world, tokenizer, model: of the testbed.
      sft: the fine-tuned parameters.
      programs: compiled steps.
      kept: what ``once`` has computed.
    """

    setting: Setting
    seed: int
    world: World
    tokenizer: Any
    model: Model
    sft: Any
    programs: dict[Any, StepFn]
    kept: dict[Any, Any]

    def under(self, **changes: Any) -> Start:
        """The same model in another study: other annotators, other budgets of what follows fine-tuning."""
        return dataclasses.replace(self, setting=dataclasses.replace(self.setting, **changes))

    def once(self, name: str, on: Sequence[str], make: Callable[[], Kept]) -> Kept:
        """What ``make`` gives, computed once for all studies of this start that agree in the settings ``on``."""
        key = (name, *(getattr(self.setting, each) for each in on))
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def random(self, name: str) -> np.random.Generator:
        """Random numbers for one purpose."""
        return np.random.default_rng((self.seed, *name.encode()))

    def sampler(self, num_completions: int) -> Sampler:
        """K answers of at most ``learner.LONGEST`` tokens."""
        width = max(len(self.prompt(each)) for each in (*self.world.train, *self.world.held_out))
        ends = self.model.config.eos_token_ids
        return Sampler(self.model, num_completions, learner.LONGEST, ends, width=width)

    def prompt(self, instruction: Instruction) -> np.ndarray:
        """An instruction's ids."""
        return learner.encode_prompt(self.tokenizer, instruction)

    def gold(self, instruction: Instruction, answer: np.ndarray) -> float:
        """The gold reward of an answer's ids."""
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        return gold(instruction, text, self.setting.weights).total


def begin(setting: Setting, seed: int, programs: dict[Any, StepFn] | None = None) -> Start:
    """Pretrain, and fine-tune on demonstrations.

    Args:
      setting: the study's.
      seed: of everything: the facts, the texts, the parameters.
      programs: compiled steps, to share between seeds.
    """
    world = make_world(seed=seed, held_out=setting.held_out)
    tokenizer = learner.make_tokenizer(world)
    model = learner.make_model(tokenizer)
    random = np.random.default_rng(seed)
    texts = learner.corpus(tokenizer, world, setting.pretrain_steps * learner.BATCH, random)
    base = pretrain(model, texts, steps=setting.pretrain_steps, seed=seed)
    chosen = [world.train[int(i)] for i in random.integers(len(world.train), size=setting.sft_steps * learner.BATCH)]
    answers = [learner.good_enough(random, each) for each in chosen]
    start = Start(setting, seed, world, tokenizer, model, base, {} if programs is None else programs, {})
    examples = learner.demonstrations(tokenizer, chosen, answers, random)
    tuned = fit(start, "sft", sft(model), examples, setting.sft_steps, rate=setting.sft_learning_rate)
    return dataclasses.replace(start, sft=tuned.params)


def pretrain(model: Model, trees: Sequence[Tree], *, steps: int, seed: int) -> Any:
    """Parameters that imitate the corpus."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, max(1, steps // 20), steps, 1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))
    state = init_state(model.init(jax.random.key(seed)), optimizer, jax.random.key(seed))
    step = make_step(sft(model), optimizer, state)
    return train(step, state, OnMesh(feed_of(trees, seed), model.mesh), steps)


class Fitted(NamedTuple):
    """Trained parameters, the seconds that the steps took once compiled, and what a step needs in memory."""

    params: Any
    seconds: float
    peak_bytes: int


def fit(
    start: Start,
    name: Any,
    method: Any,
    trees: Sequence[Tree],
    steps: int,
    *,
    params: Any = None,
    frozen: Any = None,
    rate: float | None = None,
    beside: Callable[[Any], Any] = lambda feed: feed,
) -> Fitted:
    """Train on trees, from the fine-tuned parameters or ``params``; ``name`` is what compiled steps go by."""
    rate = rate or start.setting.learning_rate
    optimizer = adam(rate)
    begin_at = jax.tree.map(jnp.copy, start.sft if params is None else params)
    state = init_state(begin_at, optimizer, jax.random.key(start.seed))
    key = (name, start.setting.beta, rate)
    if key not in start.programs:
        start.programs[key] = make_step(method, optimizer, state, frozen=frozen)
    step = dataclasses.replace(start.programs[key], frozen=frozen)
    feed = OnMesh(beside(feed_of(trees, start.seed)), start.model.mesh)
    needed = peak_bytes(step, state, feed[0])  # compiles
    began = time.perf_counter()
    trained = jax.block_until_ready(train(step, state, feed, steps))
    return Fitted(trained, time.perf_counter() - began, needed)


def feed_of(trees: Sequence[Tree], seed: int) -> Batches:
    """Training batches, all of one shape."""
    return batches(trees, batch_size=learner.BATCH, seed=seed, rows_per_microbatch=learner.ROWS, shapes=[learner.SHAPE])


def peak_bytes(step: StepFn, state: TrainState, batch: Batch) -> int:
    """What a step needs by the compiler's account: the state and all it holds, the batch, results, and scratch."""
    found = step.lower(state, batch).compile().memory_analysis()
    given = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(given + found.temp_size_in_bytes)


def train(step: StepFn, state: TrainState, feed: OnMesh, steps: int) -> Any:
    """The parameters after so many steps."""
    for state, _ in run(step, state, feed, steps=steps):  # noqa: B007
        pass
    return state.params


def adam(rate: float) -> optax.GradientTransformation:
    """The optimiser of all methods."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
