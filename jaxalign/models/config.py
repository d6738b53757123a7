"""The architecture of a Llama-family decoder, read from and written to Hugging Face's ``config.json``."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from jaxalign.errors import UserError

MODEL_TYPES = ("llama", "mistral")
ROPE_TYPES = ("default", "linear", "llama3")
_LANGUAGE, _SCORES = "ForCausalLM", "ForSequenceClassification"

# Defaults of `transformers` for fields that a file omits.
_COMMON: dict[str, Any] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "initializer_range": 0.02}
_COMMON |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "num_key_value_heads": None, "max_position_embeddings": 2048},
    "mistral": {**_COMMON, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of the rotary frequencies beyond the context length of pre-training.

    ``linear`` uses only ``factor``. ``llama3`` uses all four fields (the defaults are Llama 3's own).
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of frozen projections (Hu et al. 2021, arXiv:2106.09685).

    Args:
        rank: r, the rank of each update
        alpha: α; updates are scaled by α/r, or α/√r with rslora
        targets: a regular expression; a projection gets an adapter if it occurs in its name (self_attn.q_proj,
            mlp.up_proj, …); by default all do
        rslora: rank-stabilised scaling, α/√r (Kalajdzievski 2023, arXiv:2312.03732)
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = "_proj"
    rslora: bool = False

    @property
    def scale(self) -> float:
        """Factor of the product of an adapter's two matrices."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of a decoder; hashable, so that it can be a static argument of ``jax.jit``.

    With ``num_scores`` of 1 or more it is a reward model: that many scalar heads replace the language-model head.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    hidden_act: str = "silu"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    initializer_range: float = 0.02
    num_scores: int = 0


