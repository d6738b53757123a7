"""Reward models: losses against a plain transcription, ensembles, rankings, files; and a task with known rewards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxalign
from jaxalign.data.batches import attach, evaluation_batches
from jaxalign.data.trees import Tree, pack
from jaxalign.errors import UserError
from jaxalign.loop import OnMesh, gradients, make_eval, place_batch
from jaxalign.methods import reward
from jaxalign.models.config import from_hf_config, to_hf_config
from jaxalign.models.model import Model
from tests.test_tree_forward import random_trees


@pytest.fixture(scope="module")
def trunk(tiny_config):
    model = Model(tiny_config)
    return model, model.init(jax.random.key(0))


def scorer(trunk, heads=1):
    return reward.from_language_model(*trunk, jax.random.key(3), heads=heads)


def plain_scores(model, params, trees):
    """Every completion by itself, behind its prompt: the state of its last token times the heads; float64 product."""
    kernel = np.asarray(params["score"]["kernel"], np.float64)
    scores = []
    for tree in trees:
        states = []
        for completion in tree.completions:
            rows = pack([Tree.of(tree.prompt, [completion])], shapes=[(64, 64)]).rows
            rows = jax.tree.map(lambda x: jnp.asarray(x[0]), rows)
            length = len(tree.prompt) + len(completion)
            states.append(np.asarray(model.encode(params, rows)[0, length - 1], np.float64))
        scores.append(np.stack(states) @ kernel)
    return scores


def log_sigmoid(x):
    return -np.logaddexp(0, -x)


@pytest.mark.parametrize("rows", [1, 3])
def test_bradley_terry_with_margin_and_centring(trunk, rows):
    model, params = scorer(trunk)
    margins = [0.0, 0.5, 1.0, 2.0, 0.25]
    trees = attach(random_trees(5), margin=margins)
    scores = np.stack(plain_scores(model, params, trees))[..., 0]
    delta = scores[:, 0] - scores[:, 1]
    want = np.mean(-log_sigmoid(delta - np.array(margins)) + 0.01 * (scores[:, 0] + scores[:, 1]) ** 2)
    batch = place_batch(*pack(trees, shapes=[(64, 64)], rows_per_microbatch=rows), model.mesh)
    method = reward.pairs(model, centering=0.01)
    (loss, metrics), _, _ = jax.jit(lambda b: gradients(method, params, None, (), b))(batch)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert metrics["rewards/accuracies"][1] == 5
    np.testing.assert_allclose(metrics["rewards/accuracies"][0], np.sum(delta > 0))
    np.testing.assert_allclose(metrics["rewards/brier"][0], np.sum((1 - 1 / (1 + np.exp(-delta))) ** 2), rtol=1e-4)


@pytest.mark.thorough
def test_gradient_does_not_depend_on_the_cut(trunk):
    model, params = scorer(trunk, heads=3)
    trees = attach(random_trees(8), index=np.arange(8))
    run = jax.jit(lambda b: gradients(reward.pairs(model), params, None, (), b)[1])
    one = run(place_batch(*pack(trees, shapes=[(512, 512)]), model.mesh))
    for rows in (1, 2, 4):
        other = run(place_batch(*pack(trees, shapes=[(64, 64)], rows_per_microbatch=rows), model.mesh))
        difference = optax.tree.norm(jax.tree.map(jnp.subtract, one, other))
        assert difference <= 1e-5 * optax.tree.norm(one)


def test_rankings_of_different_lengths(trunk):
    model, params = scorer(trunk)
    random = np.random.default_rng(1)
    text = lambda: random.integers(3, 96, random.integers(1, 6))  # noqa: E731
    trees = [Tree.of(text(), [text() for _ in range(k)]) for k in (2, 4, 3)]
    scores = [s[:, 0] for s in plain_scores(model, params, trees)]
    brute = [-sum(s[k] - np.log(np.sum(np.exp(s[k:]))) for k in range(len(s))) for s in scores]
    batch = place_batch(*pack(trees, shapes=[(64, 64)]), model.mesh)
    (loss, metrics), _, _ = jax.jit(lambda b: gradients(reward.rankings(model), params, None, (), b))(batch)
    np.testing.assert_allclose(loss, np.mean(brute), rtol=1e-5)
    ordered = [s[i] > s[j] for s in scores for i in range(len(s)) for j in range(i + 1, len(s))]
    assert tuple(map(float, metrics["rewards/concordance"])) == (sum(ordered), len(ordered))
    np.testing.assert_allclose(metrics["rewards/mean"][0] / 9, np.concatenate(scores).mean(), rtol=1e-4)
    # Of two completions it is Bradley-Terry.
    batch = place_batch(*pack(random_trees(4), shapes=[(64, 64)]), model.mesh)
    value = lambda method: jax.jit(lambda b: gradients(method, params, None, (), b)[0][0])(batch)  # noqa: E731
    np.testing.assert_allclose(value(reward.rankings(model)), value(reward.pairs(model)), rtol=1e-6)


def test_heads_see_bootstrap_samples_of_their_own(trunk):
    index = jnp.arange(20000)
    weights = np.asarray(reward.bootstrap_weights(index, 3, 0))
    # Poisson(1): mean and variance 1; standard errors 0.007 and 0.012.
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.03)
    np.testing.assert_allclose(weights.var(0), 1, atol=0.05)
    assert abs(np.corrcoef(weights.T)[np.triu_indices(3, 1)]).max() < 0.03
    np.testing.assert_array_equal(weights[5:7], reward.bootstrap_weights(jnp.array([5, 6]), 3, 0))
    assert np.any(weights != np.asarray(reward.bootstrap_weights(index, 3, 1)))
    model, params = scorer(trunk, heads=3)
    trees = attach(random_trees(4), index=np.arange(4))
    batch = place_batch(*pack(trees, shapes=[(64, 64)]), model.mesh)
    (loss, metrics), grads, _ = jax.jit(lambda b: gradients(reward.pairs(model), params, None, (), b))(batch)
    scores = np.stack(plain_scores(model, params, trees))
    per_head = -log_sigmoid(scores[:, 0] - scores[:, 1])
    np.testing.assert_allclose(loss, np.mean(per_head * weights[:4]), rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/uncertainty"][0], np.sum(scores.std(-1)), rtol=1e-4)
    assert metrics["rewards/uncertainty"][1] == 8
    assert grads["score"]["kernel"].shape == (32, 3)
    # What evaluation reports has no bootstrap in it.
    evaluated = make_eval(reward.pairs(model))(params, (), [batch])
    np.testing.assert_allclose(evaluated["loss"], np.mean(per_head), rtol=1e-5)


def test_scores_come_in_the_order_of_the_examples(trunk):
    model, params = scorer(trunk, heads=2)
    trees = random_trees(5)
    on_mesh = OnMesh(evaluation_batches(trees, batch_size=2, shapes=[(64, 64)]), model.mesh)
    got = reward.completion_scores(model, params, on_mesh)
    np.testing.assert_allclose(got, np.stack(plain_scores(model, params, trees)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_saved_and_loaded_again(trunk, tmp_path, heads):
    model, params = scorer(trunk, heads)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, pad_token_id=0))
    jaxalign.save_model(tmp_path / "r", model, params)
    again, loaded = jaxalign.load_model(tmp_path / "r")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert from_hf_config(to_hf_config(model.config)) == model.config


def test_padding_never_is_the_end_token(trunk, tmp_path):
    model, params = scorer(trunk)
    with pytest.raises(UserError, match="padding token must not be its end token"):
        jaxalign.save_model(tmp_path / "r", model, params)
    assert not (tmp_path / "r").exists()


def test_a_reward_model_has_no_language_model_head(trunk):
    model, params = scorer(trunk)
    with pytest.raises(UserError, match="no language-model head"):
        model.logits(params, jnp.ones((1, 3), jnp.int32))
    with pytest.raises(ValueError, match="has no scalar heads"):
        reward.pairs(trunk[0])


def test_batches_that_do_not_fit_are_refused(trunk):
    model, params = scorer(trunk, heads=2)
    trees = [Tree.of([3], [[4], [5], [6]])]
    bare, indexed = (place_batch(*pack(t, shapes=[(64, 64)]), model.mesh) for t in (trees, attach(trees, index=[0])))
    for method, batch, words in (
        (reward.pairs(model), indexed, "needs trees of 2 completions, got 3"),
        (reward.rankings(model), bare, "needs the index of its examples"),
    ):
        with pytest.raises(ValueError, match=words):
            gradients(method, params, None, (), batch)
    with pytest.raises(ValueError, match="have no index"):
        reward.completion_scores(model, params, [bare])
    late = place_batch(*pack(attach(trees, index=[1]), shapes=[(64, 64)]), model.mesh)
    with pytest.raises(ValueError, match="not all of 0 to 1"):
        reward.completion_scores(model, params, [late])
