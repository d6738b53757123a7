"""RLAIF with a known reward: a good judge's labels come near human labels, and a biased judge passes its bias on.

A tiny policy samples two answers to each prompt. Humans, a good judge and a biased judge label them, and DPO trains on
each set of labels from the same start. The results are the known reward and the length of the trained policies'
answers.

    python -m tests.campaigns.rlaif --seeds 8 --output rlaif.jsonl

Every line of the file is a finished run. Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import jaxalign
from jaxalign.data.batches import attach, batches, evaluation_batches
from jaxalign.data.trees import Tree
from jaxalign.judges import Item, JudgingTask, Rater, Reply, judge_items, label_rows, pairwise_report, verbosity_bias
from jaxalign.judges.hashing import uniform_hash
from jaxalign.loop import OnMesh, init_state, make_step, run
from jaxalign.methods import dpo
from jaxalign.models.config import ModelConfig
from jaxalign.models.model import Model

EOS, VOCABULARY, LONGEST = 2, 16, 12
LABELLERS = ("human", "good judge", "biased judge")


@dataclasses.dataclass(frozen=True)
class Size:
    """Numbers of prompts to label, prompts to evaluate on, optimiser steps, and pairs per step."""

    prompts: int = 1024
    held: int = 512
    steps: int = 100
    batch_size: int = 64
    learning_rate: float = 2e-3


CONFIG = ModelConfig(
    "llama",
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=8,
    tie_word_embeddings=True,
    eos_token_ids=(EOS,),
)


def gold(answer: np.ndarray) -> float:
    """Returns the known reward: the share of even tokens, without the end of sequence."""
    tokens = answer[answer != EOS]
    return float(np.mean(tokens % 2 == 0)) if len(tokens) else 0.5


def length(answer: np.ndarray) -> int:
    """Returns the number of tokens, without the end of sequence."""
    return int(np.sum(answer != EOS))


def sample(model: Model, params: Any, prompts: np.ndarray, number: int, key: jax.Array) -> list[list[np.ndarray]]:
    """Samples answers to each prompt, with the end of sequence."""
    out = jaxalign.generate(
        model,
        params,
        prompts,
        prompt_mask=np.ones_like(prompts, bool),
        max_new_tokens=LONGEST,
        key=key,
        eos_id=EOS,
        num_completions=number,
    )
    tokens, mask = np.asarray(out.tokens), np.asarray(out.mask)
    flat = [ids[real] for ids, real in zip(tokens, mask, strict=True)]
    return [flat[i : i + number] for i in range(0, len(flat), number)]


def text(ids: np.ndarray) -> str:
    """Returns the token ids as words."""
    return " ".join(f"w{i}" for i in ids)


def read(words: str) -> np.ndarray:
    """Returns the token ids of a text."""
    return np.array([int(word[1:]) for word in words.split()], int)


def judge(score: Callable[[np.ndarray], float], seed: int, *, lapses: float = 0.1) -> Callable[..., list[Reply]]:
    """Makes a judge that prefers the answer of the higher score, except for a random share of lapses."""

    def ask(questions: Any) -> list[Reply]:
        replies = []
        for question in questions:
            content = question[0]["content"]
            shown = [content.split(f"<response_{s}>")[1].split("</response_")[0] for s in "ab"]
            one, two = (score(read(words)) for words in shown)
            if uniform_hash(seed, content) < lapses:
                one, two = uniform_hash(seed, "one", content), uniform_hash(seed, "two", content)
            replies.append(Reply("Verdict: tie" if one == two else f"Verdict: {'A' if one > two else 'B'}"))
        return replies

    return ask


def judges(seed: int) -> dict[str, Callable[..., list[Reply]]]:
    """Makes both judges: the good one scores the known reward, and the biased one adds the length to it."""
    return {
        "good judge": judge(gold, seed),
        "biased judge": judge(lambda ids: gold(ids) + 0.15 * length(ids), seed),
    }


def human_label(pair: list[np.ndarray], seed: int, *, mistakes: float = 0.1) -> str:
    """Returns which answer of a pair is better by the known reward, except for a random share of mistakes."""
    one, two = map(gold, pair)
    if one == two:
        return "tie"
    right = uniform_hash(seed, "human", text(pair[0]), text(pair[1])) >= mistakes
    return "first" if (one > two) == right else "second"


def label(who: str, prompts: np.ndarray, pairs: list[list[np.ndarray]], seed: int) -> tuple[list[Tree], dict[str, Any]]:
    """Returns trees to train on, with the chosen answer first, and the audit of the labels."""
    human = [human_label(pair, seed) for pair in pairs]
    different = [i for i, (a, b) in enumerate(pairs) if length(a) and length(b) and not np.array_equal(a, b)]
    if who == "human":
        chosen = {i: human[i] for i in different if human[i] != "tie"}
        trees = [Tree.of(prompts[i], pairs[i] if side == "first" else pairs[i][::-1]) for i, side in chosen.items()]
        return trees, {}
    items = [Item.of(text(prompts[i]), *map(text, pairs[i])) for i in different]
    lines = judge_items(Rater.of(who, judges(seed)[who]), items, JudgingTask())
    rows, _ = label_rows(items, [[line] for line in lines], "preference")
    trees = [Tree.of(read(row["prompt"]), [read(row["chosen"]), read(row["rejected"])]) for row in rows]
    truth = [human[i] for i in different]
    report = pairwise_report([line["first_order"] for line in lines], [line["second_order"] for line in lines], truth)
    longer = [length(pairs[i][0]) - length(pairs[i][1]) for i in different]
    verbosity = verbosity_bias([line["winner"] for line in lines], longer, truth)
    return trees, {
        "agreement": report.agreement,
        "consistency": report.consistency,
        "verbosity_excess": verbosity.excess,
        "verbosity_excess_ci": verbosity.excess_ci,
    }


def run_labellers(seeds: range, size: Size, done: set[tuple[int, str]] = frozenset()) -> Iterator[dict[str, Any]]:  # type: ignore[assignment]
    """Yields one result for each seed and labeller. ``"start"`` is the policy before training."""
    model = Model(CONFIG)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(size.learning_rate, weight_decay=0.0))
    method, step = dpo.dpo(model, beta=0.1), None
    options: dict[str, Any] = {"batch_size": size.batch_size, "shapes": [(128, 112)], "rows_per_microbatch": 8}
    for seed in seeds:
        if all((seed, who) in done for who in ("start", *LABELLERS)):
            continue
        random = np.random.default_rng(seed)
        prompts, held = (random.integers(3, VOCABULARY, (count, 3)) for count in (size.prompts, size.held))
        params = model.init(jax.random.key(seed))
        pairs = sample(model, params, prompts, 2, jax.random.fold_in(jax.random.key(seed), 1))
        for who in ("start", *LABELLERS):
            if (seed, who) in done:
                continue
            trained, facts = params, {}
            if who != "start":
                trees, facts = label(who, prompts, pairs, seed)
                facts["pairs"] = len(trees)
                data = OnMesh(evaluation_batches(trees, **options), model.mesh)
                trees = attach(trees, ref_logps=dpo.reference_logps(model, params, data))
                state = init_state(jax.tree.map(lambda leaf: leaf.copy(), params), optimizer, jax.random.key(seed))
                step = step or make_step(method, optimizer, state)
                train = OnMesh(batches(trees, seed=seed, **options), model.mesh)
                for state, _ in run(step, state, train, steps=size.steps):  # noqa: B007
                    pass
                trained = state.params
            written = [a for (a,) in sample(model, trained, held, 1, jax.random.fold_in(jax.random.key(seed), 2))]
            reward, tokens = float(np.mean([*map(gold, written)])), float(np.mean([*map(length, written)]))
            yield {"seed": seed, "labels": who, "reward": reward, "length": tokens, **facts}


def summary(results: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns the mean over seeds and its standard error, for each measure and labeller."""
    measures: dict[str, dict[str, tuple[float, float]]] = {}
    for who in ("start", *LABELLERS):
        runs = [result for result in results if result["labels"] == who]
        for name in ("reward", "length"):
            values = np.array([result[name] for result in runs])
            error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            measures.setdefault(who, {})[name] = float(values.mean()), float(error)
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("rlaif.jsonl"))
    options = parser.parse_args()
    content = options.output.read_text() if options.output.exists() else ""
    whole = content[: content.rfind("\n") + 1]  # a kill may have cut the last line
    if whole != content:
        options.output.write_text(whole)
    results = [json.loads(line) for line in whole.splitlines()]
    done = {(result["seed"], result["labels"]) for result in results}
    for result in run_labellers(range(options.seeds), Size(), done):
        results.append(result)
        with options.output.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)
    for who, measures in summary(results).items():
        shown = ", ".join(f"{name} {mean:.3f} ± {error:.3f}" for name, (mean, error) in measures.items())
        print(f"{who:>13}: {shown}")


if __name__ == "__main__":
    main()
