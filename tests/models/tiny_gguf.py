"""Writes small GGUF files the way llama.cpp's converter does, for tests."""

import gguf
import numpy as np

NAMES = {
    "attention_norm.scale": "attn_norm.weight",
    "attention.q.kernel": "attn_q.weight",
    "attention.k.kernel": "attn_k.weight",
    "attention.v.kernel": "attn_v.weight",
    "attention.o.kernel": "attn_output.weight",
    "mlp_norm.scale": "ffn_norm.weight",
    "mlp.gate.kernel": "ffn_gate.weight",
    "mlp.up.kernel": "ffn_up.weight",
    "mlp.down.kernel": "ffn_down.weight",
}


def permute(weight, heads):
    """llama.cpp's `LlamaModel.permute`: a head's rows from half after half to pairs side by side."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def add_config(writer, config):
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)


def add_params(writer, config, params, kind=None):
    """All tensors of a model without biases; matrices quantised as `kind` where that is given."""

    def add(name, value):
        value = np.ascontiguousarray(value)
        if kind is None or value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)

    add("token_embd.weight", np.asarray(params["embed"]["embedding"]))
    add("output_norm.weight", np.asarray(params["norm"]["scale"]))
    if "head" in params:
        add("output.weight", np.asarray(params["head"]["kernel"]).T)
    for path, name in NAMES.items():
        leaf = params["layers"]
        for key in path.split("."):
            leaf = leaf[key]
        for layer, value in enumerate(np.asarray(leaf)):
            if path == "attention.q.kernel":
                value = permute(value.T, config.num_attention_heads).T
            if path == "attention.k.kernel":
                value = permute(value.T, config.num_key_value_heads).T
            add(f"blk.{layer}.{name}", value.T)


def add_tokenizer(writer, model, tokens, types, *, pre=None, merges=None, scores=None, ids=(), template=None):
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for name, index in dict(ids).items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", index)
    if template is not None:
        writer.add_chat_template(template)


def write(path, *steps, arch="llama"):
    """A file from steps that each take the writer."""
    writer = gguf.GGUFWriter(path, arch)
    for step in steps:
        step(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
