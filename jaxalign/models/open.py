"""Opens the model that a section of a configuration describes, and checks that a model fits its use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxalign.data.trees import Tree
from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.model import Model
from jaxalign.models.params import Params, union
from jaxalign.models.sharding import make_mesh, replicated_axes
from jaxalign.models.weights import load_model
from jaxalign.reporting import Report, silent
from jaxalign.settings import MeshSection, ModelSection


def open_mesh(section: MeshSection) -> Mesh:
    """Returns the mesh that a section describes."""
    return make_mesh(section.data, section.fsdp, section.tensor)


def open_model(section: ModelSection, mesh: Mesh, report: Report = silent) -> tuple[Model, Params]:
    """Loads the model that a section describes, with its adapters merged into it.

    Args:
        section: path, adapter, compute dtype and rematerialisation.
        mesh: devices to spread the parameters over.
        report: called with the model's size and with each axis that the mesh does not divide.

    Returns:
        ``(model, params)``, as :func:`jaxalign.load_model` does.

    Raises:
        UserError: if the files do not make a model, or the adapter belongs to a reward model and the base does not.
    """
    if not section.path:
        raise UserError("model.path is not set. Name a model, or pass model=(model, params).")
    model, params = load_model(section.path, mesh=mesh, dtype=jnp.dtype(section.dtype), remat=section.remat)
    if section.adapter is not None:
        adapted, adapters = lora.load(section.adapter, model)
        if adapted.config.num_scores != model.config.num_scores:
            raise UserError(
                f"{section.adapter} adapts a reward model, and {section.path} is a language model. "
                "Use it as a reward model's adapter."
            )
        model, params = lora.merge(adapted, union(adapters, params))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    report(f"model: {size / 1e6:.1f}M parameters on {mesh.size} device(s)")
    for reason in replicated_axes(model.config, mesh).values():
        report(reason)
    return model, params


def check_language_model(model: Model, path: object = "The model") -> None:
    """Raises UserError if the model is a reward model.

    Args:
        model: the model.
        path: name of the model in the message.
    """
    if model.config.num_scores:
        raise UserError(f"{path} is a reward model. Give a language model.")


def check_reward_model(model: Model, path: object = "The model") -> None:
    """Raises UserError if the model is a language model.

    Args:
        model: the model.
        path: name of the model in the message.
    """
    if not model.config.num_scores:
        raise UserError(f"{path} is not a reward model: it has no score head. Train one, or give a reward model.")


def check_tokens(model: Model, texts: Iterable[Sequence[int] | np.ndarray]) -> None:
    """Raises UserError if a text has a token id that the embedding has no row for.

    JAX clamps an index that is out of range, so the look-up would silently take another row.
    """
    largest = max((int(np.max(text)) for text in texts if len(text)), default=0)
    if largest >= model.config.vocab_size:
        raise UserError(
            f"The tokenizer makes token id {largest}, and the model's vocab_size is {model.config.vocab_size}. "
            "Give the model its own tokenizer, or resize its embedding."
        )


def check_positions(model: Model, length: int, name: str) -> None:
    """Raises UserError if texts may be longer than the model has positions for.

    Args:
        model: the model.
        length: maximum number of tokens.
        name: what has that length, for the message.
    """
    if length > model.config.max_position_embeddings:
        raise UserError(
            f"{name} is {length}, and the model was made for {model.config.max_position_embeddings} "
            "positions (max_position_embeddings). Lower it to that."
        )


def check_trees(model: Model, trees: Sequence[Tree], max_length: int, name: str = "max_length") -> None:
    """Raises UserError if the trees have tokens that the model does not know, or may be longer than its positions.

    Args:
        model: the model.
        trees: examples.
        max_length: maximum number of tokens of an example.
        name: name of ``max_length`` in the message.
    """
    check_tokens(model, (text for tree in trees for text in (tree.prompt, *tree.completions)))
    check_positions(model, max_length, name)
