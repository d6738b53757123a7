"""Llama-family decoders: architecture, parameters, adapters, files and tokenizers."""
