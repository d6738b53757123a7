"""Averages of parameter trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign


def trees(first_dtype, second_dtype):
    keys = jax.random.split(jax.random.key(0))
    return [
        {"layer": {"kernel": jax.random.normal(key, (3, 4)).astype(dtype)}}
        for key, dtype in zip(keys, (first_dtype, second_dtype), strict=True)
    ]


@pytest.mark.parametrize(
    ("first_dtype", "second_dtype", "dtype", "expected"),
    [
        (jnp.float32, jnp.float32, None, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, None, jnp.float32),
        (jnp.bfloat16, jnp.float16, None, jnp.float32),
        (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    ],
)
def test_average_is_the_formula_in_the_wider_type(first_dtype, second_dtype, dtype, expected):
    a, b = trees(first_dtype, second_dtype)
    first, second = (np.asarray(tree["layer"]["kernel"], np.float32) for tree in (a, b))
    for weight in (0.25, -0.5, 1.5):
        average = jaxalign.average_params(a, b, weight, dtype)["layer"]["kernel"]
        assert average.dtype == expected
        wanted = (first + np.float32(weight) * (second - first)).astype(expected)
        np.testing.assert_array_equal(np.asarray(average), wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0, jnp.float32(0), np.float64(1)])
def test_at_the_ends_the_leaves_are_bitwise_the_given_ones(dtype, weight):
    a, b = trees(dtype, dtype)
    # first + (second - first) is not second for these in float32.
    a["layer"]["kernel"] = a["layer"]["kernel"].at[0, 0].set(1e8)
    given = (a, b)[int(weight)]["layer"]["kernel"]
    average = jaxalign.average_params(a, b, weight)["layer"]["kernel"]
    assert average.dtype == given.dtype
    assert np.asarray(average).tobytes() == np.asarray(given).tobytes()
    # A copy: a step that donates the given tree does not delete the average.
    assert average.unsafe_buffer_pointer() != given.unsafe_buffer_pointer()
    narrow = jaxalign.average_params(a, b, weight, jnp.bfloat16)["layer"]["kernel"]
    np.testing.assert_array_equal(narrow, given.astype(jnp.bfloat16))


def test_average_under_jit_and_its_refusals():
    a, b = trees(jnp.float32, jnp.float32)
    traced = jax.jit(jaxalign.average_params)(a, b, 0.25)
    eager = jaxalign.average_params(a, b, 0.25)
    np.testing.assert_allclose(traced["layer"]["kernel"], eager["layer"]["kernel"], rtol=1e-6)
    with pytest.raises(ValueError, match="shapes"):
        jaxalign.average_params(a, {"layer": {"kernel": jnp.zeros((4, 3))}}, 0.5)
    with pytest.raises(ValueError, match=r"bias|kernel|key"):
        jaxalign.average_params(a, {"layer": {"bias": jnp.zeros((3, 4))}}, 0.5)
