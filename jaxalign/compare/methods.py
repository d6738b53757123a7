"""The compared methods: functions from the common start to a trained policy, with the same number of annotations."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.compare import labels
from jaxalign.compare.start import Curve, Start, Trained, adam, fit, peak_bytes
from jaxalign.data.batches import attach
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.loop import Batch, TrainState, init_state, make_step
from jaxalign.methods import dpo as dpo_method
from jaxalign.methods import experience, kto, ppo, reward
from jaxalign.methods.collect import Collector, model_scorer
from jaxalign.methods.rollouts import Packing, iterate, make_prepare, update
from jaxalign.models.model import Model
from jaxalign.testbed import learner

# The settings on which the reward model depends.
REWARD_SETTINGS = (*labels.COMPARISON_SETTINGS, "temperature", "steps", "learning_rate")
# Prompts of an iteration of PPO.
PPO_PROMPTS = 64


def reward_model(start: Start) -> tuple[Model, Trained]:
    """Returns the reward model of people's comparisons; all methods that need it share one."""
    return start.cached("reward model", REWARD_SETTINGS, train_reward_model)


def train_reward_model(start: Start) -> tuple[Model, Trained]:
    """Trains a reward model, from the fine-tuned model, on people's comparisons."""
    copied = jax.tree.map(jnp.copy, start.sft)
    model, params = reward.from_language_model(start.model, copied, jax.random.key(start.seed))
    return model, fit(start, "reward", reward.pairs(model), labels.pairs_by_people(start), params=params)


def run_sft(start: Start) -> Trained:
    """Returns the fine-tuned model without further training."""
    return Trained(start.sft, 0, 0.0, 1, 0)


def run_best_of_n(start: Start) -> Trained:
    """Returns the fine-tuned model with best-of-n sampling: the reward model chooses the best of n answers."""
    _, scorer = reward_model(start)
    return dataclasses.replace(scorer, params=start.sft, models=2, best_of=start.setting.n)


def run_dpo(start: Start) -> Trained:
    """Trains with DPO on people's comparisons."""
    return dpo_on(start, labels.pairs_by_people(start))


def run_rlaif_dpo(start: Start) -> Trained:
    """Trains with DPO on the AI judge's verdicts on the same answers."""
    return dpo_on(start, labels.pairs_by_judge(start))


def dpo_on(start: Start, trees: Sequence[Tree]) -> Trained:
    """Trains with DPO on pairs. The reference's log-probs are computed once, so it needs no memory in training."""
    logps = dpo_method.reference_logps(start.model, start.sft, start.batches(trees))
    method = dpo_method.dpo(start.model, beta=start.setting.beta)
    return fit(start, "dpo", method, attach(trees, ref_logps=logps))


def run_kto(start: Start) -> Trained:
    """Trains with KTO on a thumb for one answer of each comparison.

    Raises:
        UserError: If all thumbs are up, or all are down.
    """
    trees = labels.thumbs(start)
    up = sum(bool(tree.extras["label"][0]) for tree in trees)
    if up in (0, len(trees)):
        raise UserError(
            f"{up} of {len(trees)} thumbs are up, and KTO needs both kinds. Change the gold reward at which thumbs "
            "turn (thumbs.reference)."
        )
    weights = kto.balanced_weights(up, len(trees) - up)
    method = kto.kto(start.model, beta=start.setting.beta, desirable_weight=weights[0], undesirable_weight=weights[1])
    return fit(start, ("kto", weights), method, trees, frozen=start.sft, mismatched=True)


def run_ppo(start: Start) -> Trained:
    """Trains with PPO against the reward model, with a value head on the policy."""
    scorer_model, scorer = reward_model(start)
    setting, model = start.setting, start.model
    packing = Packing(model.mesh, learner.ROW_SHAPE, 1, learner.ROWS_PER_MICROBATCH)
    sample = start.sampler(1)

    def gold_scores(trees: Sequence[Tree], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        pairs = zip(trees, rows, strict=True)
        return np.array([start.gold(row["instruction"], tree.completions[0]) for tree, row in pairs])

    collect = Collector(
        lambda params, *rest: sample(params["policy"], *rest),
        # The gold reward has weight 0: it is measured, and PPO does not see it.
        {
            "reward": (1.0, model_scorer(scorer_model, scorer.params, packing.batch, size=PPO_PROMPTS)),
            "gold": (0.0, gold_scores),
        },
        [start.prompt(instruction) for instruction in start.world.train],
        [{"instruction": instruction} for instruction in start.world.train],
        PPO_PROMPTS,
        start.seed,
    )
    method = ppo.ppo(model, value_coefficient=0.5)
    frozen = {"reference": start.sft}
    prepare = make_prepare(method, packing, size=PPO_PROMPTS, length=learner.MAX_ANSWER_TOKENS, frozen=frozen)
    optimizer = adam(setting.learning_rate)
    params = {"policy": jax.tree.map(jnp.copy, start.sft), "value": ppo.value_head(model)}
    state = init_state(params, optimizer, jax.random.key(start.seed), method_state=experience.init_state(setting.price))
    compiled = start.programs.setdefault(("ppo", setting.learning_rate), make_step(method.step, optimizer, state))
    memory = [scorer.peak_bytes]

    def step(state: TrainState, batch: Batch) -> Any:
        if len(memory) == 1:
            others = sum(leaf.nbytes for leaf in jax.tree.leaves((start.sft, scorer.params)))
            memory.append(peak_bytes(compiled, state, batch) + others)
        return compiled(state, batch)

    # All later points are compared with the first one, so it is measured on eight times as many answers.
    keys = [jax.random.fold_in(jax.random.key(start.seed), 10**6 + i) for i in range(8)]
    before = [collect(state.params, i, key) for i, key in enumerate(keys)]
    proxy = np.mean([tree.extras["scores"] for collected in before for tree in collected.trees])
    gold = np.mean([collected.metrics["rewards/gold"] for collected in before])
    curve = Curve([0.0], [float(proxy)], [float(gold)])
    tokens, seconds = 0, []
    batch_update = functools.partial(
        update, step_fn=step, packing=packing, weights=method.weights, size=PPO_PROMPTS, epochs=2, num_minibatches=2
    )
    for iteration in iterate(state, collect, prepare, batch_update, iterations=setting.iterations):
        state = iteration.state
        tokens += 2 * sum(map(len, iteration.trees))
        seconds.append(sum(iteration.seconds.values()))
        curve.kl.append(iteration.metrics["objective/kl"])
        curve.proxy.append(iteration.metrics["objective/scores"])
        curve.gold.append(iteration.metrics["rewards/gold"])
    # The median, because the first iteration compiles.
    total = scorer.seconds + float(np.median(seconds)) * setting.iterations
    return Trained(state.params["policy"], scorer.tokens + tokens, total, 3, max(memory), curve=curve)


# The methods by name, in the order of tables.
METHODS: dict[str, Callable[[Start], Trained]] = {
    "sft": run_sft,
    "best_of_n": run_best_of_n,
    "ppo": run_ppo,
    "dpo": run_dpo,
    "kto": run_kto,
    "rlaif_dpo": run_rlaif_dpo,
}
