"""The common start of all methods: a world, a model pretrained and fine-tuned on it, and the settings of a study."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.batches import batches, evaluation_batches
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.trees import Tree
from jaxalign.loop import Batch, Method, OnMesh, StepFn, TrainState, init_state, make_step, run
from jaxalign.methods.collect import Sampler
from jaxalign.methods.sft import sft
from jaxalign.models.model import Model
from jaxalign.testbed import learner
from jaxalign.testbed.annotators import Judge, Thumbs
from jaxalign.testbed.gold import Weights, gold
from jaxalign.testbed.world import Instruction, World, make_world

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Setting:
    """World, annotators and training budgets of a study.

    Args:
        weights: weights of the parts of the gold reward
        pairs: number of comparisons by people; the numbers of thumbs and of the judge's verdicts are the same
        temperature: noise of people's choices, in units of gold reward
        thumbs: people who rate single answers
        judge: the AI judge
        ceiling: omit pairs with an answer of a larger gold reward, so that the pairs do not cover the good answers
        pretrain_steps: steps of pretraining, each on 32 texts
        sft_steps: steps of fine-tuning, each on 32 demonstrations
        steps: steps of every method that learns from a fixed set, each on 32 pairs or thumbs
        sft_learning_rate: learning rate of fine-tuning
        learning_rate: learning rate of every method after fine-tuning
        beta: β of DPO and KTO
        iterations: iterations of PPO, each on 64 prompts
        price: coefficient of the KL penalty in PPO, per nat
        n: number of answers of best-of-n
        held_out: share of the instructions that are held out for measurements
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


class Curve(NamedTuple):
    """KL from the start (nats per answer), mean proxy reward and mean gold reward at several points."""

    kl: list[float]
    proxy: list[float]
    gold: list[float]


