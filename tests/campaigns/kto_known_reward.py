"""KTO from independent thumbs on a task whose reward is known, over SFT and beside DPO on pairs; several seeds.

A tiny model is fine-tuned on demonstrations and answers prompts of random tokens. The true reward of an answer is the
share of its tokens that are even. Users see it with logistic noise and give one answer to each prompt a thumb, up for
the better half of the answers (50/50), or for all but the worst tenth (90/10). DPO sees that answer and a second one to
the same prompt, and which of the two is better, with noise. Measured: the true reward of sampled answers to held-out
prompts, against the fine-tuned model's answers to the same ones.

    python -m tests.campaigns.kto_known_reward --output runs/kto_known_reward.jsonl --seeds 10

A line of the output is a finished (seed, arm); the same command goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.batches import batches
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.trees import Tree
from jaxalign.loop import OnMesh, StepFn, init_state, make_step, run
from jaxalign.methods import dpo, kto, sft
from jaxalign.models.config import ModelConfig
from jaxalign.models.model import Model
from jaxalign.rollout.generate import generate

VOCABULARY, PROMPT, ANSWER, BETA, NOISE = 16, 4, 6, 0.1, 0.1
OPTIMIZER = optax.adam(3e-3)
ARMS = ("kto 50/50", "kto 90/10", "dpo")
MODEL = Model(
    ModelConfig(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=8,
        tie_word_embeddings=False,
        eos_token_ids=(0,),
    )
)


@dataclasses.dataclass(frozen=True)
class Size:
    """How much a seed costs: steps of fine-tuning and of alignment, their batch, held-out prompts."""

    sft_steps: int = 100
    steps: int = 150
    batch_size: int = 64
    prompts: int = 1000


def gold(answers: np.ndarray) -> np.ndarray:
    """The true reward: the share of even tokens."""
    return np.mean(answers % 2 == 0, axis=-1)


def thumbs(answers: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Up for the given share of answers: those that users, with logistic noise of scale 0.1, find best."""
    seen = gold(answers) + random.logistic(scale=NOISE, size=len(answers))
    return seen > np.quantile(seen, 1 - share)


def sample(params: Any, prompts: np.ndarray, key: Any) -> np.ndarray:
    mask = np.ones(prompts.shape, bool)
    return np.asarray(generate(MODEL, params, prompts, prompt_mask=mask, max_new_tokens=ANSWER, key=key).tokens)


def train(step: StepFn, params: Any, feed: Any, steps: int, frozen: Any = None) -> Any:
    """The trained parameters; ``params`` stay."""
    state = init_state(jax.tree.map(jnp.copy, params), OPTIMIZER, jax.random.key(0))
    step = dataclasses.replace(step, frozen=frozen)
    for state, _ in run(step, state, OnMesh(feed, MODEL.mesh), steps=steps):  # noqa: B007
        pass
    return state.params


class Steps:
    """The compiled step of every arm, made once for all seeds."""

    def __init__(self) -> None:
        self.made: dict[str, StepFn] = {}

    def __call__(self, name: str, method: Any, params: Any, frozen: Any = None) -> StepFn:
        if name not in self.made:
            state = init_state(jax.tree.map(jnp.copy, params), OPTIMIZER, jax.random.key(0))
            self.made[name] = make_step(method, OPTIMIZER, state, frozen=frozen)
        return self.made[name]


def outcomes(seed: int, size: Size, steps: Steps, arms: tuple[str, ...] = ARMS) -> Iterator[dict[str, Any]]:
    """What each arm gains over the fine-tuned model: mean of the true reward, and the z of the gain over prompts."""
    random = np.random.default_rng(seed)
    options: Any = {"batch_size": size.batch_size, "rows_per_microbatch": 16, "seed": seed, "shapes": [(64, 64)]}
    draw = lambda count, length: random.integers(1, VOCABULARY, (count, length))  # noqa: E731
    count = size.steps * size.batch_size
    written = size.sft_steps * size.batch_size
    demonstrations = [
        Tree.of(prompt, [answer]) for prompt, answer in zip(draw(written, PROMPT), draw(written, ANSWER), strict=True)
    ]
    start = MODEL.init(jax.random.key(seed))
    step = steps("sft", sft.sft(MODEL), start)
    tuned = train(step, start, batches(demonstrations, **options), size.sft_steps)

    prompts, held = draw(count, PROMPT), draw(size.prompts, PROMPT)
    key = jax.random.key(1000 + seed)
    first, second = (sample(tuned, prompts, jax.random.fold_in(key, i)) for i in range(2))
    before = gold(sample(tuned, held, jax.random.fold_in(key, 2)))
    for arm in arms:
        noise = np.random.default_rng((seed, ARMS.index(arm)))
        if arm == "dpo":
            better = gold(first) - gold(second) + noise.logistic(scale=NOISE, size=count) > 0
            pairs = np.where(better[:, None, None], np.stack([first, second], 1), np.stack([second, first], 1))
            trees = [Tree.of(prompt, pair) for prompt, pair in zip(prompts, pairs, strict=True)]
            feed: Any = batches(trees, **options)
            method = dpo.dpo(MODEL, beta=BETA)
        else:
            up = thumbs(first, float(arm[4:6]) / 100, noise)
            trees = [Tree.of(p, [a], label=u) for p, a, u in zip(prompts, first, up, strict=True)]
            feed = Mismatched(batches(trees, **options), trees, trees, seed)
            weights = kto.balanced_weights(int(up.sum()), int((~up).sum()))
            method = kto.kto(MODEL, beta=BETA, desirable_weight=weights[0], undesirable_weight=weights[1])
        step = steps(arm, method, tuned, tuned)
        trained = train(step, tuned, feed, size.steps, tuned)
        gain = gold(sample(trained, held, jax.random.fold_in(key, 3))) - before
        z = float(gain.mean() / (gain.std(ddof=1) / math.sqrt(len(gain))))
        yield {"seed": seed, "arm": arm, "sft": float(before.mean()), "reward": float((before + gain).mean()), "z": z}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    found = [json.loads(line) for line in lines]
    done = {(line["seed"], line["arm"]) for line in found}
    steps = Steps()
    with arguments.output.open("a") as file:
        for seed in range(arguments.seeds):
            missing = tuple(arm for arm in ARMS if (seed, arm) not in done)
            for line in outcomes(seed, Size(), steps, missing) if missing else ():
                found.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
    for arm in ARMS:
        gains = np.array([line["reward"] - line["sft"] for line in found if line["arm"] == arm])
        half = 1.96 * gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        least = min((line["z"] for line in found if line["arm"] == arm), default=math.nan)
        print(f"{arm}: true reward {gains.mean():+.3f} ± {half:.3f} over SFT, {len(gains)} seeds, least z {least:.1f}")


if __name__ == "__main__":
    main()