def from_hf_config(fields: Mapping[str, Any], *, where: str = "config.json") -> ModelConfig:
    """Returns the configuration that a ``config.json`` of ``transformers`` 4 or 5 describes.

    Args:
        fields: the file's contents. Omitted fields take the defaults of ``transformers``.
        where: the name of the file, for messages.

    Raises:
        UserError: for a model type, rotary scaling, activation or quantisation that is not supported, and for a field
            that is missing or has the wrong type.
    """
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(f"{where}: model_type {model_type!r} is not supported. Use one of {', '.join(MODEL_TYPES)}.")
    if fields.get("quantization_config"):
        raise UserError(f"{where}: quantization_config is not supported. Use the unquantised model or a .gguf file.")
    if fields.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act {fields['hidden_act']!r} is not supported. Use a model with silu.")

    fields = _DEFAULTS[model_type] | dict(fields)

    integer = functools.partial(_integer, where, fields)
    hidden_size, heads = integer("hidden_size"), integer("num_attention_heads")
    kv_heads = integer("num_key_value_heads", default=heads)
    head_dim = integer("head_dim", default=hidden_size // heads)
    if heads % kv_heads:
        raise UserError(f"{where}: num_attention_heads {heads} must be a multiple of num_key_value_heads {kv_heads}.")
    if head_dim % 2:
        raise UserError(f"{where}: head_dim {head_dim} must be even, because rotary embeddings rotate pairs.")
    max_positions = integer("max_position_embeddings")
    windowed = model_type == "mistral" and fields["sliding_window"] is not None
    rope_theta, rope_scaling = _rope(fields, max_positions, where)
    return ModelConfig(
        model_type=model_type,
        vocab_size=integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=integer("intermediate_size"),
        num_hidden_layers=integer("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_number(where, fields, "rms_norm_eps"),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tie_word_embeddings=bool(fields["tie_word_embeddings"]),
        max_position_embeddings=max_positions,
        attention_bias=model_type == "llama" and bool(fields.get("attention_bias", False)),
        mlp_bias=model_type == "llama" and bool(fields.get("mlp_bias", False)),
        sliding_window=integer("sliding_window") if windowed else None,
        bos_token_id=next(iter(token_ids(fields, "bos_token_id", where)), None),
        eos_token_ids=token_ids(fields, "eos_token_id", where),
        pad_token_id=next(iter(token_ids(fields, "pad_token_id", where)), None),
        initializer_range=_number(where, fields, "initializer_range"),
        num_scores=_num_scores(fields, model_type, where),
    )


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """Returns the contents of a ``config.json`` that ``transformers`` 4 and 5 both read."""
    kind = _SCORES if config.num_scores else _LANGUAGE
    fields: dict[str, Any] = {"architectures": [config.model_type.capitalize() + kind]}
    fields |= dataclasses.asdict(config)
    if scores := fields.pop("num_scores"):  # transformers counts labels by their names
        fields["id2label"] = {str(head): f"score_{head}" for head in range(scores)}
        fields["label2id"] = {name: int(head) for head, name in fields["id2label"].items()}
    eos = fields.pop("eos_token_ids")
    fields["eos_token_id"] = eos[0] if len(eos) == 1 else list(eos) or None
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "linear":
        fields["rope_scaling"] = {"rope_type": "linear", "factor": config.rope_scaling.factor}
    if config.model_type == "mistral":
        del fields["attention_bias"], fields["mlp_bias"]
    else:
        del fields["sliding_window"]
    return fields | {"dtype": "float32"}


def token_ids(fields: Mapping[str, Any], name: str, where: str) -> tuple[int, ...]:
    """Returns a field like ``eos_token_id`` (a number, a list, null, or omitted) as a tuple.

    Raises:
        UserError: for anything else.
    """
    value = fields.get(name)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise UserError(f"{where}: {name} must be a token id, a list of them or null, not {value!r}.")
    return ids


def _integer(where: str, fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Returns a field that must be a positive whole number; the default replaces null."""
    value = default if fields.get(name) is None else fields[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {name} must be a positive whole number, not {value!r}.")
    return value


def _number(where: str, fields: Mapping[str, Any], name: str) -> float:
    """Returns a field that must be a number."""
    if not isinstance(fields.get(name), int | float):
        raise UserError(f"{where}: {name} must be a number, not {fields.get(name)!r}.")
    return float(fields[name])


def _num_scores(fields: Mapping[str, Any], model_type: str, where: str) -> int:
    """Returns the number of a reward model's scalar heads, 0 for a language model.

    A reward model is a sequence classifier in ``transformers``.
    """
    named = fields.get("architectures") or [model_type.capitalize() + _LANGUAGE]
    known = {model_type.capitalize() + kind: kind for kind in (_LANGUAGE, _SCORES)}
    if not isinstance(named, list) or named[0] not in known:
        raise UserError(f"{where}: architectures is {named!r}; supported are {', '.join(known)}.")
    if known[named[0]] == _LANGUAGE:
        return 0
    labels = fields.get("id2label")
    scores = len(labels) if isinstance(labels, Mapping) else fields.get("num_labels", 2)  # transformers' own default
    if not isinstance(scores, int) or scores < 1:
        raise UserError(f"{where}: num_labels must be a positive whole number, not {scores!r}.")
    return scores


def _rope(fields: Mapping[str, Any], max_positions: int, where: str) -> tuple[float, RopeScaling | None]:
    """Returns theta and scaling.

    ``transformers`` 5 writes ``rope_parameters``; older versions write ``rope_theta`` and ``rope_scaling``.
    """
    key = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    rope = fields.get(key) or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"{where}: {key} must be an object with fields, or null, not {rope!r}.")
    theta = rope.get("rope_theta") or fields.get("rope_theta") or 10000.0
    if not (isinstance(theta, int | float) and 0 < theta < math.inf):
        raise UserError(f"{where}: rope_theta must be a positive number, not {theta!r}.")
    theta = float(theta)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise UserError(f"{where}: {key} of type {rope_type!r} is not supported. Use one of {', '.join(ROPE_TYPES)}.")
    if (rope.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not supported. It must be 1.")
    if rope_type == "default":
        return theta, None

    number = functools.partial(_number, f"{where}: {key} of type {rope_type!r}", rope)
    if rope_type == "linear":
        return theta, RopeScaling("linear", number("factor"))
    original = _integer(where, rope, "original_max_position_embeddings", default=max_positions)
    factor, low, high = (number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    return theta, RopeScaling("llama3", factor, low, high, original)
