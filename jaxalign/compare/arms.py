"""Every method from one start, with the same budget of annotations: an arm is a function of the start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.compare import labels
from jaxalign.compare.start import Fitted, Start, adam, fit, peak_bytes
from jaxalign.data.batches import attach, evaluation_batches
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.loop import Batch, OnMesh, TrainState, init_state, make_step
from jaxalign.methods import dpo as dpo_method
from jaxalign.methods import experience, kto, ppo, reward
from jaxalign.methods.collect import Collector, model_scorer
from jaxalign.methods.rollouts import Packing, iterate, make_prepare
from jaxalign.models.model import Model
from jaxalign.testbed import learner


class Curve(NamedTuple):
    """A policy on its way: KL from the start (nats an answer), mean proxy and gold reward."""

    kl: list[float]
    proxy: list[float]
    gold: list[float]


@dataclasses.dataclass(frozen=True)
class Aligned:
    """What a method left.

    Attributes:
      params: the policy's.
      tokens: prompt and answer tokens trained on, each as often as it was.
      seconds: of training (of PPO, sampling and scoring too), without compiling and without the annotators' work.
      models: held in memory at once, in models of the policy's size.
      peak_bytes: of a training step and of what else is held meanwhile; scratch by the compiler's account.
      best_of: answers sampled for each one that is given.
      curve: of an online method, on training instructions; from the start, of which more answers are scored.
    """

    params: Any
    tokens: int
    seconds: float
    models: int
    peak_bytes: int
    best_of: int = 1
    curve: Curve | None = None


PROXY = (*labels.SHOWN, "temperature", "steps", "learning_rate")
"""The settings that decide what the reward model is."""


def reward_model(start: Start) -> tuple[Model, Any, Aligned]:
    """A reward model on the fine-tuned model's trunk, from people's comparisons; trained once for whoever needs it."""
    return start.once("reward model", PROXY, lambda: train_reward_model(start))


def train_reward_model(start: Start) -> tuple[Model, Any, Aligned]:
    """The reward model, trained."""
    copied = jax.tree.map(jnp.copy, start.sft)
    model, params = reward.from_language_model(start.model, copied, jax.random.key(start.seed))
    trees = labels.peoples_pairs(start)
    fitted = fit(start, "reward", reward.pairs(model), trees, start.setting.steps, params=params)
    return model, fitted.params, spent_on(fitted, trees, start.setting.steps, models=1)


def trained_on(trees: Sequence[Tree], steps: int) -> int:
    """Tokens of so many batches."""
    return round(steps * learner.BATCH * float(np.mean([len(tree) for tree in trees])))


def spent_on(fitted: Fitted, trees: Sequence[Tree], steps: int, *, models: int) -> Aligned:
    """What training on a fixed set left and took."""
    return Aligned(fitted.params, trained_on(trees, steps), fitted.seconds, models, fitted.peak_bytes)


def sft_arm(start: Start) -> Aligned:
    """Nothing more: the start itself."""
    return Aligned(start.sft, 0, 0.0, 1, 0)


def dpo_on(start: Start, trees: Sequence[Tree]) -> Aligned:
    """DPO, the reference's log-probs computed once."""
    once = evaluation_batches(trees, batch_size=learner.BATCH, rows_per_microbatch=learner.ROWS, shapes=[learner.SHAPE])
    logps = dpo_method.reference_logps(start.model, start.sft, OnMesh(once, start.model.mesh))
    method = dpo_method.dpo(start.model, beta=start.setting.beta)
    steps = start.setting.steps
    fitted = fit(start, "dpo", method, attach(trees, ref_logps=logps), steps)
    return spent_on(fitted, trees, steps, models=1)


def dpo_arm(start: Start) -> Aligned:
    """DPO on people's comparisons."""
    return dpo_on(start, labels.peoples_pairs(start))


def rlaif_arm(start: Start) -> Aligned:
    """DPO on the AI judge's verdicts on the same answers."""
    return dpo_on(start, labels.judges_pairs(start))