@dataclasses.dataclass(frozen=True)
class Trained:
    """The result of a method: parameters, and what they cost.

    Attributes:
        params: Trained parameters.
        tokens: Number of prompt and answer tokens trained on, with repetitions.
        seconds: Seconds of training (for PPO also of sampling and scoring), without compilation and annotation.
        models: Number of models of the policy's size that are in memory at once.
        peak_bytes: Memory of a training step and of the other models, by the compiler's account.
        best_of: Number of answers sampled for each one that is given.
        curve: Rewards of an online method on training instructions, iteration by iteration from the start.
    """

    params: Any
    tokens: int
    seconds: float
    models: int
    peak_bytes: int
    best_of: int = 1
    curve: Curve | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The common start of all methods for one seed. Starts are compared by identity.

    Attributes:
        setting: Settings of the study.
        seed: Seed of all random numbers.
        world: The instructions.
        tokenizer: The world's tokenizer.
        model: The model.
        sft: Fine-tuned parameters.
        programs: Compiled steps, which several starts may share.
        cache: Values that ``cached`` has computed.
    """

    setting: Setting
    seed: int
    world: World
    tokenizer: Any
    model: Model
    sft: Any
    programs: dict[Any, StepFn]
    cache: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def with_setting(self, **changes: Any) -> Start:
        """Returns the same model in another study: with other annotators or budgets after fine-tuning."""
        return dataclasses.replace(self, setting=dataclasses.replace(self.setting, **changes))

    def cached(self, name: str, settings: Sequence[str], compute: Callable[[Start], T]) -> T:
        """Returns ``compute(self)``, computed once for all studies of this start with equal values of ``settings``."""
        key = (name, *(getattr(self.setting, setting) for setting in settings))
        if key not in self.cache:
            self.cache[key] = compute(self)
        return self.cache[key]

    def random(self, name: str) -> np.random.Generator:
        """Returns a generator of random numbers for the purpose ``name``."""
        return np.random.default_rng((self.seed, *name.encode()))

    def sampler(self, num_completions: int) -> Sampler:
        """Returns a sampler of several answers, each of at most ``learner.MAX_ANSWER_TOKENS`` tokens."""
        width = max(len(self.prompt(item)) for item in (*self.world.train, *self.world.held_out))
        ends = self.model.config.eos_token_ids
        return Sampler(self.model, num_completions, learner.MAX_ANSWER_TOKENS, ends, width=width)

    def batches(self, trees: Sequence[Tree], batch_size: int = learner.BATCH_SIZE) -> OnMesh:
        """Returns batches of every example once, in order."""
        return OnMesh(evaluation_batches(trees, batch_size=batch_size, **learner.ROWS), self.model.mesh)

    def prompt(self, instruction: Instruction) -> np.ndarray:
        """Returns the token ids of an instruction."""
        return learner.encode_prompt(self.tokenizer, instruction)

    def gold(self, instruction: Instruction, answer: np.ndarray) -> float:
        """Returns the gold reward of an answer, given as token ids."""
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        return gold(instruction, text, self.setting.weights).total


def make_start(setting: Setting, seed: int, programs: dict[Any, StepFn] | None = None) -> Start:
    """Pretrains a model on the world, and fine-tunes it on demonstrations.

    Args:
        setting: Settings of the study.
        seed: Seed of the facts, the texts and the parameters.
        programs: Compiled steps, to share them between seeds.

    Returns:
        The common start of the methods.
    """
    world = make_world(seed=seed, held_out=setting.held_out)
    tokenizer = learner.make_tokenizer(world)
    model = learner.make_model(tokenizer)
    start = Start(setting, seed, world, tokenizer, model, None, {} if programs is None else programs)

    random = np.random.default_rng(seed)
    steps = setting.pretrain_steps
    texts = learner.draw_corpus(tokenizer, world, steps * learner.BATCH_SIZE, random)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, max(1, steps // 20), steps, 1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))
    params = model.init(jax.random.key(seed))
    base = fit(start, ("pretraining", steps), sft(model), texts, steps=steps, params=params, optimizer=optimizer)

    steps, rate = setting.sft_steps, setting.sft_learning_rate
    drawn = [world.train[int(i)] for i in random.integers(len(world.train), size=steps * learner.BATCH_SIZE)]
    answers = [learner.draw_demonstration(random, instruction) for instruction in drawn]
    examples = learner.demonstrations(tokenizer, drawn, answers, random)
    tuned = fit(start, ("sft", rate), sft(model), examples, steps=steps, params=base.params, optimizer=adam(rate))
    return dataclasses.replace(start, sft=tuned.params)


def fit(
    start: Start,
    name: Any,
    method: Method,
    trees: Sequence[Tree],
    *,
    params: Any = None,
    frozen: Any = None,
    mismatched: bool = False,
    steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Trained:
    """Trains on a fixed set of examples.

    Args:
        start: The common start.
        name: Key of the compiled step. It contains every hyper-parameter that the start's setting does not.
        method: Functions of the method.
        trees: The examples.
        params: Initial parameters; by default the fine-tuned ones. They are not changed.
        frozen: Parameters of a reference.
        mismatched: Whether batches contain mismatched completions, as KTO needs.
        steps: Number of steps; by default the setting's.
        optimizer: By default Adam with the setting's learning rate.

    Returns:
        The trained parameters, and their cost.
    """
    steps = steps or start.setting.steps
    optimizer = optimizer or adam(start.setting.learning_rate)
    initial = jax.tree.map(jnp.copy, start.sft if params is None else params)
    state = init_state(initial, optimizer, jax.random.key(start.seed))
    # The same method's compiled step serves every seed; only its reference differs.
    key = (name, start.setting.beta, start.setting.learning_rate)
    step = start.programs.setdefault(key, make_step(method, optimizer, state, frozen=frozen))
    step = dataclasses.replace(step, frozen=frozen)
    data: Any = batches(trees, batch_size=learner.BATCH_SIZE, seed=start.seed, **learner.ROWS)
    if mismatched:
        data = Mismatched(data, trees, trees, start.seed)
    data = OnMesh(data, start.model.mesh)
    memory = peak_bytes(step, state, data[0])  # compiles, so the clock below measures training only
    began = time.perf_counter()
    for state, _ in run(step, state, data, steps=steps):  # noqa: B007
        pass
    trained = jax.block_until_ready(state.params)
    seconds = time.perf_counter() - began
    tokens = round(steps * learner.BATCH_SIZE * float(np.mean([len(tree) for tree in trees])))
    return Trained(trained, tokens, seconds, 1 if frozen is None else 2, memory)


def peak_bytes(step: StepFn, state: TrainState, batch: Batch) -> int:
    """Returns the memory of a step by the compiler's account: state, models, batch, results and scratch space."""
    memory = step.lower(state, batch).compile().memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(arrays + memory.temp_size_in_bytes)


def adam(learning_rate: float) -> optax.GradientTransformation:
    """Returns the optimiser of all methods after pretraining."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate))
