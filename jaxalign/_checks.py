"""Argument checks of the array functions. They raise at trace time, with a message that names the argument."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array


def to_floats(**arrays: ArrayLike) -> list[Array]:
    """Converts the named arrays to jax.Arrays of real floats, which must have one shape.

    Raises:
        TypeError: if one is not of a real float type (log-probabilities in integers are a mistake).
        ValueError: if their shapes differ (``[B]`` would otherwise broadcast against ``[B, 1]``).
    """
    out = [to_float(name, value) for name, value in arrays.items()]
    first = next(iter(arrays))
    for name, value in zip(arrays, out, strict=True):
        same_shape(name, value, out[0].shape, first)
    return out


def to_float(name: str, value: ArrayLike, axes: str = "") -> Array:
    """Converts a value to a jax.Array, which must be of a real float type.

    Args:
        name: name of the argument.
        value: the value.
        axes: the wanted shape, such as ``[..., T]``, of an array with one axis or more.
    """
    array = to_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be real floating point, got {_describe(array)}.")
    has_axis(name, array, axes)
    return array


def to_number(name: str, value: ArrayLike, axes: str = "") -> Array:
    """Converts a value, which may be integer (such as rewards of 0 and 1), to an array of real floats."""
    array = to_array(name, value)
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(jnp.result_type(float))
    return to_float(name, array, axes)


def to_mask(name: str, value: ArrayLike, shape: tuple[int, ...], like: str) -> Array:
    """Converts a value to a bool array, which must have the given shape, that of argument ``like``."""
    array = to_array(name, value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be bool, True where it counts, got {_describe(array)}. Pass {name} != 0.")
    same_shape(name, array, shape, like)
    return array


def to_indices(name: str, value: ArrayLike, shape: tuple[int, ...], like: str) -> Array:
    """Converts a value to an integer array, which must have the given shape, that of argument ``like``."""
    array = to_array(name, value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {_describe(array)}.")
    same_shape(name, array, shape, like)
    return array


def to_array(name: str, value: ArrayLike) -> Array:
    """Converts a value to a jax.Array."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}.") from error


def same_shape(name: str, array: Array, shape: tuple[int, ...], like: str, *, or_scalar: bool = False) -> None:
    """Raises unless an array has the given shape, that of argument ``like``, or is a scalar where one is allowed."""
    if array.shape != tuple(shape) and not (or_scalar and array.ndim == 0):
        kind = "be a scalar or have" if or_scalar else "have"
        raise ValueError(f"{name} must {kind} the shape of {like}, {list(shape)}, got {list(array.shape)}.")


def has_axis(name: str, array: Array, wanted: str) -> None:
    """Raises if an array is a scalar and not of the wanted shape, such as ``[..., T]``."""
    if wanted and array.ndim == 0:
        raise ValueError(f"{name} must have shape {wanted}, got {list(array.shape)}.")


def to_constant(name: str, value: ArrayLike, like: Any, like_name: str, *, or_scalar: bool = False) -> Array:
    """Returns numbers without gradient and in the type of another array, which they must not widen.

    Args:
        name: name of the argument.
        value: integers or floats.
        like: an array of the required shape, or its shape and type.
        like_name: name of that array.
        or_scalar: whether one number for all is allowed too.
    """
    array = to_number(name, value)
    same_shape(name, array, like.shape, like_name, or_scalar=or_scalar)
    return jax.lax.stop_gradient(array).astype(like.dtype)


def in_interval(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises if a hyper-parameter is outside [low, high), or (low, high) if ``open_low``; traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    # Compares a jax.Array that a jitted function closes over now, instead of tracing the comparison.
    with jax.ensure_compile_time_eval():
        number = to_number(name, value)
        valid = bool(jnp.all((low < number if open_low else low <= number) & (number < high)))
    if not valid:
        raise ValueError(f"{name} must be in {'(' if open_low else '['}{low}, {high}), got {value}.")


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises unless a value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}.")


def _describe(array: Array) -> str:
    """Returns an array's type and shape, such as ``float32[2, 3]``."""
    return f"{array.dtype}{list(array.shape)}"
