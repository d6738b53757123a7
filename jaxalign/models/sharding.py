"""Meshes, and the rules that assign the axes of arrays to the axes of a mesh.

Sharding is data, not code: a parameter's path names its logical axes, a rule table maps logical axes to mesh
axes, and one device is the mesh (1, 1, 1).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import UserError
from jaxalign.models.config import ModelConfig

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis → mesh axes. The rows of a batch are sharded over data and fsdp, a parameter's embed axis over fsdp.
RULES: dict[str | None, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    None: None,
}

# Logical axes of each parameter, by the last two names of its path; stacked layers add a leading axis of None.
_AXES: dict[tuple[str, str], tuple[str | None, ...]] = {
    ("embed", "embedding"): ("vocab", "embed"),
    ("head", "kernel"): ("embed", "vocab"),
    ("q", "kernel"): ("embed", "heads"),
    ("k", "kernel"): ("embed", "kv_heads"),
    ("v", "kernel"): ("embed", "kv_heads"),
    ("o", "kernel"): ("heads", "embed"),
    ("gate", "kernel"): ("embed", "mlp"),
    ("up", "kernel"): ("embed", "mlp"),
    ("down", "kernel"): ("mlp", "embed"),
    ("q", "bias"): ("heads",),
    ("k", "bias"): ("kv_heads",),
    ("v", "bias"): ("kv_heads",),
    ("gate", "bias"): ("mlp",),
    ("up", "bias"): ("mlp",),
}


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Any = None) -> Mesh:
    """Returns a mesh of data × fsdp × tensor devices; ``-1`` for one axis takes the remaining devices.

    Raises:
        UserError: if the axes need more devices than there are.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = [data, fsdp, tensor]
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"mesh: data={data}, fsdp={fsdp}, tensor={tensor} must be positive. One of them may be -1.")
    if -1 in shape:
        shape[shape.index(-1)] = max(1, len(devices) // -math.prod(shape))
    size = math.prod(shape)
    if size > len(devices):
        raise UserError(
            f"mesh: data={data} × fsdp={fsdp} × tensor={tensor} needs {size} devices, this machine has {len(devices)}. "
            "Make the mesh smaller."
        )
    return Mesh(np.asarray(devices[:size]).reshape(shape), MESH_AXES)


def _divides(config: ModelConfig, mesh: Mesh, logical: str) -> bool:
    """Returns whether the mesh axis of a logical axis divides it; a head is never split."""
    sizes = {
        "embed": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "mlp": config.intermediate_size,
        "vocab": config.vocab_size,
    }
    return sizes[logical] % mesh.shape[RULES[logical]] == 0


def replicated_axes(config: ModelConfig, mesh: Mesh) -> dict[str, str]:
    """Returns the logical axes that are replicated because the mesh does not divide them, each with the reason."""
    reasons = {}
    for logical in ("embed", "heads", "kv_heads", "mlp", "vocab"):
        if not _divides(config, mesh, logical):
            axis = RULES[logical]
            reasons[logical] = f"{logical} is replicated: mesh axis {axis}={mesh.shape[axis]} does not divide it"
    return reasons


def spec(config: ModelConfig, mesh: Mesh, *logical: str | None) -> PartitionSpec:
    """Returns the PartitionSpec of a parameter with the given logical axes."""
    return PartitionSpec(
        *(RULES[name] if name is not None and _divides(config, mesh, name) else None for name in logical)
    )


def constrain(x: jax.Array, mesh: Mesh, *logical: str | None) -> jax.Array:
    """Constrains an activation's sharding to its logical axes; an axis that the mesh does not divide is replicated."""
    names = [RULES[name] for name in logical]
    sizes = [math.prod(mesh.shape[n] for n in ((name,) if isinstance(name, str) else name or ())) for name in names]
    fits = (name if length % size == 0 else None for name, length, size in zip(names, x.shape, sizes, strict=True))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*fits)))


def param_shardings(config: ModelConfig, mesh: Mesh, shapes: Any) -> Any:
    """Returns the NamedSharding of every parameter in a tree of shapes."""

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = tuple(entry.key for entry in path)
        axes = _AXES.get(names[-2:], (None,) * leaf.ndim)
        if names[-1] in ("lora_a", "lora_b"):  # the two factors of a kernel [in, out]: [in, r] and [r, out]
            into, out = _AXES[names[-2], "kernel"]
            axes = (into, None) if names[-1] == "lora_a" else (None, out)
        axes = (None,) * (leaf.ndim - len(axes)) + axes
        return NamedSharding(mesh, spec(config, mesh, *axes))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's arrays ``[microbatch, row, ...]``: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device has in full."""
    return NamedSharding(mesh, PartitionSpec())
