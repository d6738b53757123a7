"""Reads and writes models in Hugging Face's layout, and reads GGUF files, without PyTorch.

Tensors are read one at a time into the stacked and sharded parameters, and only the part that a device needs. They are
written the same way. PyTorch stores a linear layer's weight as [out, in], this package as [in, out].
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeAlias

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from jax.sharding import Mesh, Sharding

from jaxalign.errors import UserError
from jaxalign.models.config import ModelConfig, from_hf_config, to_hf_config, token_ids
from jaxalign.models.gguf import GGUFCheckpoint
from jaxalign.models.model import Model
from jaxalign.models.names import MODULES
from jaxalign.models.params import Params
from jaxalign.models.paths import resolve

SHARD_BYTES = 5 * 10**9
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """Layout of one parameter in a file: one tensor, or one per layer; ``transposed`` if its axes are swapped there."""

    names: list[str]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of each tensor in the file."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def load_model(
    path_or_hub_id: str | Path, *, mesh: Mesh | None = None, dtype: Any = jnp.float32, remat: str = "dots"
) -> tuple[Model, Params]:
    """Loads a model and its parameters from a Hugging Face directory, a .gguf file, ``package:file``, or a hub id.

    Args:
        path_or_hub_id: config.json with one or many safetensors files; or a GGUF file, whose weights are dequantised.
        mesh: devices to shard the parameters over; None is one device.
        dtype: compute type of the model; parameters are float32, whatever the type in the file.
        remat: see ``Model``.

    Returns:
        ``(model, params)``: ``model`` is static and hashable, ``params`` a nested dict of arrays on the mesh.

    Raises:
        UserError: for files that are missing, broken, of an unsupported model, or that do not fit their configuration.
    """
    path = resolve(path_or_hub_id)
    checkpoint: Checkpoint = SafetensorsCheckpoint(path) if path.is_dir() else GGUFCheckpoint(path)
    model = Model(checkpoint.config, mesh, dtype, remat)  # type: ignore[arg-type]
    leaves = param_leaves(model)
    _check_tensors(checkpoint, leaves)
    return model, jax.tree.map(functools.partial(_read_leaf, checkpoint), leaves, model.param_shardings())


def read_config(path: Path) -> ModelConfig:
    """Returns the architecture of a directory, with or without weights, or of a .gguf file."""
    return _directory_config(path) if path.is_dir() else GGUFCheckpoint(path).config


def _directory_config(path: Path) -> ModelConfig:
    config = from_hf_config(_read_json(path / "config.json"), where=str(path / "config.json"))
    file = path / "generation_config.json"
    if not file.exists():
        return config
    eos = token_ids(_read_json(file), "eos_token_id", str(file))  # all end tokens; config.json may name only one
    return dataclasses.replace(config, eos_token_ids=eos or config.eos_token_ids)


class SafetensorsCheckpoint:
    """config.json and one or many safetensors files in a directory."""

    def __init__(self, path: Path):
        self.path = path
        self.config = _directory_config(path)
        self._slices: dict[str, Any] = {}
        for file in self._files():
            try:
                handle = safetensors.safe_open(file, framework="numpy")
                self._slices |= {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"{file}: not a complete safetensors file ({error}). Copy it again.") from error
        self.shapes = {name: tuple(part.get_shape()) for name, part in self._slices.items()}

    def _files(self) -> list[Path]:
        if (self.path / _INDEX).exists():
            listed = _read_json(self.path / _INDEX).get("weight_map", {})
            return [self.path / name for name in sorted(set(listed.values()))]
        if not (self.path / _WEIGHTS).exists():
            raise UserError(f"{self.path}: neither {_WEIGHTS} nor {_INDEX} exists. Save the model as safetensors.")
        return [self.path / _WEIGHTS]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Reads a slice of one tensor from the file.

        Raises:
            UserError: if the tensor is quantised.
        """
        part = self._slices[name]
        if part.get_dtype() not in _FLOATS:
            raise UserError(f"{self.path}: tensor {name} is {part.get_dtype()}. Supported are {', '.join(_FLOATS)}.")
        return part[index]


# Named tensors on disk, under Hugging Face's names.
Checkpoint: TypeAlias = SafetensorsCheckpoint | GGUFCheckpoint


def param_leaves(model: Model) -> Any:
    """Returns a ``Leaf`` for every parameter, in a tree of the parameters' structure."""

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Leaf:
        *place, kind = (entry.key for entry in path)
        stacked = place[0] == "layers"
        name = MODULES[".".join(place)] + (".bias" if kind == "bias" else ".weight")
        prefixes = [f"model.layers.{layer}." for layer in range(model.config.num_hidden_layers)] if stacked else [""]
        return Leaf([prefix + name for prefix in prefixes], shape.shape, stacked, transposed=kind == "kernel")

    return jax.tree_util.tree_map_with_path(leaf, model.param_shapes())


def _check_tensors(checkpoint: Checkpoint, leaves: Any) -> None:
    """Raises UserError for the first tensor that is missing, of another shape, or not the model's."""
    wanted = {name: leaf.tensor_shape for leaf in jax.tree.leaves(leaves) for name in leaf.names}
    for name, shape in wanted.items():
        if name not in checkpoint.shapes:
            raise UserError(f"{checkpoint.path}: tensor {name} is missing. The files do not match their configuration.")
        if checkpoint.shapes[name] != shape:
            raise UserError(
                f"{checkpoint.path}: tensor {name} has shape {checkpoint.shapes[name]}, but the configuration makes it "
                f"{shape}. Correct config.json or the file."
            )
    for name in checkpoint.shapes:
        # Files may contain what is computed here (rotary frequencies) or tied (the head).
        if name not in wanted and not name.endswith("rotary_emb.inv_freq") and name != "lm_head.weight":
            raise UserError(
                f"{checkpoint.path}: tensor {name} does not belong to a {checkpoint.config.model_type} model."
            )


