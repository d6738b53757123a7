"""Two processes, one device each, train as one process with two devices does: same order, same batches, same losses."""

import json
import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.thorough
SCRIPT = """
import json, sys
import jax

place, count, port = map(int, sys.argv[1:])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, place)
import jax.numpy as jnp
import numpy as np
import optax
from jaxalign import Model, loop, make_mesh
from jaxalign.data.batches import batches
from jaxalign.data.mismatched import Mismatched
from jaxalign.data.trees import Tree
from jaxalign.methods import kto
from jaxalign.models.config import ModelConfig

config = ModelConfig(
    "llama", vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, head_dim=8, tie_word_embeddings=True,
)
model = Model(config, mesh=make_mesh(data=2, fsdp=1, tensor=1))
params = model.init(jax.random.key(0))
random = np.random.default_rng(0)
trees = [Tree.of([i, i + 1], [random.integers(3, 60, 4)], label=bool(i % 2)) for i in range(3, 40)]
drawn = batches(trees, batch_size=8, seed=0, rows_per_microbatch=2, shapes=[(32, 32)])
placed = loop.OnMesh(Mismatched(drawn, trees, trees, 0), model.mesh)
reference = jax.tree.map(jnp.copy, params)
optimizer = optax.adam(1e-2)
state = loop.init_state(params, optimizer, jax.random.key(1))
step = loop.make_step(kto.kto(model, beta=0.5), optimizer, state, frozen=reference)
lines = []
for state, metrics in loop.run(step, state, placed, steps=8):
    lines.append({name: float(value) for name, value in metrics.items()})
print(json.dumps([jax.process_count(), lines]))
"""


def start(place, count, port, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", SCRIPT, str(place), str(count), str(port)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def test_two_processes_train_as_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(place, 2, port, 1) for place in (0, 1)]
    (count, first), (_, second) = map(outcome, both)
    assert count == 2
    assert first == second, "every process reports the same"
    _, alone = outcome(start(0, 1, port, 2))
    assert len(alone) == 8
    assert alone[-1]["loss"] != alone[0]["loss"]
    for joint, single in zip(first, alone, strict=True):
        assert joint == pytest.approx(single, rel=2e-5, abs=1e-6)
