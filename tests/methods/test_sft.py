"""SFT: the mean over all tokens that count, whatever the cut, and against a plain transcription."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign import losses
from jaxalign.data.trees import Tree, pack
from jaxalign.loop import gradients, make_eval, place_batch
from jaxalign.methods.sft import sft
from jaxalign.models.model import Model
from tests.plain import text_logits


def demonstrations(count, vocab=96, seed=0):
    """Trees of one completion of very different lengths, some of whose tokens do not count."""
    random = np.random.default_rng(seed)
    trees = []
    for _ in range(count):
        prompt, completion = (random.integers(3, vocab, random.integers(1, 12)) for _ in range(2))
        mask = random.random(len(completion)) < 0.7
        mask[-1] = True
        trees.append(Tree.of(prompt, [completion], [mask]))
    return trees


@pytest.fixture(scope="module")
def model(tiny_config):
    return Model(tiny_config)


@pytest.fixture(scope="module")
def params(model):
    return model.init(jax.random.key(0))


def transcription(model, params, trees):
    """-log p of every token that counts, row by row through the plain forward, float64."""
    nlls = []
    texts = [np.concatenate([tree.prompt, tree.completions[0]]) for tree in trees]
    for tree, text, logits in zip(trees, texts, text_logits(model, params, texts), strict=True):
        logits = np.asarray(logits, np.float64)
        logps = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
        first = len(tree.prompt)
        nlls += [-logps[i - 1, text[i]] for i in range(first, len(text)) if tree.masks[0][i - first]]
    return np.array(nlls)


@pytest.mark.parametrize("rows", [2, *(pytest.param(rows, marks=pytest.mark.thorough) for rows in (1, 4))])
def test_loss_and_gradient_do_not_depend_on_the_cut(model, params, rows):
    trees = demonstrations(9)
    nll = transcription(model, params, trees)
    run = jax.jit(lambda batch: gradients(sft(model), params, None, (), batch))
    whole = run(place_batch(*pack(trees, shapes=[(256, 256)]), model.mesh))
    cut = run(place_batch(*pack(trees, shapes=[(32, 24)], rows_per_microbatch=rows), model.mesh))
    (loss, metrics), grads, _ = cut
    np.testing.assert_allclose(loss, nll.mean(), rtol=1e-5)
    assert (round(float(metrics["loss"][0]), 3), int(metrics["loss"][1])) == (round(nll.sum(), 3), len(nll))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, grads, whole[1]))
    assert difference <= 1e-5 * optax.tree.norm(whole[1])


def test_evaluation_weighs_tokens_not_examples(model, params):
    trees = demonstrations(7)
    nll = transcription(model, params, trees)
    evaluate = make_eval(sft(model))
    pieces = [place_batch(*pack(trees[i : i + 2], shapes=[(64, 64)]), model.mesh) for i in range(0, 7, 2)]
    metrics = evaluate(params, (), pieces)
    np.testing.assert_allclose(math.exp(metrics["loss"]), np.exp(nll.mean()), rtol=1e-5)


def test_dft_weighs_by_likelihood(model, params):
    trees = demonstrations(5)
    nll = transcription(model, params, trees)
    batch = place_batch(*pack(trees, shapes=[(64, 64)]), model.mesh)
    (loss, _), _, _ = jax.jit(lambda b: gradients(sft(model, loss=losses.dft), params, None, (), b))(batch)
    np.testing.assert_allclose(loss, np.mean(np.exp(-nll) * nll), rtol=1e-4)


def test_what_does_not_count_may_be_anything(model, params):
    trees = demonstrations(4)
    packed = pack(trees, shapes=[(64, 64)])
    run = jax.jit(lambda b: gradients(sft(model), params, None, (), b)[:2])
    want = run(place_batch(*packed, model.mesh))
    off = np.where(packed.rows.mask, packed.rows.target, 95)
    got = run(place_batch(dataclasses.replace(packed.rows, target=off), packed.used, model.mesh))
    jax.tree.map(np.testing.assert_array_equal, got, want)