def _read_leaf(checkpoint: Checkpoint, leaf: Leaf, sharding: Sharding) -> jax.Array:
    """Reads one parameter onto its devices, in float32."""

    def read(index: Any) -> np.ndarray:  # a slice for each axis
        out = np.empty(sharding.shard_shape(leaf.shape), np.float32)
        parts, names, index = (out, leaf.names[index[0]], index[1:]) if leaf.stacked else ([out], leaf.names, index)
        for part, name in zip(parts, names, strict=True):
            tensor = checkpoint.read(name, index[::-1] if leaf.transposed else index)
            part[...] = tensor.T if leaf.transposed else tensor
        return out

    return jax.make_array_from_callback(leaf.shape, sharding, read)


def save_model(directory: str | Path, model: Model, params: Params, tokenizer: Any = None) -> None:
    """Writes a model in Hugging Face's layout, for ``load_model`` or ``transformers``.

    Everything is written to a temporary directory and then moved into place, so that a failure leaves no partial files.
    Existing weights are replaced.

    Args:
        directory: created if it does not exist.
        model: describes the parameters.
        params: written in the types they have.
        tokenizer: a ``transformers`` tokenizer to save with the model.

    Raises:
        UserError: if the directory cannot be written, or a reward model has no padding token apart from its end token.
    """
    if model.config.num_scores:
        config, tokenizer = own_padding(model.config, tokenizer)
        model = dataclasses.replace(model, config=config)
    directory = Path(directory).expanduser()
    is_new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for abandoned in directory.glob(".saving-*"):  # by a process that was killed
            shutil.rmtree(abandoned)
        # Inside the directory: the same file system, and the only place known to be writable.
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as scratch:
            staging = Path(scratch) / "model"
            staging.mkdir()
            _write(staging, model, params, tokenizer)
            # config.json is removed first and written last: without it, a directory is not loaded as a model.
            for stale in [directory / "config.json", directory / _INDEX, *directory.glob("model*.safetensors")]:
                stale.unlink(missing_ok=True)
            for file in sorted(staging.iterdir(), key=lambda file: file.name == "config.json"):
                os.replace(file, directory / file.name)
    except (OSError, safetensors.SafetensorError) as error:
        if is_new:
            shutil.rmtree(directory, ignore_errors=True)
        raise UserError(
            f"{directory}: the model cannot be written ({getattr(error, 'strerror', None) or error}). "
            "Choose another place."
        ) from error


def _write(staging: Path, model: Model, params: Params, tokenizer: Any) -> None:
    """Writes all files of a model into an existing directory."""
    dtype = jax.tree.leaves(params)[0].dtype
    fields = to_hf_config(model.config) | {"dtype": str(dtype)}
    _write_json(staging / "config.json", fields)
    ids = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id") if fields[name] is not None}
    _write_json(staging / "generation_config.json", ids)
    if tokenizer is not None:
        tokenizer.save_pretrained(staging)
    # Each tensor as (parameter, its leaf, layer), so that only those of one file are copied to the host at a time.
    places = {
        name: (value, leaf, layer)
        for leaf, value in zip(jax.tree.leaves(param_leaves(model)), jax.tree.leaves(params), strict=True)
        for layer, name in enumerate(leaf.names)
    }
    split = huggingface_hub.split_state_dict_into_shards_factory(
        places,
        get_storage_size=lambda place: place[0].nbytes // len(place[1].names),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _tensor(*places[name]) for name in names}
        safetensors.numpy.save_file(tensors, staging / file, metadata={"format": "pt"})
        shutil.copymode(staging / "config.json", staging / file)  # safetensors makes it readable only by its owner
    if split.is_sharded:
        _write_json(staging / _INDEX, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def own_padding(config: ModelConfig, tokenizer: Any) -> tuple[ModelConfig, Any]:
    """Returns a configuration and a tokenizer whose padding token is not an end token.

    ``transformers`` scores the last token that is not padding. If padding is also the end token (a common setting), it
    scores the token before the end instead.

    Raises:
        UserError: if the tokenizer has no such token, or is missing and the configuration names none.
    """
    ends = set(config.eos_token_ids)
    if tokenizer is None:
        if config.pad_token_id is None or config.pad_token_id in ends:
            raise UserError("A reward model's padding token must not be its end token. Save it with its tokenizer.")
        return config, None
    ends.add(tokenizer.eos_token_id)
    special = [id for id, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    candidates = [tokenizer.pad_token_id, config.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, *special]
    free = [id for id in candidates if id is not None and id not in ends and id < config.vocab_size]
    if not free:
        raise UserError("The tokenizer has only its end token to pad with. Add a padding token to it.")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(free[0])
    return dataclasses.replace(config, pad_token_id=free[0]), tokenizer


_layer = jax.jit(lambda stack, layer: stack[layer])


def _tensor(value: jax.Array, leaf: Leaf, layer: int) -> np.ndarray:
    """Returns one tensor on the host in the file's layout; only this layer of a stack is copied from the devices."""
    tensor = np.asarray(_layer(value, layer) if leaf.stacked else value)
    return np.ascontiguousarray(tensor.T if leaf.transposed else tensor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}). A model directory needs it.") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: contains a {type(fields).__name__}, not an object with fields.")
    return fields


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
