"""The fused head: equal to the plain one, and no (tokens × V) array, no copy of the head, no gather on a mesh."""

from __future__ import annotations

import re

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.logprobs import fused_token_logps, fused_token_statistics, token_entropy, token_logps

N, D = (3, 8), 16


def make(vocab_size, vocab_axis=1, dtype=jnp.float32, shape=N, width=D):
    keys = jax.random.split(jax.random.key(vocab_size), 4)
    hidden = jax.random.normal(keys[0], (*shape, width), dtype)
    head = jax.random.normal(keys[1], (width, vocab_size), dtype)
    targets = jax.random.randint(keys[2], shape, 0, vocab_size)
    weights = jax.random.normal(keys[3], shape)
    return hidden, head if vocab_axis else head.T, targets, weights


def plain(hidden, head, targets, weights, vocab_axis=1):
    logits = hidden @ (head if vocab_axis else head.T)
    return jnp.sum(token_logps(logits, targets) * weights)


def fused(hidden, head, targets, weights, **options):
    return jnp.sum(fused_token_logps(hidden, head, targets, **options) * weights)


def fused_of(vocab_axis=1, chunk_size=8192):
    return lambda *args: fused(*args, chunk_size=chunk_size, vocab_axis=vocab_axis)


# Vocabularies that chunks divide, that they do not (one chunk is narrower), odd ones, tiny ones.
@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize(("vocab_size", "chunk_size"), [(1024, 256), (2048, 300), (97, 16), (7, 100), (1, 1)])
def test_value_and_gradients_are_those_of_the_plain_head(vocab_size, chunk_size, vocab_axis):
    args = make(vocab_size, vocab_axis)
    expected = jax.value_and_grad(plain, (0, 1))(*args, vocab_axis=vocab_axis)
    got = jax.jit(lambda *args: jax.value_and_grad(fused, (0, 1))(*args, chunk_size=chunk_size, vocab_axis=vocab_axis))(
        *args
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_float64_is_exact():
    chunk_size = 70
    with jax.enable_x64(True):
        hidden, head, targets, weights = make(500, dtype=jnp.float64)

        def both(statistics):
            return jnp.sum(statistics[0] * weights) + jnp.sum(statistics[1] * weights**2)

        def by_chunks(hidden, head):
            return both(fused_token_statistics(hidden, head, targets, chunk_size=chunk_size)[:2])

        def at_once(hidden, head):
            return both((token_logps(hidden @ head, targets), token_entropy(hidden @ head)))

        got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, head) for f in (by_chunks, at_once))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), got, expected)
        squares = fused_token_statistics(hidden, head, targets, chunk_size=chunk_size).log_sum_sq_probs
        probs = jax.nn.softmax(hidden @ head)
        np.testing.assert_allclose(squares, jnp.log(jnp.sum(probs**2, -1)), rtol=1e-10)


def test_bfloat16_products_accumulate_in_float32():
    hidden, head, targets, weights = make(1024, dtype=jnp.bfloat16, width=64)
    got = fused_token_logps(hidden, head, targets, chunk_size=256)
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, token_logps(logits, targets), rtol=1e-5, atol=1e-5)
    gradients = jax.jit(jax.grad(fused_of(chunk_size=256), (0, 1)))(hidden, head, targets, weights)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.bfloat16]
    wide = jax.grad(plain, (0, 1))(hidden.astype(jnp.float32), head.astype(jnp.float32), targets, weights)
    for a, b in zip(gradients, wide, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32])
def test_an_id_outside_the_vocabulary_is_the_nearest_one(dtype):
    """-100, say, in slots that are masked later: the same value and gradient on both paths, and no NaN."""
    hidden, head, _, weights = make(40)
    ids = jnp.resize(jnp.array([-100, -1, 40, 100]), N).astype(dtype)
    expected = jax.value_and_grad(plain, (0, 1))(hidden, head, jnp.where(ids < 0, 0, 39), weights)
    for function in (plain, fused_of()):
        got = jax.value_and_grad(function, (0, 1))(hidden, head, ids, weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def test_entropy_of_entries_ruled_out():
    """A logit of -inf adds nothing to value or gradient."""
    logits = jnp.array([0.5, -jnp.inf, 1.0])
    value, slope = jax.value_and_grad(token_entropy)(logits)
    expected, slope_of_rest = jax.value_and_grad(token_entropy)(logits[::2])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slope, [slope_of_rest[0], 0, slope_of_rest[1]], rtol=1e-5, atol=1e-7)


def test_large_logits_do_not_overflow():
    hidden, head, targets, weights = make(300)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-3),
        jax.jit(jax.value_and_grad(fused_of(chunk_size=64), (0, 1)))(300 * hidden, head, targets, weights),
        jax.value_and_grad(plain, (0, 1))(300 * hidden, head, targets, weights),
    )