def kto_arm(start: Start) -> Aligned:
    """KTO on a thumb for one answer of each comparison."""
    trees = labels.thumbs(start)
    up = sum(bool(tree.extras["label"][0]) for tree in trees)
    if up in (0, len(trees)):
        raise UserError(f"{up} of {len(trees)} thumbs are up: KTO needs both kinds; change setting.thumbs.reference")
    weights = kto.balanced_weights(up, len(trees) - up)
    method = kto.kto(start.model, beta=start.setting.beta, desirable_weight=weights[0], undesirable_weight=weights[1])
    steps = start.setting.steps
    fitted = fit(
        start,
        ("kto", weights),
        method,
        trees,
        steps,
        frozen=start.sft,
        beside=lambda feed: Mismatched(feed, trees, trees, start.seed),
    )
    return spent_on(fitted, trees, steps, models=2)


def ppo_arm(start: Start) -> Aligned:
    """PPO against the reward model of people's comparisons, with a value head on the policy."""
    scorer_model, scorer, spent = reward_model(start)
    setting, model = start.setting, start.model
    size = 64
    prompts = [start.prompt(each) for each in start.world.train]
    packing = Packing(model.mesh, learner.SHAPE, 1, learner.ROWS)
    sample = start.sampler(1)
    collect = Collector(
        lambda params, *rest: sample(params["policy"], *rest),
        {"reward": (1.0, model_scorer(scorer_model, scorer, packing.batch, size=size))},
        prompts,
        [{"number": i} for i in range(len(prompts))],
        size,
        start.seed,
    )
    online = ppo.ppo(model, value_coefficient=0.5)
    prepare = make_prepare(online, packing, size=size, length=learner.LONGEST, frozen={"reference": start.sft})
    optimizer = adam(setting.learning_rate)
    params = {"policy": jax.tree.map(jnp.copy, start.sft), "value": ppo.value_head(model)}
    state = init_state(params, optimizer, jax.random.key(start.seed), method_state=experience.init_state(setting.price))
    key = ("ppo", setting.learning_rate)
    if key not in start.programs:
        start.programs[key] = make_step(online.step, optimizer, state)
    compiled, needed = start.programs[key], [spent.peak_bytes]

    def step(state: TrainState, batch: Batch) -> Any:
        if len(needed) == 1:
            needed.append(peak_bytes(compiled, state, batch) + size_of(start.sft) + size_of(scorer))
        return compiled(state, batch)

    by_prompt = {prompt.tobytes(): each for prompt, each in zip(prompts, start.world.train, strict=True)}

    def golds(trees: Sequence[Tree]) -> float:
        return float(np.mean([start.gold(by_prompt[tree.prompt.tobytes()], tree.completions[0]) for tree in trees]))

    # Every point of the curve is told against the start, so that is measured on eight times the answers.
    keys = [jax.random.fold_in(jax.random.key(start.seed), 10**6 + i) for i in range(8)]
    before = [collect(state.params, i, key).trees for i, key in enumerate(keys)]
    scores = np.mean([tree.extras["scores"] for trees in before for tree in trees])
    curve = Curve([0.0], [float(scores)], [float(np.mean([golds(trees) for trees in before]))])
    tokens, seconds = 0, []
    for done in iterate(
        state,
        collect,
        prepare,
        step,
        packing,
        iterations=setting.iterations,
        weights=online.weights,
        size=size,
        epochs=2,
        num_minibatches=2,
    ):
        state = done.state
        tokens += 2 * sum(map(len, done.trees))
        seconds.append(sum(done.seconds.values()))
        curve.kl.append(done.metrics["objective/kl"])
        curve.proxy.append(done.metrics["objective/scores"])
        curve.gold.append(golds(done.trees))
    took = spent.seconds + float(np.median(seconds)) * setting.iterations  # the first iteration compiles
    return Aligned(state.params["policy"], spent.tokens + tokens, took, 3, max(needed), curve=curve)


def size_of(params: Any) -> int:
    """Bytes."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def best_of_n_arm(start: Start) -> Aligned:
    """The best of n answers by the reward model; no training of the policy."""
    _, _, spent = reward_model(start)
    return dataclasses.replace(spent, params=start.sft, models=2, best_of=start.setting.n)


ARMS: dict[str, Callable[[Start], Aligned]] = {
    "sft": sft_arm,
    "best_of_n": best_of_n_arm,
    "ppo": ppo_arm,
    "dpo": dpo_arm,
    "kto": kto_arm,
    "rlaif_dpo": rlaif_arm,
}
"""By the name in tables, in the order of tables."""
