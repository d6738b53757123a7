"""Laws that hold for every loss, over the registry, on random inputs."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxalign import advantages, logprobs, losses
from tests.losses.registry import CASES, OTHERS, PUBLIC, Case

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
per_example = pytest.mark.parametrize("case", [c for c in CASES if not c.couples], ids=lambda case: case.name)
trained = pytest.mark.parametrize("case", [c for c in CASES if c.trained], ids=lambda case: case.name)
masked = pytest.mark.parametrize("case", [c for c in CASES if c.mask], ids=lambda case: case.name)
random_inputs = given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]))
few = settings(max_examples=6, deadline=None, derandomize=True, database=None)


@functools.cache
def compiled(case: Case):
    return jax.jit(case.call)


@functools.cache
def compiled_gradient(case: Case):
    """Gradients of Σ (1 + i/7) · out_i, unequal weights, with respect to the trained arguments."""

    def total(*args):
        leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(case.call(*args))]
        return sum(jnp.sum(leaf * (1 + jnp.arange(leaf.size) / 7).astype(leaf.dtype)) for leaf in leaves)

    return jax.jit(jax.grad(total, argnums=case.trained))


def close(a, b, rtol=1e-6, atol=1e-6):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), a, b)


def test_registry_is_complete():
    assert {case.fn.__name__ for case in CASES} >= PUBLIC - OTHERS
    assert PUBLIC >= OTHERS


@every_case
@few
@random_inputs
def test_jit_is_eager_and_all_is_finite(case, seed, scale):
    args = case.make(seed, scale=scale, dtype=np.float32)
    eager = case.call(*args)
    close(compiled(case)(*args), eager, rtol=1e-4, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(eager))


@every_case
@few
@random_inputs
def test_leading_axes_are_vmap(case, seed, scale):
    args = case.make(seed, lead=(2,), scale=scale, dtype=np.float32)
    axes = [None if arg.kind == "scalar" else 0 for arg in case.args]
    close(compiled(case)(*args), jax.vmap(case.call, in_axes=axes)(*args), rtol=1e-4, atol=1e-5)


@every_case
@few
@random_inputs
def test_examples_may_be_permuted(case, seed, scale):
    """Values follow their examples; those that couple the batch (quantiles, one mean) do not change."""
    args = case.make(seed, scale=scale, dtype=np.float32)
    order = np.random.default_rng(seed).permutation(4)
    shuffled = compiled(case)(*[x[order] if x.ndim else x for x in args])
    straight = compiled(case)(*args)
    close(shuffled, straight if case.couples else jax.tree.map(lambda x: x[order], straight), rtol=1e-5)


@per_example
@few
@random_inputs
def test_examples_do_not_see_each_other(case, seed, scale):
    args, others = case.make(seed, scale=scale, dtype=np.float32), case.make(seed + 1, scale=scale, dtype=np.float32)
    mixed = [np.concatenate([x[:1], y[1:]]) if x.ndim else x for x, y in zip(args, others, strict=True)]
    first = functools.partial(jax.tree.map, lambda x: x[0])
    close(first(compiled(case)(*mixed)), first(compiled(case)(*args)), rtol=1e-6)


@trained
def test_gradients_are_numerical_gradients(case):
    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in case.make(3)]
        if case.fn in (losses.dft, losses.cispo, losses.vespo):
            pytest.skip("its gradient is, by definition, not that of its value")

        def function(*varied):
            full = list(args)
            for position, value in zip(case.trained, varied, strict=True):
                full[position] = value
            return case.call(*full)

        check_grads(function, [args[i] for i in case.trained], order=1, modes=["rev"], rtol=1e-5, atol=1e-6)


@every_case
def test_only_the_policy_is_trained(case):
    args = [jnp.asarray(x) for x in case.make(5, dtype=np.float32)]
    constant = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating) and i not in case.trained]
    if not constant or case.fn.__module__.endswith("advantages"):
        return

    def total(*args):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(case.call(*args)))

    for gradient in jax.grad(total, argnums=constant)(*args):
        np.testing.assert_array_equal(gradient, 0)


@every_case
def test_one_program_serves_all_values(case):
    """A second call compiles nothing, and hyper-parameters may be traced, as a schedule makes them."""
    traces = []
    function = jax.jit(lambda *args: traces.append(args) or case.call(*args))
    for seed in range(2):
        function(*case.make(seed, dtype=np.float32))
    assert len(traces) == 1
    numbers = {name: value for name, value in case.options.items() if isinstance(value, float)}
    rest = {name: value for name, value in case.options.items() if name not in numbers}
    if "alpha" in numbers:
        return
    args = case.make(0, dtype=np.float32)
    traced = jax.jit(lambda numbers, *args: case.fn(*args, **numbers, **rest))(numbers, *args)
    close(traced, case.call(*args), rtol=1e-5)


@every_case
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_float_type_is_kept(case, dtype):
    with jax.enable_x64(True):
        args = [jnp.asarray(x, dtype) if x.dtype == np.float64 else jnp.asarray(x) for x in case.make(1)]
        wide = case.fn in (losses.distill_forward_kl, losses.distill_reverse_kl, losses.generalized_jsd)
        wanted = "float32" if wide and dtype == "bfloat16" else dtype
        assert {leaf.dtype.name for leaf in jax.tree.leaves(jax.eval_shape(case.call, *args))} == {wanted}


@functools.cache
def compiled_cropped(case: Case, size: int):
    """(result, gradients) of one masked case, each cut to the first ``size`` of its last axis."""
    cut = functools.partial(jax.tree.map, lambda x: x[..., :size] if x.ndim == 2 else x)

    def total(*args):
        cropped = cut(case.call(*args))
        weighted = [leaf * (1 + jnp.arange(leaf.size).reshape(leaf.shape) / 7) for leaf in jax.tree.leaves(cropped)]
        return sum(map(jnp.sum, weighted)), cropped

    if not case.trained:
        return jax.jit(total)
    return jax.jit(lambda *args: cut(jax.value_and_grad(total, argnums=case.trained, has_aux=True)(*args)))


@masked
@few
@random_inputs
def test_padding_and_poison_change_nothing(case, seed, scale):
    """Longer padding, and NaN or inf in masked slots, change neither value nor gradient."""
    args = case.make(seed, scale=scale, dtype=np.float32)
    mask = args[[arg.name for arg in case.args].index(case.mask)]

    def longer(arg, x):
        if len(arg.axes) < 2:
            return x
        x = x if x.dtype == bool else np.where(mask, x, np.nan)
        return np.concatenate([x, np.full((*x.shape[:-1], 3), np.inf)], axis=-1).astype(x.dtype)

    poisoned = [longer(arg, x) for arg, x in zip(case.args, args, strict=True)]
    position = [arg.name for arg in case.args].index(case.mask)
    poisoned[position][..., mask.shape[-1] :] = False
    cropped = compiled_cropped(case, mask.shape[-1])
    close(cropped(*poisoned), cropped(*args), rtol=1e-5)


@masked
def test_nothing_valid_is_zero(case):
    args = [jnp.asarray(x) for x in case.make(7, dtype=np.float32)]
    position = [arg.name for arg in case.args].index(case.mask)
    args[position] = jnp.zeros_like(args[position])
    wanted = 1 if case.fn is losses.wpo_weights else 0
    for leaf in jax.tree.leaves(case.call(*args)):
        np.testing.assert_array_equal(leaf, wanted)
    for gradient in compiled_gradient(case)(*args) if case.trained else ():
        np.testing.assert_array_equal(gradient, 0)


@every_case
def test_mistakes_name_the_argument(case):
    """Shape, type and mask mistakes raise at trace time, with a sentence that names the argument."""
    args = [jnp.asarray(x) for x in case.make(0, dtype=np.float32)]
    for i, arg in enumerate(case.args):
        wrong = list(args)
        if arg.kind == "bool":
            wrong[i] = args[i].astype(jnp.float32)
            with pytest.raises(TypeError, match=rf"\b{arg.name} must be bool"):
                jax.eval_shape(case.call, *wrong)
        elif arg.kind in ("logps", "avg_logps"):
            wrong[i] = args[i].astype(jnp.int32)
            with pytest.raises(TypeError, match=rf"\b{arg.name} must be real floating point"):
                jax.eval_shape(case.call, *wrong)
        wrong[i] = jnp.full(args[i].shape, 1j)
        with pytest.raises(TypeError, match=rf"\b{arg.name} must be"):
            jax.eval_shape(case.call, *wrong)
        if len(args) > 1 and arg.kind != "scalar":
            wrong[i] = args[i][:-1]
            with pytest.raises(ValueError, match=r"\w+ must (have|be).*(shape|scalar).*, got"):
                jax.eval_shape(case.call, *wrong)


@pytest.mark.parametrize("module", [losses, losses.metrics, advantages, logprobs], ids=lambda module: module.__name__)
def test_every_public_function_has_a_doctest(module):
    public = [value for name, value in vars(module).items() if not name.startswith("_")]
    functions = [f for f in public if inspect.isfunction(f) and f.__module__.startswith(module.__name__)]
    assert functions
    assert [f.__name__ for f in functions if ">>>" not in (f.__doc__ or "")] == []
