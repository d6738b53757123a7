"""Reads GGUF files of the Llama family: metadata, and tensors dequantised by the ``gguf`` package."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import UserError
from jaxalign.models.config import ModelConfig, RopeScaling, from_hf_config
from jaxalign.models.decoder import inverse_frequencies
from jaxalign.packages import import_package

# llama.cpp's names → Hugging Face's.
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: Path) -> Any:
    """Opens a file with ``gguf.GGUFReader``.

    Raises:
        UserError: if the ``gguf`` package is not installed, or the file is not a complete GGUF file.
    """
    gguf = import_package("gguf", "gguf", f"The file {path}")
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path}: not a complete GGUF file ({error}).") from error


def metadata(reader: Any) -> dict[str, Any]:
    """Returns the file's fields as Python values."""
    return {name: field.contents() for name, field in reader.fields.items()}


class GGUFCheckpoint:
    """The tensors of a GGUF file, under Hugging Face's names and in its layout."""

    def __init__(self, path: Path):
        self.path = path
        reader = open_gguf(path)
        fields = metadata(reader)
        if fields.get("split.count", 1) > 1:
            raise UserError(f"{path}: one of {fields['split.count']} parts. Merge them with llama-gguf-split first.")
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        rope_factors = tensors.pop(_ROPE_FACTORS, None)
        self._tensors = {_hf_name(name): tensor for name, tensor in tensors.items()}
        self.shapes = {name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self._tensors.items()}
        self.config = _config(path, fields, self.shapes, None if rope_factors is None else rope_factors.data)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Returns a slice of one tensor, dequantised to float32.

        Raises:
            UserError: for a quantisation that the ``gguf`` package cannot undo.
        """
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise UserError(
                f"{self.path}: tensor {name} is quantised as {kind}, which is not supported. "
                "Convert the file to another type."
            ) from error
        if "q_proj" in name:
            values = _halves(values, self.config.num_attention_heads)
        elif "k_proj" in name:
            values = _halves(values, self.config.num_key_value_heads)
        return values[index]


def _hf_name(name: str) -> str:
    """Translates ``blk.3.attn_q.weight`` to ``model.layers.3.self_attn.q_proj.weight``; unknown names stay."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return name
    layer, module, kind = match.groups()
    if layer is None:
        return f"{_OUTER[module]}.{kind}" if module in _OUTER else name
    return f"model.layers.{layer}.{_INNER[module]}.{kind}" if module in _INNER else name


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorders each head's rows from llama.cpp's order (rotary pairs adjacent) to Hugging Face's (two halves)."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _config(
    path: Path, fields: dict[str, Any], shapes: dict[str, tuple[int, ...]], rope_factors: np.ndarray | None
) -> ModelConfig:
    """Returns the architecture that a file's metadata and tensors describe."""
    model_type = fields.get("general.architecture")
    get = lambda name: fields.get(f"{model_type}.{name}")  # noqa: E731
    token = lambda name: fields.get(f"tokenizer.ggml.{name}_token_id")  # noqa: E731
    ends = dict.fromkeys(i for i in (token("eos"), token("eot")) if i is not None)
    config = from_hf_config(
        {
            "model_type": model_type,
            "vocab_size": shapes.get("model.embed_tokens.weight", (None,))[0],
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_hidden_layers": get("block_count"),
            "num_attention_heads": get("attention.head_count"),
            "num_key_value_heads": get("attention.head_count_kv"),
            "head_dim": get("attention.key_length") or get("rope.dimension_count"),
            "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
            "rope_theta": get("rope.freq_base"),
            "rope_scaling": _rope_scaling(get, rope_factors),
            "tie_word_embeddings": "lm_head.weight" not in shapes,
            "max_position_embeddings": get("context_length"),
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in shapes,
            "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in shapes,
            "sliding_window": get("attention.sliding_window"),
            "bos_token_id": token("bos"),
            "eos_token_id": list(ends),
            "pad_token_id": token("padding"),
        },
        where=str(path),
    )
    if rope_factors is not None:
        factors = inverse_frequencies(dataclasses.replace(config, rope_scaling=None)) / inverse_frequencies(config)
        if factors.shape != rope_factors.shape or not np.allclose(factors, rope_factors, rtol=1e-4):
            raise UserError(
                f"{path}: tensor {_ROPE_FACTORS} is not Llama 3's rotary scaling. Others are not supported."
            )
    return config


def _rope_scaling(get: Any, factors: np.ndarray | None) -> dict[str, Any] | None:
    """Returns the rotary scaling in the form of ``config.json``.

    llama.cpp stores Llama 3.1's scaling not as its four numbers but as a factor for each frequency. The largest is
    ``factor``. The other three numbers are assumed to be Llama 3's own; the caller checks them against the factors.
    """
    if factors is None:
        kind = get("rope.scaling.type")
        return None if kind in (None, "none") else {"rope_type": kind, "factor": get("rope.scaling.factor")}
    return dataclasses.asdict(RopeScaling("llama3", float(factors.max())))
