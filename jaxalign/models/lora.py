"""LoRA: low-rank adapters of frozen projections. They are initialised, merged, saved and loaded here.

The adapters are separate parameters, so a fine-tuned model is two trees::

    model    = dataclasses.replace(base_model, lora=LoraConfig(rank=16))
    adapters = lora.init(model, key)          # trained: {"layers": {"attention": {"q": {"lora_a": …, "lora_b": …}}}}
    params   = params.union(adapters, base)   # parameters of the fine-tuned model
    base_model and base                       # the model before training, without a copy

``loop.make_step(..., fixed=base)`` trains the adapters alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from jaxalign.errors import UserError
from jaxalign.models.config import LoraConfig
from jaxalign.models.model import Model
from jaxalign.models.names import LINEAR
from jaxalign.models.params import Params, partition
from jaxalign.paths import write_whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FACTORS = {"lora_a": "lora_A", "lora_b": "lora_B"}
HEADS = "base_model.model.score.weight"


def is_adapter(path: tuple[str, ...]) -> bool:
    """Returns whether the parameter of this path belongs to an adapter."""
    return path[-1] in FACTORS


def is_trained(path: tuple[str, ...]) -> bool:
    """Returns whether LoRA trains the parameter of this path: an adapter, or a reward model's heads."""
    return is_adapter(path) or path[0] == "score"


def check_lora_config(config: LoraConfig) -> None:
    """Raises if the adapters cannot be built.

    Raises:
        UserError: for a rank or alpha that is not positive, or targets that match no projection.
    """
    if config.rank < 1 or not 0 < config.alpha < float("inf"):
        raise UserError(f"lora.rank is {config.rank} and lora.alpha is {config.alpha}. Both must be positive.")
    try:
        named = any(re.search(config.targets, name) for name in LINEAR.values())
    except re.error as error:
        raise UserError(
            f"lora.targets {config.targets!r} is not a regular expression ({error}). Correct it."
        ) from error
    if not named:
        raise UserError(f"lora.targets {config.targets!r} matches none of {', '.join(LINEAR.values())}.")


def base_model(model: Model) -> Model:
    """Returns the model without its adapters."""
    return dataclasses.replace(model, lora=None)


def base_params(params: Params) -> Params:
    """Returns a tree without the adapters in it."""
    return partition(params, is_adapter)[1]


def init(model: Model, key: Array, dtype: Any = jnp.float32) -> Params:
    """Returns new adapters of a model with ``lora``, on its mesh.

    A ~ U(-1/√in, 1/√in) and B = 0, so that the model computes the same as before.

    Raises:
        UserError: as :func:`check_lora_config`, or if the model has no ``lora``.
    """
    if model.lora is None:
        raise UserError("The model has no lora. Give it one: dataclasses.replace(model, lora=LoraConfig(rank=16)).")
    check_lora_config(model.lora)
    places, _ = partition(model.param_shardings(), is_adapter)
    return jax.jit(lambda key: partition(model.init_in_jit(key, dtype), is_adapter)[0], out_shardings=places)(key)


def merge(model: Model, params: Params) -> tuple[Model, Params]:
    """Returns the plain model that computes the same: every adapted W becomes W + s A B.

    Args:
        model: with ``lora``.
        params: adapters and base in one tree (``params.union``). Other leaves are returned as they are, not copied.
    """
    assert model.lora is not None
    scale = model.lora.scale

    @jax.jit
    def fold(kernel: Array, a: Array, b: Array) -> Array:
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        # The result is stored, so accelerators must not use their reduced default precision for float32 products.
        product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=wide)
        return (kernel + scale * product).astype(kernel.dtype)

    def merge_tree(tree: Params) -> Params:
        if not isinstance(tree, dict):
            return tree
        merged = {name: merge_tree(value) for name, value in tree.items() if name not in FACTORS}
        if "lora_a" in tree:
            merged["kernel"] = fold(tree["kernel"], tree["lora_a"], tree["lora_b"])
        return merged

    return base_model(model), merge_tree(params)


