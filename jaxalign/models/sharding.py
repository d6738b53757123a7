"""Meshes, and the rules that assign the axes of arrays to the axes of a mesh.

Sharding is data, not code: a parameter's path names its logical axes, a rule table maps logical axes to mesh
axes, and one device is the mesh (1, 1, 1).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

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

# Logical axes of each matrix, by the name of its module. Other parameters (norms, scalar heads) are replicated.
_AXES: dict[str, tuple[str | None, str | None]] = {
    "embed": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "q": ("embed", "heads"),
    "k": ("embed", "kv_heads"),
    "v": ("embed", "kv_heads"),
    "o": ("heads", "embed"),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
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


def replicated_axes(config: ModelConfig, mesh: Mesh) -> dict[str, str]:
    """Returns the logical axes that are replicated because the mesh does not divide them, each with the reason."""
    sizes = {
        "embed": config.hidden_size,
        "heads": config.num_attention_heads,  # a head is never split
        "kv_heads": config.num_key_value_heads,
        "mlp": config.intermediate_size,
        "vocab": config.vocab_size,
    }
    return {
        logical: f"{logical} is replicated: mesh axis {RULES[logical]}={mesh.shape[RULES[logical]]} does not divide it"
        for logical, size in sizes.items()
        if size % mesh.shape[RULES[logical]]
    }


def constrain(x: jax.Array, mesh: Mesh, *logical: str | None) -> jax.Array:
    """Constrains an activation's sharding to its logical axes; an axis that the mesh does not divide is replicated."""
    names = [RULES[name] for name in logical]
    sizes = [math.prod(mesh.shape[n] for n in ((name,) if isinstance(name, str) else name or ())) for name in names]
    fits = (name if length % size == 0 else None for name, length, size in zip(names, x.shape, sizes, strict=True))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*fits)))


def param_shardings(config: ModelConfig, mesh: Mesh, shapes: Any) -> Any:
    """Returns the NamedSharding of every parameter in a tree of shapes."""
    indivisible = replicated_axes(config, mesh)

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        module, kind = path[-2].key, path[-1].key
        first, second = _AXES.get(module, (None, None))
        # An adapter's factors are [in, r] and [r, out]. Biases are added to states, whose width is not split.
        bias = None if second == "embed" else second
        axes = {"bias": (bias,), "scale": (None,), "lora_a": (first, None), "lora_b": (None, second)}
        logical = axes.get(kind, (first, second))
        stack = (None,) * (leaf.ndim - len(logical))  # the leading axis of stacked layers
        mesh_axes = (None if name in indivisible else RULES[name] for name in (*stack, *logical))
        return NamedSharding(mesh, PartitionSpec(*mesh_axes))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's arrays ``[microbatch, row, ...]``: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(None, RULES["batch"]))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of arrays that every device has in full."""
    return NamedSharding(mesh, PartitionSpec())
