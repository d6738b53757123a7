"""A run stopped at any step and resumed is bitwise the uninterrupted one; donation and evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.checkpoint import Checkpoints
from jaxalign.data.batches import attach, evaluation_batches
from jaxalign.data.trees import pack
from jaxalign.loop import OnMesh, init_state, make_eval, make_step, place_batch, run
from jaxalign.methods import dpo
from jaxalign.models.model import Model
from tests.test_tree_forward import random_trees

STEPS = 5


class Batches:
    """Batches drawn by step alone."""

    def __init__(self, mesh):
        self.mesh = mesh

    def __len__(self):
        return STEPS

    def __getitem__(self, step):
        return place_batch(*pack(random_trees(4, seed=step), row_lengths=(64,)), self.mesh)


@pytest.fixture(scope="module")
def parts(tiny_config):
    model = Model(tiny_config)
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-2, STEPS))
    reference = model.init(jax.random.key(0))

    def fresh():
        return init_state(jax.tree.map(jnp.copy, reference), optimizer, jax.random.key(7))

    step = make_step(dpo.dpo(model, beta=0.1), optimizer, fresh(), frozen=reference)
    return model, fresh, step, reference


def as_numpy(state):
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), state)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resume_is_bitwise(parts, tmp_path, stop):
    model, fresh, step, _ = parts
    batches = Batches(model.mesh)
    whole, metrics = [], []
    for state, measured in run(step, fresh(), batches):
        metrics.append(jax.device_get(measured))
        whole.append(as_numpy(state))

    with Checkpoints(tmp_path) as checkpoints:
        for _ in run(step, fresh(), batches, steps=stop, checkpoints=checkpoints, every=1):
            pass
    with Checkpoints(tmp_path) as checkpoints:
        start, position = checkpoints.restore(fresh())
        assert position == stop == int(start.step)
        jax.tree.map(np.testing.assert_array_equal, as_numpy(start), whole[stop - 1])
        seen = stop
        for state, measured in run(step, start, batches):
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(measured), metrics[seen])
            jax.tree.map(np.testing.assert_array_equal, as_numpy(state), whole[seen])
            seen += 1
    assert seen == STEPS


def test_checkpoints_hold_what_the_state_was_though_the_next_step_reuses_its_buffers(parts, tmp_path):
    model, fresh, step, _ = parts
    saved = {}
    with Checkpoints(tmp_path, keep=STEPS) as checkpoints:
        for state, _ in run(step, fresh(), Batches(model.mesh), checkpoints=checkpoints, every=1):
            saved[int(state.step)] = as_numpy(state)
    with Checkpoints(tmp_path, keep=STEPS) as checkpoints:
        for number, want in saved.items():
            jax.tree.map(np.testing.assert_array_equal, as_numpy(checkpoints.restore(fresh(), step=number)[0]), want)


def test_the_state_is_donated_and_what_the_caller_holds_is_not(parts):
    model, fresh, step, reference = parts
    key = jax.random.key(3)
    state = dataclasses.replace(init_state(fresh().params, optax.sgd(0.1), key), opt_state=fresh().opt_state)
    step(state, Batches(model.mesh)[0])
    assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(reference))
    assert not key.is_deleted()


def test_a_run_compiles_one_program_whatever_the_fill(parts):
    model, fresh, step, _ = parts
    state = fresh()
    before = step.jitted._cache_size()
    for seed in range(3):
        trees = random_trees(4, seed=seed, longest=5 + 5 * seed)
        state, _ = step(state, place_batch(*pack(trees, shapes=[(64, 64)]), model.mesh))
    assert step.jitted._cache_size() - before <= 1, "by itself exactly one; after other tests maybe none"


def test_evaluation_does_not_depend_on_how_examples_are_batched(parts):
    model, _, _, reference = parts
    policy = jax.tree.map(lambda p: p * 1.1, reference)
    evaluate = make_eval(dpo.dpo(model, beta=0.1), frozen=reference)
    trees = random_trees(7)

    def cut(size):
        pieces = [trees[i : i + size] for i in range(0, 7, size)]
        return [place_batch(*pack(piece, row_lengths=(64,), max_microbatches=7), model.mesh) for piece in pieces]

    whole, parts_ = evaluate(policy, (), cut(7)), evaluate(policy, (), cut(3))
    assert whole.keys() == parts_.keys()
    for name in whole:
        np.testing.assert_allclose(whole[name], parts_[name], rtol=1e-5)
    assert 0 < whole["loss"] != np.log(2)


def test_cached_reference_is_the_live_one(parts, tiny_config):
    model, _, _, reference = parts
    trees = random_trees(6)
    evaluated = evaluation_batches(trees, batch_size=4, shapes=[(64, 64)])
    cached = attach(trees, ref_logps=dpo.reference_logps(model, reference, OnMesh(evaluated, model.mesh)))
    policy = jax.tree.map(lambda p: p * 1.1, reference)
    live = make_eval(dpo.dpo(model, beta=0.1), frozen=reference)(policy, (), OnMesh(evaluated, model.mesh))
    again = make_eval(dpo.dpo(model, beta=0.1))(
        policy, (), OnMesh(evaluation_batches(cached, batch_size=3, shapes=[(64, 64)]), model.mesh)
    )
    for name in live:
        np.testing.assert_allclose(live[name], again[name], rtol=1e-5)