def save(directory: str | Path, model: Model, adapters: Params, base_path: str = "") -> None:
    """Writes adapters in PEFT's layout (adapter_config.json, adapter_model.safetensors), for PEFT or :func:`load`.

    A reward model's heads are written to the same file, as PEFT's ``modules_to_save``.

    Args:
        directory: created if it does not exist.
        model: with ``lora``.
        adapters: the trained parameters.
        base_path: the base model's name, recorded in adapter_config.json.

    Raises:
        UserError: if the directory cannot be written.
    """
    assert model.lora is not None
    directory = Path(directory).expanduser()
    targets = sorted({name.split(".")[-1] for _, name in _targets(model)})
    fields = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if model.config.num_scores else "CAUSAL_LM",
        "base_model_name_or_path": base_path,
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "use_rslora": model.lora.rslora,
        "target_modules": targets,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": ["score"] if model.config.num_scores else None,
    }
    tensors = {}
    if model.config.num_scores:
        tensors[HEADS] = np.ascontiguousarray(np.asarray(adapters["score"]["kernel"]).T)
    matrices = flatten_dict(adapters)
    for (path, layer), name in _tensor_names(model).items():
        tensors[name] = np.ascontiguousarray(np.asarray(matrices[path][layer]).T)  # PyTorch stores [out, in]
    write_whole(directory / WEIGHTS, safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    write_whole(directory / CONFIG, json.dumps(fields, indent=2) + "\n")


def load(directory: str | Path, model: Model) -> tuple[Model, Params]:
    """Loads adapters that :func:`save` or PEFT wrote.

    Adapters of a reward model contain its heads, and turn a language model into a reward model. Omit the language
    model's head when joining the two (``params.union(adapters, trunk)``).

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        model: the base model.

    Returns:
        (the model with ``lora``, the adapters on its mesh).

    Raises:
        UserError: for files that are missing, broken, or of another model or kind of adapter.
    """
    directory = Path(directory).expanduser()
    try:
        fields = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        tensors = safetensors.numpy.load_file(directory / WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{directory}: {CONFIG} and {WEIGHTS} cannot be read ({error}). Check the path.") from error
    lora = _from_peft(directory / CONFIG, fields)
    check_lora_config(lora)
    if HEADS in tensors:
        config = dataclasses.replace(model.config, num_scores=len(tensors[HEADS]))
        model = dataclasses.replace(model, config=config)
    model = dataclasses.replace(model, lora=lora)
    shapes, _ = partition(model.param_shapes(), is_trained)
    places, _ = partition(model.param_shardings(), is_trained)
    names = _tensor_names(model)
    heads = {HEADS} if model.config.num_scores else set()
    if missing := sorted({*names.values(), *heads} ^ set(tensors)):
        raise UserError(
            f"{directory / WEIGHTS}: tensor {missing[0]} is in only one of the file and the model. "
            "Use the base model it was trained with."
        )

    def read(path: Any, shape: jax.ShapeDtypeStruct, place: Any) -> jax.Array:
        keys = tuple(entry.key for entry in path)
        if keys[0] == "score":
            value = tensors[HEADS].T
        else:
            value = np.stack([tensors[names[keys, layer]].T for layer in range(shape.shape[0])])
        if value.shape != shape.shape:
            raise UserError(
                f"{directory / WEIGHTS}: {'.'.join(keys)} has shape {value.shape}, the model's {shape.shape}."
            )
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index].astype(np.float32))

    return model, jax.tree_util.tree_map_with_path(read, shapes, places)


# Fields of PEFT's variants of LoRA, each with the values that mean plain LoRA.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "bias": (None, "none"),
    "fan_in_fan_out": (None, False),
    "modules_to_save": (None, [], ["score"]),
    "layers_to_transform": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "init_lora_weights": (None, True, False, "gaussian"),  # other values change the base too
}


def _from_peft(file: Path, fields: Any) -> LoraConfig:
    """Returns the configuration that an adapter_config.json describes."""
    if not isinstance(fields, dict):
        raise UserError(f"{file}: contains a {type(fields).__name__}, not an object with fields.")
    for name, plain in _PLAIN.items():
        if fields.get(name) not in plain:
            raise UserError(f"{file}: {name} is {fields.get(name)!r}. Only plain LoRA is supported.")
    modules, rank, alpha = (fields.get(name) for name in ("target_modules", "r", "lora_alpha"))
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise UserError(f"{file}: target_modules must be a list of names, not {modules!r}.")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UserError(f"{file}: r must be a whole number and lora_alpha a number, not {rank!r} and {alpha!r}.")
    targets = "(^|\\.)(" + "|".join(map(re.escape, modules)) + ")$"
    return LoraConfig(rank, alpha, targets, bool(fields.get("use_rslora")))


def _targets(model: Model) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields the path and Hugging Face's name of each adapted projection."""
    assert model.lora is not None
    for name, hf_name in LINEAR.items():
        if re.search(model.lora.targets, hf_name):
            yield ("layers", *name.split(".")), hf_name


def _tensor_names(model: Model) -> dict[tuple[tuple[str, ...], int], str]:
    """Maps (path of an adapter's stacked matrix, layer) to the tensor's name in PEFT's file."""
    return {
        ((*path, factor), layer): f"base_model.model.model.layers.{layer}.{name}.{peft_name}.weight"
        for path, name in _targets(model)
        for factor, peft_name in FACTORS.items()
        for layer in range(model.config.num_hidden_layers)
    }
