"""How a loss is checked against another implementation: values and gradients, worst relative error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 1e-6  # numbers below this are judged by SMALL · 1e-6 absolutely


@dataclasses.dataclass(frozen=True)
class Check:
    """One function of the package against one reference.

    Attributes:
      name: what is checked, as the table shows it.
      against: the reference, as the table shows it.
      run: makes the inputs, calls both, returns the worst relative error over values and gradients.
      tolerance: that the error may have.
    """

    name: str
    against: str
    run: Callable[[], float]
    tolerance: float = 1e-6


def relative_error(ours: np.ndarray, expected: np.ndarray) -> float:
    """max |a - b| / max(|b|, SMALL) over entries where the reference is finite; there ours has to be, too."""
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    finite = np.isfinite(expected)
    assert np.isfinite(ours[finite]).all()
    if not finite.any():
        return 0.0
    return float(np.max(np.abs(ours - expected)[finite] / np.maximum(np.abs(expected[finite]), SMALL)))


def against_torch(
    ours: Callable, expected: Callable, batches: list[tuple], trained: int = 1, dtype: str = "float64"
) -> float:
    """Worst error of value and gradients over batches of arrays, the first ``trained`` of which are differentiated.

    ``ours`` takes them as jax.Arrays and ``expected`` as tensors; both return a scalar.
    """
    import torch

    worst = 0.0
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with jax.enable_x64(dtype == "float64"):
            function = jax.jit(jax.value_and_grad(ours, argnums=tuple(range(trained))))
            for batch in batches:
                cast = [x.astype(dtype) if x.dtype == np.float64 else x for x in map(np.asarray, batch)]
                value, gradients = function(*[jnp.asarray(x) for x in cast])
                tensors = [torch.tensor(x, requires_grad=i < trained) for i, x in enumerate(cast)]
                loss = expected(*tensors)
                loss.backward()
                worst = max(worst, relative_error(value, loss.detach().numpy()))
                for gradient, tensor in zip(gradients, tensors, strict=False):
                    if np.isfinite(loss.item()):
                        worst = max(worst, relative_error(gradient, tensor.grad.numpy()))
    finally:
        torch.set_default_dtype(torch.float32)
    return worst


def against_numpy(ours: Callable, expected: Callable, batches: list[tuple], trained: int = 1) -> float:
    """The same for a reference in float64 NumPy; its gradient by central differences of fourth order.

    Results may have any shape; gradients are those of Σ_i (1 + i/7) · out_i. ``trained=0`` compares values alone.
    """
    worst = 0.0

    def weigh(out, module):
        return module.sum(module.reshape(out, -1) * (1 + module.arange(out.size) / 7))

    with jax.enable_x64(True):
        for batch in batches:
            arrays = [np.asarray(x) for x in batch]
            value = np.asarray(expected(*arrays))
            worst = max(worst, relative_error(ours(*map(jnp.asarray, arrays)), value))
            if trained == 0:
                continue
            slopes = jax.grad(lambda *args: weigh(ours(*args), jnp), tuple(range(trained)))
            for which, gradient in enumerate(slopes(*map(jnp.asarray, arrays))):
                numerical = np.zeros_like(arrays[which])
                for index in np.ndindex(arrays[which].shape):
                    step = 1e-4 * max(1.0, abs(arrays[which][index]))
                    slope = 0.0
                    for shift, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                        moved = [x.copy() for x in arrays]
                        moved[which][index] += shift * step
                        slope += weight * weigh(np.asarray(expected(*moved)), np)
                    numerical[index] = slope / (12 * step)
                error = np.max(np.abs(np.asarray(gradient) - numerical) / np.maximum(np.abs(numerical), 1e-2))
                worst = max(worst, float(error))
    return worst
