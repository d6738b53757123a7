"""The known-reward campaign: every online method, five seeds, resumable.

    PYTHONPATH=. python tests/campaigns/online.py runs/online_campaign.jsonl [method ...]

Every finished (method, seed) is a line of the file, and is not run again. The summary reports how much each method
raises the true reward over the model it starts from, with a 95% t-interval over seeds, and its KL. For the adaptive
controller, compare the KL in the second half of the run with the target.
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

from jaxalign.stats import student
from tests.methods import online_task as task

ITERATIONS, SEEDS, TARGET = 40, 5, 1.0
METHODS = {name: (name, {}) for name in task.SETTINGS} | {"ppo_adaptive": ("ppo", {"target": TARGET})}


def run_method(method: str, seed: int, iterations: int = ITERATIONS) -> dict:
    """Runs a method, and returns the true reward before and after, and the KL."""
    name, options = METHODS[method]
    started = time.perf_counter()
    reference = task.MODEL.init(jax.random.key(seed))
    kls = []
    for iteration in task.run(name, seed, iterations, **options):
        kls.append(iteration.metrics.get("objective/kl", 0.0))
    before, _ = task.evaluate(reference, reference, seed)
    after, kl = task.evaluate(task.policy_of(name, iteration.state.params), reference, seed)
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


def summarise(lines: list[dict]) -> None:
    """Prints the means over seeds of every method whose seeds are all done."""
    for method in METHODS:
        runs = [line for line in lines if line["method"] == method]
        if len(runs) < SEEDS:
            continue
        gain, _, high = student(np.array([line["after"] - line["before"] for line in runs]))
        kls = [line["kl"] for line in runs]
        before, after, second, seconds = (
            np.mean([line[name] for line in runs]) for name in ("before", "after", "kl_second_half", "seconds")
        )
        print(
            f"{method:<13} reward {before:.3f} → {after:.3f}, gain {gain:.3f} ± {high - gain:.3f}, "
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
                lines.append(run_method(method, seed))
                with path.open("a") as out:
                    out.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    summarise(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
