"""The known-reward campaign: every online method, five seeds, resumable.

    PYTHONPATH=. python tests/campaigns/online.py runs/online_campaign.jsonl [method ...]

A line is written for each (method, seed) when it is done, and those that are there are not run again; the summary says
by how much each method raises the true reward over the model it starts from, with a 95 % t-interval over seeds, at
which KL, and how near the adaptive controller comes to its target in the second half of the run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from tests.methods import online_task as task

ITERATIONS, SEEDS, TARGET = 40, 5, 1.0
METHODS = {name: (name, {}) for name in task.SETTINGS} | {"ppo_adaptive": ("ppo", {"target": TARGET})}
T_4 = 2.776  # 97.5 % of Student's t with four degrees of freedom


def one(method: str, seed: int, iterations: int = ITERATIONS) -> dict:
    """A run, and what it came to."""
    name, options = METHODS[method]
    started = time.perf_counter()
    reference = task.MODEL.init(jax.random.key(seed))
    kls, phases = [], []
    for done in task.run(name, seed, iterations, **options):
        kls.append(done.metrics.get("objective/kl", 0.0))
        phases.append(done.seconds)
    before, _ = task.evaluate(reference, reference, seed)
    after, kl = task.evaluate(task.policy_of(name, done.state.params), reference, seed)
    half = np.mean(kls[len(kls) // 2 :])
    return {
        "method": method,
        "seed": seed,
        "before": before,
        "after": after,
        "kl": kl,
        "kl_second_half": float(half),
        "seconds": time.perf_counter() - started,
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % interval, of five values."""
    return float(np.mean(values)), float(T_4 * np.std(values, ddof=1) / np.sqrt(len(values)))


def summarise(lines: list[dict]) -> None:
    for method in METHODS:
        mine = [line for line in lines if line["method"] == method]
        if len(mine) < SEEDS:
            continue
        gain, half = interval([line["after"] - line["before"] for line in mine])
        kls = [line["kl"] for line in mine]
        before, after, second, seconds = (
            np.mean([line[name] for line in mine]) for name in ("before", "after", "kl_second_half", "seconds")
        )
        print(
            f"{method:<13} reward {before:.3f} → {after:.3f}, gain {gain:.3f} ± {half:.3f}, "
            f"KL {min(kls):.2f} to {max(kls):.2f}, in the second half {second:.3f}, {seconds:.0f} s"
        )


def main(file: str, *methods: str) -> None:
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(line["method"], line["seed"]) for line in lines}
    for method in methods or METHODS:
        for seed in range(SEEDS):
            if (method, seed) not in done:
                lines.append(one(method, seed))
                with path.open("a") as out:
                    out.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    summarise(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