def test_transforms():
    """vmap, checkpoint, scan and leading axes all give the plain gradient."""
    hidden, head, targets, weights = make(512)
    expected = jax.grad(plain, (0, 1))(hidden, head, targets, weights)

    def by_vmap(hidden, head):
        rows = jax.vmap(lambda h, t: fused_token_logps(h, head, t, chunk_size=128))(hidden, targets)
        return jnp.sum(rows * weights)

    def by_checkpoint(hidden, head):
        return jax.checkpoint(lambda h, w: fused(h, w, targets, weights, chunk_size=128))(hidden, head)

    def by_scan(hidden, head):
        def step(total, row):
            return total + fused(row[0], head, *row[1:], chunk_size=128), None

        return jax.lax.scan(step, jnp.zeros(()), (hidden, targets, weights))[0]

    for function in (by_vmap, by_checkpoint, by_scan):
        got = jax.jit(jax.grad(function, (0, 1)))(hidden, head)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


def avals(jaxpr):
    """Every array that a jaxpr makes, in its inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from avals(inner)


@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_no_array_of_tokens_times_vocabulary(vocab_axis):
    """A walk through the jaxpr of the value and gradient: nothing but the head and its gradient grows with V."""
    vocab_size, chunk_size, tokens = 1000, 100, 24
    function = jax.value_and_grad(fused_of(vocab_axis, chunk_size), (0, 1))
    sizes = [a.size for a in avals(jax.make_jaxpr(function)(*make(vocab_size, vocab_axis)).jaxpr)]
    assert max(sizes) == D * vocab_size < tokens * vocab_size
    assert sorted({size for size in sizes if size < D * vocab_size})[-1] <= tokens * chunk_size
    walked = jax.make_jaxpr(jax.value_and_grad(plain, (0, 1)))(*make(vocab_size)).jaxpr
    assert max(a.size for a in avals(walked)) == tokens * vocab_size, "the walk sees it in the plain head"


@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_memory_is_flat_in_the_vocabulary(vocab_axis):
    """What the gradient needs in addition to inputs and outputs, at SmolLM2's, Llama 3's and Gemma's vocabularies."""

    def temporary(vocab_size):
        function = jax.jit(jax.value_and_grad(fused_of(vocab_axis), (0, 1)))
        shapes = jax.eval_shape(lambda: make(vocab_size, vocab_axis, shape=(256,), width=64))
        return function.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    small, middle, large = (temporary(vocab_size) for vocab_size in (49152, 128256, 262144))
    assert large < 1.05 * small
    assert middle < 1.05 * small
    assert small < 3 * 256 * 8192 * 4


@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 4), (2, 2, 2)], ids=str)
def test_sharded_head_is_not_gathered(shape, vocab_axis):
    """8 devices, the head's vocabulary along one axis of the mesh: the same results, and no device sees all of it."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "fsdp", "tensor"))
    vocab_size, chunk_size = 64 * 48, 512
    hidden, head, targets, weights = make(vocab_size, vocab_axis, shape=(8, 4))
    axes = ("fsdp", "tensor") if vocab_axis else ("tensor", "fsdp")
    rows, split = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((("data", "fsdp"),), axes))
    placed = [jax.device_put(x, s) for x, s in ((hidden, rows), (head, split), (targets, rows), (weights, rows))]
    function = jax.jit(
        jax.value_and_grad(fused_of(vocab_axis, chunk_size), (0, 1)), out_shardings=(None, (rows, split))
    )
    compiled = function.lower(*placed).compile()

    value, gradients = compiled(*placed)
    expected = jax.value_and_grad(plain, (0, 1))(hidden, head, targets, weights, vocab_axis=vocab_axis)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), (value, gradients), expected)
    assert gradients[1].sharding == split

    # A chunk of the head on one device, gathered over the axis that splits its D, is the largest thing ever moved.
    moved = re.findall(
        r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)", compiled.as_text()
    )
    sizes = [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in moved]
    assert max(sizes) <= D * chunk_size // shape[2]
    whole = re.compile(rf"f32\[{D},{vocab_size}\]|f32\[{vocab_size},{D}\]|f32\[{D},64,48\]|f32\[64,48,{D}\]")
    assert not whole.search(compiled.as_text())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"head": jnp.zeros((5, 9))}, ValueError, r"head must have shape \[D, V\] with hidden's D, 4, got \[5, 9\]"),
        ({"head": jnp.zeros((4, 9), int)}, TypeError, "head must be real floating point, got int32"),
        ({"hidden": jnp.zeros(())}, ValueError, r"hidden must have shape \[..., D\]"),
        ({"targets": jnp.zeros(2)}, TypeError, "targets must be integers"),
        (
            {"targets": jnp.zeros(3, int)},
            ValueError,
            r"targets must have the shape of hidden without its last axis, \[2\]",
        ),
        ({"chunk_size": 0}, ValueError, "chunk_size must be a positive integer"),
        ({"chunk_size": 64.0}, ValueError, "chunk_size must be a positive integer"),
        ({"vocab_axis": 2}, ValueError, "vocab_axis must be one of 0, 1"),
    ],
)
def test_mistakes_name_the_argument(change, error, message):
    args = {"hidden": jnp.zeros((2, 4)), "head": jnp.zeros((4, 9)), "targets": jnp.zeros(2, int)} | change
    with pytest.raises(error, match=message):
        fused_token_logps(**args)
