"""jaxalign's side of the DPO step benchmark: the parts of `jaxalign dpo`, timed around `step_fn`.

dpo_step.py starts it in its own process. Reading, tokenisation and packing use the package's defaults. Transcripts
get no chat template, because TRL tokenises plain text too.
"""

from __future__ import annotations

from importlib.metadata import version

import jax
import jax.numpy as jnp
from dpo_step_common import (
    ADAMW,
    BETA,
    MAX_LENGTH,
    METRICS,
    PAIRS,
    STEPS,
    Measurement,
    Stopwatch,
    side_arguments,
    write_measurement,
)

import jaxalign
from jaxalign import loop, optim
from jaxalign.data.batches import batches
from jaxalign.data.kinds import Preference
from jaxalign.data.records import read_records
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.methods.dpo import dpo


def main() -> None:
    options = side_arguments()
    records = read_records(Preference, options.data, on_error="skip")[0][:PAIRS]
    tokenizer = jaxalign.load_tokenizer(options.gguf)
    trees, report = tokenize_completions(records, tokenizer, max_length=MAX_LENGTH, template="never")
    print(f"jaxalign: {report}", flush=True)
    data = batches(trees, batch_size=PAIRS)

    model, params = jaxalign.load_model(options.gguf)
    reference = jax.tree.map(jnp.copy, params)  # the step donates its parameters
    optimizer, _ = optim.make_optimizer(optim.OptimConfig(schedule="constant", warmup_ratio=0.0, **ADAMW), STEPS)
    state = loop.init_state(params, optimizer, jax.random.key(0))
    del params
    step_fn = loop.make_step(dpo(model, beta=BETA), optimizer, state, frozen=reference)

    stopwatch, metrics = Stopwatch(), []
    for step in range(STEPS):
        packed = data[step]
        stopwatch.start()
        state, reported = jax.block_until_ready(step_fn(state, loop.place_batch(packed.rows, packed.used, model.mesh)))
        stopwatch.stop()
        metrics.append({name: float(reported[name]) for name in METRICS})

    pairs = [(tree.prompt.tolist(), *(answer.tolist() for answer in tree.completions)) for tree in trees]
    side = f"jaxalign {jaxalign.__version__}, jax {version('jax')}, remat {model.remat}"
    write_measurement(
        Measurement(side, **stopwatch.results(), positions=packed.positions, pairs=pairs, metrics=metrics), options.out
    )


if __name__ == "__main__":
    main()
