"""Hugging Face's names for the modules of a decoder."""

# Our module → Hugging Face's; those under `layers` repeat as model.layers.0, model.layers.1, ...
MODULES = {
    "embed": "model.embed_tokens",
    "layers.attention_norm": "input_layernorm",
    "layers.attention.q": "self_attn.q_proj",
    "layers.attention.k": "self_attn.k_proj",
    "layers.attention.v": "self_attn.v_proj",
    "layers.attention.o": "self_attn.o_proj",
    "layers.mlp_norm": "post_attention_layernorm",
    "layers.mlp.gate": "mlp.gate_proj",
    "layers.mlp.up": "mlp.up_proj",
    "layers.mlp.down": "mlp.down_proj",
    "norm": "model.norm",
    "head": "lm_head",
    "score": "score",
}
LINEAR = {name.removeprefix("layers."): hf_name for name, hf_name in MODULES.items() if hf_name.endswith("_proj")}
