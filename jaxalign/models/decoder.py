"""The Llama-family decoder as Flax NNX modules: RMSNorm, rotary attention with grouped queries, gated MLP.

Layers are stacked on a leading axis and scanned, so one layer is compiled whatever the depth. The caller passes the
attention (``attend``): training attends to packed rows, generation to a cache, and the layer is the same.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxalign.models.config import ModelConfig
from jaxalign.models.names import LINEAR
from jaxalign.models.sharding import constrain

if TYPE_CHECKING:
    from jaxalign.models.model import Model

# attend(per-layer input, q [R, T, H, h], k [R, T, G, h], v [R, T, G, h]) -> (output [R, T, H, h], values to return)
Attend = Callable[[Any, Array, Array, Array], tuple[Array, Any]]

REMAT_POLICIES = {
    # Keep the projections' outputs (the costly matmuls), recompute norms, activations and attention scores.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """Returns the rotary inverse frequencies θ^(-2i/h), i < h/2, scaled by ``config.rope_scaling``.

    ``linear`` divides all by ``factor`` (Chen et al. 2023, arXiv:2306.15595). ``llama3`` divides those whose
    wavelength exceeds original/low by ``factor``, keeps those below original/high, and blends in between
    (Llama 3.1, Grattafiori et al. 2024, arXiv:2407.21783, section 3.4.2 and its released code).
    """
    powers = config.rope_theta ** (np.arange(0, config.head_dim, 2) / config.head_dim)
    frequencies = np.float32(1) / powers.astype(np.float32)  # float32, as in the models' own training code
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    blend = (turns - low) / (high - low)
    blend = np.clip(blend, 0, 1)  # 0: long waves, all scaled; 1: short waves, kept
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotary_angles(config: ModelConfig, position: Int[Array, "R T"], dtype: Any) -> Float[Array, "R T h/2"]:
    """Returns position · inverse frequency, in float32 or wider."""
    dtype = jnp.promote_types(dtype, jnp.float32)
    return position[..., None].astype(dtype) * jnp.asarray(inverse_frequencies(config), dtype)


def rotate(x: Float[Array, "R T H h"], angles: Float[Array, "R T h/2"]) -> Float[Array, "R T H h"]:
    """Rotates the pairs (x_i, x_{i+h/2}) by the angles (RoPE, Su et al. 2021, eq. 34, in the half-split layout)."""
    cos, sin = jnp.cos(angles)[..., None, :].astype(x.dtype), jnp.sin(angles)[..., None, :].astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def dot_in_halves(x: Float[Array, "R T D"], kernel: Float[Array, "D E"], *_: Any, **options: Any) -> Array:
    """Computes x W as the sum of two products, over the first and the second half of D.

    It replaces the ``dot_general`` of ``nnx.Linear``. One running float32 sum over all of an MLP's inner width causes
    most of the logits' rounding error on CPUs. With two sums, SmolLM2's logits differ from those in float64 by at most
    1.1e-4 instead of 2.3e-4 (1,790 positions of HH).
    """
    halves = x.reshape(*x.shape[:-1], 2, -1), kernel.reshape(2, -1, kernel.shape[-1])
    width, half = x.ndim, x.ndim - 1
    return jax.lax.dot_general(*halves, (((width,), (1,)), ((half,), (0,))), **options).sum(0)


class Linear(nnx.Linear):
    """A projection x W + b, plus s (x A) B of rank r if ``lora`` names it (Hu et al. 2021, arXiv:2106.09685, eq. 3).

    B starts at zero, so a new adapter changes nothing. A is sampled from U(-1/√in, 1/√in), as in PEFT.
    """

    def __init__(self, model: Model, name: str, sizes: tuple[int, int], **options: Any):
        init = nnx.initializers.normal(model.config.initializer_range)
        super().__init__(*sizes, dtype=model.dtype, kernel_init=init, **options)
        self.lora = model.lora if model.lora is not None and re.search(model.lora.targets, LINEAR[name]) else None
        if self.lora is not None:
            init_a = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            self.lora_a = nnx.Param(init_a(options["rngs"].params(), (sizes[0], self.lora.rank)))
            self.lora_b = nnx.Param(jnp.zeros((self.lora.rank, sizes[1])))

    def __call__(self, x: Array) -> Array:
        """Projects x."""
        y = super().__call__(x)
        if self.lora is None:
            return y
        a, b = (matrix[...].astype(y.dtype) for matrix in (self.lora_a, self.lora_b))
        return y + (x.astype(y.dtype) @ a) @ b * self.lora.scale


class Attention(nnx.Module):
    """Projections and rotary embedding around the caller's attention."""

    def __init__(self, model: Model, rngs: nnx.Rngs):
        self.model, config = model, model.config
        width, head_dim = config.hidden_size, config.head_dim
        query, key = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        linear = functools.partial(Linear, model, use_bias=config.attention_bias, rngs=rngs)
        self.q = linear("attention.q", (width, query))
        self.k = linear("attention.k", (width, key))
        self.v = linear("attention.v", (width, key))
        self.o = linear("attention.o", (query, width))

    def __call__(self, x: Float[Array, "R T D"], angles: Float[Array, "R T h/2"], attend: Any) -> tuple[Array, Any]:
        """Returns the layer's attention output, and the extra value of ``attend``."""
        split = lambda y: y.reshape(*y.shape[:-1], -1, self.model.config.head_dim)  # noqa: E731
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        q = constrain(rotate(q, angles), self.model.mesh, "batch", None, "heads", None)
        k = constrain(rotate(k, angles), self.model.mesh, "batch", None, "kv_heads", None)
        v = constrain(v, self.model.mesh, "batch", None, "kv_heads", None)
        out, extra = attend(q, k, v)
        return self.o(out.reshape(*x.shape[:-1], -1)), extra


