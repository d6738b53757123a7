"""The fused head compared with the plain one: time at V = 49,152, and memory as the vocabulary grows.

    python tests/bench/fused_head.py

Both compute value and gradients to states and head, in float32. Times are medians of runs in turn, so that both sides
see the same load. Memory is the compiled program's scratch space, without inputs, value and gradients.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from jaxalign.logprobs import fused_token_logps, token_logps

WIDTH, RUNS = 576, 9


def plain(hidden, head, targets, vocab_axis):
    return jnp.sum(token_logps(hidden @ (head if vocab_axis else head.T), targets))


def fused(hidden, head, targets, vocab_axis):
    return jnp.sum(fused_token_logps(hidden, head, targets, vocab_axis=vocab_axis))


def shapes(tokens, vocab, vocab_axis):
    head = (WIDTH, vocab) if vocab_axis else (vocab, WIDTH)
    ids = jax.ShapeDtypeStruct((tokens,), jnp.int32)
    return jax.ShapeDtypeStruct((tokens, WIDTH), jnp.float32), jax.ShapeDtypeStruct(head, jnp.float32), ids


def compiled(function, tokens, vocab, vocab_axis):
    program = jax.jit(jax.value_and_grad(lambda *args: function(*args, vocab_axis), (0, 1)))
    return program.lower(*shapes(tokens, vocab, vocab_axis)).compile()


def seconds(program, args):
    start = time.perf_counter()
    jax.block_until_ready(program(*args))
    return time.perf_counter() - start


def main():
    print("tokens  head     fused s  plain s  ratio")
    for tokens in (256, 1024, 2048):
        for vocab_axis, name in ((1, "[D, V]"), (0, "[V, D]")):
            keys = jax.random.split(jax.random.key(0), 3)
            hidden, head, ids = shapes(tokens, 49152, vocab_axis)
            args = (
                jax.random.normal(keys[0], hidden.shape),
                jax.random.normal(keys[1], head.shape) * 0.02,
                jax.random.randint(keys[2], ids.shape, 0, 49152),
            )
            programs = [compiled(function, tokens, 49152, vocab_axis) for function in (fused, plain)]
            runs = [[seconds(program, args) for program in programs] for _ in range(RUNS + 1)][1:]
            medians = [statistics.median(side) for side in zip(*runs, strict=True)]
            print(
                f"{tokens:>6}  {name}  {medians[0]:8.3f} {medians[1]:8.3f} {medians[0] / medians[1]:6.2f}", flush=True
            )
    print("\nscratch MiB, 1024 tokens  fused   plain")
    for vocab in (49152, 128256, 262144):
        sizes = [compiled(f, 1024, vocab, 0).memory_analysis().temp_size_in_bytes / 2**20 for f in (fused, plain)]
        print(f"V = {vocab:>7,}            {sizes[0]:8.0f}{sizes[1]:8.0f}", flush=True)


if __name__ == "__main__":
    main()
