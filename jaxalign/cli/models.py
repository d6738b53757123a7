"""The model of a command: loaded onto its mesh, with a line about it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from jaxalign.cli.config import MeshSection, ModelSection
from jaxalign.models.model import Model
from jaxalign.models.sharding import make_mesh, replicated_axes
from jaxalign.models.weights import load_model


def open_mesh(mesh: MeshSection) -> jax.sharding.Mesh:
    """The mesh of the section."""
    return make_mesh(mesh.data, mesh.fsdp, mesh.tensor)


def open_model(section: ModelSection, mesh: jax.sharding.Mesh, console: Console) -> tuple[Model, Any]:
    """The model and its parameters; says what the mesh does not divide and every device therefore holds whole."""
    model, params = load_model(section.path, mesh=mesh, dtype=jnp.dtype(section.dtype), remat=section.remat)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(f"model: {size / 1e6:.1f}M parameters on {mesh.size} device(s)")
    for reason in replicated_axes(model.config, mesh).values():
        console.print(reason)
    return model, params