class MLP(nnx.Module):
    """The gated layer down(silu(gate(x)) · up(x)) (SwiGLU, Shazeer 2020, arXiv:2002.05202, eq. 6)."""

    def __init__(self, model: Model, rngs: nnx.Rngs):
        self.model = model
        width, inner = model.config.hidden_size, model.config.intermediate_size
        linear = functools.partial(Linear, model, use_bias=model.config.mlp_bias, rngs=rngs)
        self.gate = linear("mlp.gate", (width, inner))
        self.up = linear("mlp.up", (width, inner))
        # With a tensor axis each device already sums its own part. In narrower types each half would be rounded.
        in_halves = model.dtype == jnp.float32 and model.mesh.shape["tensor"] == 1 and inner % 2 == 0
        self.down = linear("mlp.down", (inner, width), **({"dot_general": dot_in_halves} if in_halves else {}))

    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        """Applies the layer."""
        return self.down(constrain(jax.nn.silu(self.gate(x)) * self.up(x), self.model.mesh, "batch", None, "mlp"))


class Block(nnx.Module):
    """One pre-norm layer."""

    def __init__(self, model: Model, rngs: nnx.Rngs):
        self.model = model
        self.attention_norm = _norm(model, rngs)
        self.attention = Attention(model, rngs)
        self.mlp_norm = _norm(model, rngs)
        self.mlp = MLP(model, rngs)

    def __call__(self, x: Float[Array, "R T D"], angles: Float[Array, "R T h/2"], attend: Any) -> tuple[Array, Any]:
        """Returns the states after the layer, and the extra value of ``attend``."""
        attended, extra = self.attention(self.attention_norm(x), angles, attend)
        x = constrain(x + attended, self.model.mesh, "batch", None, None)
        return constrain(x + self.mlp(self.mlp_norm(x)), self.model.mesh, "batch", None, None), extra


class Decoder(nnx.Module):
    """Embedding, scanned layers, final norm, and a head.

    A tied model has no head of its own. A reward model has scalar heads.
    """

    def __init__(self, model: Model, rngs: nnx.Rngs):
        self.model, config, dtype = model, model.config, model.dtype
        init = nnx.initializers.normal(config.initializer_range)
        self.embed = nnx.Embed(config.vocab_size, config.hidden_size, dtype=dtype, embedding_init=init, rngs=rngs)
        self.layers = nnx.vmap(lambda keys: Block(model, keys))(rngs.split(config.num_hidden_layers))
        self.norm = _norm(model, rngs)
        output = functools.partial(nnx.Linear, config.hidden_size, use_bias=False, dtype=dtype, rngs=rngs)
        if config.num_scores:
            # As in the summarisation reward models (Stiennon et al. 2020, arXiv:2009.01325): std 1/√(width + 1).
            score_init = nnx.initializers.normal((config.hidden_size + 1) ** -0.5)
            self.score = output(config.num_scores, kernel_init=score_init)
        elif not config.tie_word_embeddings:
            self.head = output(config.vocab_size, kernel_init=init)

    def __call__(
        self,
        tokens: Int[Array, "R T"],
        position: Int[Array, "R T"],
        attend: Attend,
        per_layer: Any,
        layers: tuple[Any, ...] | None = None,
    ) -> tuple[Float[Array, "R T D"], Any]:
        """Returns the final-normed states, and the extra values of ``attend``, stacked over layers.

        ``per_layer`` is None or a tree of arrays with a leading layer axis; ``attend`` receives its slices (a cache).
        If ``layers`` gives each layer's parameters separately, the layers are unrolled and not scanned. Then
        ``per_layer`` and the extra values are tuples with one tree per layer.
        """
        # The table is gathered along fsdp while in use. Otherwise the lookup would split the states along their width.
        model = self.model
        table = constrain(self.embed.embedding[...].astype(model.dtype), model.mesh, "vocab", None)
        x = constrain(jnp.take(table, tokens, axis=0, mode="clip"), model.mesh, "batch", None, None)
        angles = rotary_angles(model.config, position, model.dtype)
        graphdef, stacked = nnx.split(self.layers)

        def layer(x: Array, slices: tuple[Any, Any]) -> tuple[Array, Any]:
            params, given = slices
            return nnx.merge(graphdef, params)(x, angles, functools.partial(attend, given))

        if model.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[model.remat], prevent_cse=False)
        if layers is None:
            x, extras = jax.lax.scan(layer, x, (stacked, per_layer))
            return self.norm(x), extras
        extras = []
        for slices in zip(layers, per_layer, strict=True):
            x, extra = layer(x, slices)
            extras.append(extra)
        return self.norm(x), tuple(extras)


def _norm(model: Model, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Returns a new RMSNorm of the model's width."""
    return nnx.RMSNorm(model.config.hidden_size, epsilon=model.config.rms_norm_eps, dtype=model.dtype, rngs=rngs)
