"""The model of a command: loaded onto its mesh, with a line about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.model import Model
from jaxalign.models.params import union
from jaxalign.models.sharding import make_mesh, replicated_axes
from jaxalign.models.weights import load_model
from jaxalign.settings import MeshSection, ModelSection


def open_mesh(mesh: MeshSection) -> jax.sharding.Mesh:
    """The mesh of the section."""
    return make_mesh(mesh.data, mesh.fsdp, mesh.tensor)


def open_model(section: ModelSection, mesh: jax.sharding.Mesh, console: Console) -> tuple[Model, Any]:
    """The model and its parameters; says what the mesh does not divide and every device therefore holds whole."""
    model, params = load_model(section.path, mesh=mesh, dtype=jnp.dtype(section.dtype), remat=section.remat)
    if section.adapter is not None:
        adapted, adapters = lora.load(section.adapter, model)
        if adapted.config.num_scores != model.config.num_scores:
            raise UserError(f"model.adapter {section.adapter} is a reward model's; give it as reward.adapter.")
        model, params = lora.merge(adapted, union(adapters, params))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(f"model: {size / 1e6:.1f}M parameters on {mesh.size} device(s)")
    for reason in replicated_axes(model.config, mesh).values():
        console.print(reason)
    return model, params


def check_language_model(model: Model, section: ModelSection) -> None:
    """Raise if the model is a reward model.

    Raises:
        UserError: naming its path.
    """
    if model.config.num_scores:
        raise UserError(f"model.path {section.path} is a reward model; give a language model.")


def check_tokens(model: Model, texts: Iterable[Sequence[int] | np.ndarray]) -> None:
    """Raise if a text has a token id that the embedding has no row for: the look-up would quietly take another row.

    Raises:
        UserError: naming the id and the size of the vocabulary.
    """
    largest = max((int(np.max(text)) for text in texts if len(text)), default=0)
    if largest >= model.config.vocab_size:
        raise UserError(
            f"The tokenizer makes token id {largest}, and the model's vocab_size is {model.config.vocab_size}; "
            "give the model its own tokenizer, or resize its embedding."
        )


def check_trees(model: Model, trees: Sequence[Tree], max_length: int, setting: str = "data.max_length") -> None:
    """Raise if examples may be longer than the model has positions for, or have tokens that it does not know.

    Raises:
        UserError: naming both lengths, or the token.
    """
    check_tokens(model, (text for tree in trees for text in (tree.prompt, *tree.completions)))
    if max_length > model.config.max_position_embeddings:
        raise UserError(
            f"{setting} is {max_length}, and the model was made for {model.config.max_position_embeddings} "
            "positions (max_position_embeddings); lower it to that."
        )
