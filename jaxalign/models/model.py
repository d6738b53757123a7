"""The model of the package: a static, hashable description with pure functions of its parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxalign.errors import UserError
from jaxalign.logprobs import TokenStatistics, fused_token_logps, fused_token_statistics
from jaxalign.masking import Rows, gather_columns, visible
from jaxalign.models.attention import attention
from jaxalign.models.config import LoraConfig, ModelConfig
from jaxalign.models.decoder import REMAT_POLICIES, Attend, Decoder
from jaxalign.models.params import Params
from jaxalign.models.sharding import MESH_AXES, constrain, make_mesh, param_shardings


@dataclasses.dataclass(frozen=True)
class Model:
    """A Llama-family decoder. Its parameters are a separate nested dict of arrays.

    Attributes:
        config: the architecture.
        mesh: the devices; one device is the mesh (1, 1, 1).
        dtype: compute type of matmuls. Parameters keep their type and are cast where used.
        remat: ``none`` keeps every activation for the backward pass, ``dots`` the outputs of the projections,
            ``full`` only the layers' inputs (one more forward pass).
        lora: adapters of the projections (see ``jaxalign.models.lora``), or None.

    Raises:
        UserError: for another ``remat``, or a mesh whose axes are not those of ``make_mesh``.
    """

    config: ModelConfig
    mesh: Mesh = None  # type: ignore[assignment]  # filled in below: a default must not touch devices at import
    dtype: Any = jnp.float32
    remat: str = "dots"
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.mesh is None:
            object.__setattr__(self, "mesh", make_mesh())
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        if self.mesh.axis_names != MESH_AXES or any(t != AxisType.Auto for t in self.mesh.axis_types):
            raise UserError(
                f"The mesh has axes {self.mesh.axis_names} of types {self.mesh.axis_types}. "
                f"Make it with jaxalign.make_mesh, which names them {MESH_AXES}, all Auto."
            )
        if self.remat not in ("none", *REMAT_POLICIES):
            raise UserError(f"remat is {self.remat!r}. Give one of none, {', '.join(REMAT_POLICIES)}.")

    @property
    def wide_dtype(self) -> Any:
        """Type of logits, log-probs and scores: float32 or wider."""
        return jnp.promote_types(self.dtype, jnp.float32)

    def init(self, key: Array, dtype: Any = jnp.float32) -> Params:
        """Returns new parameters (normal, std ``config.initializer_range``), sharded over the mesh."""
        return jax.jit(lambda key: self.init_in_jit(key, dtype), out_shardings=self.param_shardings())(key)

    def init_in_jit(self, key: Array, dtype: Any = jnp.float32) -> Params:
        """Returns the parameters of ``init``, for use under jit, where unused ones are never computed."""
        module = Decoder(self, nnx.Rngs(params=key))
        return jax.tree.map(lambda p: p.astype(dtype), nnx.to_pure_dict(nnx.split(module)[1]))

    def param_shapes(self) -> Params:
        """Returns the tree of ``jax.ShapeDtypeStruct`` (float32) that ``params`` has to match."""
        return _abstract(self)[1]

    def param_shardings(self) -> Params:
        """Returns the ``NamedSharding`` of each parameter."""
        return param_shardings(self.config, self.mesh, self.param_shapes())

    def head(self, params: Params) -> Float[Array, "D V"]:
        """Returns the matrix from states to logits, in the compute dtype, sharded over the vocabulary only."""
        matrix, vocab_axis = self._head(params)
        return matrix if vocab_axis else matrix.T

    def _head(self, params: Params) -> tuple[Array, int]:
        """Returns the head as stored, and its vocabulary axis; a tied head is the embedding [V, D]."""
        if self.config.num_scores:
            raise UserError("A reward model has no language-model head. Give a language model.")
        if self.config.tie_word_embeddings:
            return constrain(params["embed"]["embedding"].astype(self.dtype), self.mesh, "vocab", None), 0
        return constrain(params["head"]["kernel"].astype(self.dtype), self.mesh, None, "vocab"), 1

    def encode(self, params: Params, rows: Rows) -> Float[Array, "R T D"]:
        """Returns the final-normed states of packed prompt trees (``rows`` without a microbatch axis)."""
        seen = visible(rows.branch, rows.position, rows.example, self.config.sliding_window)
        return self._states(params, rows.tokens, rows.position, seen)

    def _states(
        self, params: Params, tokens: Int[Array, "R T"], position: Int[Array, "R T"], seen: Bool[Array, "R T T"]
    ) -> Float[Array, "R T D"]:
        """Returns the final-normed states of tokens; ``seen`` is True where a token attends to another."""

        def attend(_: None, q: Array, k: Array, v: Array) -> tuple[Array, None]:
            return attention(q, k, v, seen), None

        return self.apply(params, tokens, position, attend)[0]

    def predictors(self, params: Params, rows: Rows) -> Float[Array, "R S D"]:
        """Returns the state that predicts each target slot's token, for ``token_statistics`` and ``values``."""
        return gather_columns(self.encode(params, rows), rows.source)

    def token_logps(self, params: Params, rows: Rows) -> Float[Array, "R S"]:
        """Returns each target slot's log-probability in nats, 0 where masked, without an array [R, T, V]."""
        head, vocab_axis = self._head(params)
        logps = fused_token_logps(self.predictors(params, rows), head, rows.target, vocab_axis=vocab_axis)
        return jnp.where(rows.mask, logps, 0)

    def token_statistics(self, params: Params, states: Float[Array, "R S D"], rows: Rows) -> TokenStatistics:
        """Returns each target slot's log-probability and entropy in nats from its predictor, 0 where masked."""
        head, vocab_axis = self._head(params)
        statistics = fused_token_statistics(states, head, rows.target, vocab_axis=vocab_axis)
        return TokenStatistics(*(jnp.where(rows.mask, value, 0) for value in statistics))

    def values(self, params: Params, states: Float[Array, "*B D"]) -> Float[Array, "*B"]:
        """Returns the value head's estimate of the return from each state, in float32 or wider.

        ``params["score"]["kernel"]`` [D, 1] is the head. It belongs to a model with one score, or is a separate head on
        another model's states.
        """
        return self._score(params, states)[..., 0]

    def scores(self, params: Params, rows: Rows) -> Float[Array, "R E K M"]:
        """Returns a reward model's M scores of each completion, in float32 or wider; 0 in unused slots.

        They are computed from the state of the completion's last token.
        """
        states = gather_columns(self.encode(params, rows), rows.last.reshape(rows.last.shape[0], -1))
        scores = self._score(params, states).reshape(*rows.last.shape, -1)
        return jnp.where(rows.example_mask[..., None, None], scores, 0)

    def _score(self, params: Params, states: Float[Array, "*B D"]) -> Float[Array, "*B M"]:
        """Applies the scalar heads to states."""
        kernel = params["score"]["kernel"].astype(self.dtype)
        return jnp.matmul(states, kernel, preferred_element_type=self.wide_dtype)

    def logits(
        self, params: Params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Returns the next-token logits of plain rows; ``mask`` is False on padding, which may be on either side."""
        mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask, bool)
        position = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
        seen = visible(jnp.zeros_like(tokens), position, jnp.where(mask, 0, -1), self.config.sliding_window)
        states = self._states(params, tokens, position, seen)
        return jnp.matmul(states, self.head(params), preferred_element_type=self.wide_dtype)

    def apply(
        self,
        params: Params,
        tokens: Int[Array, "R T"],
        position: Int[Array, "R T"],
        attend: Attend,
        per_layer: Any = None,
    ) -> tuple[Float[Array, "R T D"], Any]:
        """Runs the layers around the caller's attention (a cache, a kernel); see ``decoder.Attend``."""
        layers = params["layers"] if isinstance(params["layers"], tuple) else None
        if layers is not None:  # one tree per layer: see for_decoding
            params = {**params, "layers": layers[0]}
        return nnx.merge(_abstract(self)[0], params)(tokens, position, attend, per_layer, layers)

    def for_decoding(self, params: Params) -> Params:
        """Returns the parameters in the form that is fastest for a loop of one-token steps, for ``apply`` and ``head``.

        Parameters are cast to the compute type once, not at every step. On CPUs each layer gets its own tree, which is
        a second copy of the parameters. XLA's CPU compiler copies a scanned layer's weights out of their stack before
        use. With few rows that copy takes longer than the products.
        """

        def cast(path: tuple[Any, ...], leaf: Array) -> Array:
            return leaf if path[-1].key == "scale" else leaf.astype(self.dtype)  # norms compute in float32

        params = jax.tree_util.tree_map_with_path(cast, params)
        if self.mesh.devices.flat[0].platform != "cpu":
            return params
        return {**params, "layers": _unstack(params["layers"], self.config.num_hidden_layers)}


@functools.partial(jax.jit, static_argnums=1)
def _unstack(stacked: Any, count: int) -> tuple[Any, ...]:
    """Splits a tree along its leading axis into that many trees."""
    return tuple(jax.tree.map(lambda leaf: leaf[i], stacked) for i in range(count))  # noqa: B023


@functools.lru_cache(maxsize=32)
def _abstract(model: Model) -> tuple[Any, Params]:
    """Returns the module's static structure and the shapes of its parameters, without allocating any."""
    module = nnx.eval_shape(lambda: Decoder(model, nnx.Rngs(params=0)))
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)
