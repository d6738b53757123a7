"""KTO from independent thumbs on a task whose reward is known, compared with SFT and with DPO on pairs.

A tiny model is fine-tuned on demonstrations and answers prompts of random tokens. The true reward of an answer is the
share of its tokens that are even. Users see it with logistic noise, and rate one answer to each prompt: up for the
better half of the answers (50/50), or for all but the worst tenth (90/10). DPO sees that answer and a second one to
the same prompt, and which of both is better, with noise. The result is the true reward of sampled answers to held-out
prompts, compared with the fine-tuned model's answers to the same prompts.

    python -m tests.campaigns.kto_known_reward --output runs/kto_known_reward.jsonl --seeds 10

Every finished (seed, method) is a line of the output; its key for the method is "arm". Rerun the same command to
resume.
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
METHODS = ("kto 50/50", "kto 90/10", "dpo")
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
    """Steps of fine-tuning and of alignment, their batch size, and the number of held-out prompts."""

    sft_steps: int = 100
    steps: int = 150
    batch_size: int = 64
    prompts: int = 1000


def gold(answers: np.ndarray) -> np.ndarray:
    """Returns the true reward: the share of even tokens."""
    return np.mean(answers % 2 == 0, axis=-1)


def thumbs(answers: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Returns a thumb for each answer: up for the given share, which users with logistic noise find best."""
    seen = gold(answers) + random.logistic(scale=NOISE, size=len(answers))
    return seen > np.quantile(seen, 1 - share)


def sample(params: Any, prompts: np.ndarray, key: Any) -> np.ndarray:
    """Samples an answer to each prompt."""
    mask = np.ones(prompts.shape, bool)
    return np.asarray(generate(MODEL, params, prompts, prompt_mask=mask, max_new_tokens=ANSWER, key=key).tokens)


def train(step: StepFn, params: Any, data: Any, steps: int, frozen: Any = None) -> Any:
    """Returns the trained parameters; ``params`` are not changed."""
    state = init_state(jax.tree.map(jnp.copy, params), OPTIMIZER, jax.random.key(0))
    step = dataclasses.replace(step, frozen=frozen)
    for state, _ in run(step, state, OnMesh(data, MODEL.mesh), steps=steps):  # noqa: B007
        pass
    return state.params


class Steps:
    """The compiled step of every method, shared by all seeds."""

    def __init__(self) -> None:
        self.compiled: dict[str, StepFn] = {}

    def __call__(self, name: str, method: Any, params: Any, frozen: Any = None) -> StepFn:
        if name not in self.compiled:
            state = init_state(jax.tree.map(jnp.copy, params), OPTIMIZER, jax.random.key(0))
            self.compiled[name] = make_step(method, OPTIMIZER, state, frozen=frozen)
        return self.compiled[name]


def run_methods(seed: int, size: Size, steps: Steps, names: tuple[str, ...] = METHODS) -> Iterator[dict[str, Any]]:
    """Yields each method's mean true reward, the fine-tuned model's, and the z of the gain over prompts."""
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
    for name in names:
        noise = np.random.default_rng((seed, METHODS.index(name)))
        if name == "dpo":
            better = gold(first) - gold(second) + noise.logistic(scale=NOISE, size=count) > 0
            pairs = np.where(better[:, None, None], np.stack([first, second], 1), np.stack([second, first], 1))
            trees = [Tree.of(prompt, pair) for prompt, pair in zip(prompts, pairs, strict=True)]
            data: Any = batches(trees, **options)
            method = dpo.dpo(MODEL, beta=BETA)
        else:
            up = thumbs(first, float(name[4:6]) / 100, noise)
            trees = [Tree.of(p, [a], label=u) for p, a, u in zip(prompts, first, up, strict=True)]
            data = Mismatched(batches(trees, **options), trees, trees, seed)
            weights = kto.balanced_weights(int(up.sum()), int((~up).sum()))
            method = kto.kto(MODEL, beta=BETA, desirable_weight=weights[0], undesirable_weight=weights[1])
        step = steps(name, method, tuned, tuned)
        trained = train(step, tuned, data, size.steps, tuned)
        gain = gold(sample(trained, held, jax.random.fold_in(key, 3))) - before
        z = float(gain.mean() / (gain.std(ddof=1) / math.sqrt(len(gain))))
        yield {"seed": seed, "arm": name, "sft": float(before.mean()), "reward": float((before + gain).mean()), "z": z}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    results = [json.loads(line) for line in lines]
    done = {(result["seed"], result["arm"]) for result in results}
    steps = Steps()
    with arguments.output.open("a") as file:
        for seed in range(arguments.seeds):
            missing = tuple(name for name in METHODS if (seed, name) not in done)
            for result in run_methods(seed, Size(), steps, missing) if missing else ():
                results.append(result)
                file.write(json.dumps(result) + "\n")
                file.flush()
    for name in METHODS:
        runs = [result for result in results if result["arm"] == name]
        gains = np.array([result["reward"] - result["sft"] for result in runs])
        half = 1.96 * gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
        z = min((result["z"] for result in runs), default=math.nan)
        print(f"{name}: true reward {gains.mean():+.3f} ± {half:.3f} over SFT, {len(gains)} seeds, smallest z {z:.1f}")


if __name__ == "__main__":
    main()
