"""``jaxalign generate``: answers to prompts."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jax
from rich.console import Console

from jaxalign.checkpoint import check_writable
from jaxalign.errors import UserError
from jaxalign.models.open import open_mesh, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.paths import write_whole
from jaxalign.rollout import Sampling, stop_strings, stream_text
from jaxalign.rollout.decode import SEGMENT
from jaxalign.rollout.text import encode_prompts, read_prompts
from jaxalign.settings import MeshSection, ModelSection, check_ranges

# Sampling is checked where it is built.
RANGES = dict.fromkeys(("max_new_tokens", "num_completions", "limit", "batch_size"), (1.0, math.inf))

REQUIRED = ("model.path",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sample answers from a model.

    Args:
        model: which model
        prompt: one prompt
        prompts: a file of prompts instead: .jsonl, .json, .csv or .parquet with a field prompt, or with transcripts
            (chosen and rejected, as in hh-rlhf), whose part before the last answer is the prompt
        limit: take the first so many prompts of the file only
        chat: put prompts into the tokenizer's chat template, where it has one
        output: also write the answers to this .jsonl file, as rows of prompt and completion
        max_new_tokens: the longest answer
        temperature: divides the logits; 0 takes the most likely token
        top_k: sample among the k most likely tokens; 0 for all
        top_p: sample among the most likely tokens that together reach this probability
        min_p: sample among the tokens at least this fraction as likely as the most likely one
        stop: end an answer at the first token that completes one of these texts
        num_completions: answers to each prompt
        seed: another seed, other answers
        batch_size: prompts at a time
        mesh: devices
    """

    model: ModelSection
    prompt: str | None = None
    prompts: str | None = None
    limit: int | None = None
    chat: bool = True
    output: str | None = None
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    num_completions: int = 1
    seed: int = 0
    batch_size: int = 8
    mesh: MeshSection = dataclasses.field(default_factory=MeshSection)


def run(config: Config) -> None:
    """Prints the answers to every prompt, and writes them to a file if ``output`` is given.

    The answer to a single prompt appears token by token. Several answers appear one by one, each when it is complete.
    """
    sampling = validate_config(config)
    prompts = [config.prompt] if config.prompt is not None else read_prompts(str(config.prompts), config.limit)
    tokenizer = load_tokenizer(config.model.path)
    stop_strings(tokenizer, config.stop)  # a bad stop string is reported before the model is loaded
    encoded = encode_prompts(tokenizer, prompts, chat=config.chat)
    console = Console(stderr=True, highlight=False)
    report = lambda line: console.print(line, markup=False)  # noqa: E731
    model, params = open_model(config.model, open_mesh(config.mesh), report)
    is_single = config.prompt is not None and config.num_completions == 1
    texts = [""] * len(prompts) * config.num_completions
    for number, text, is_last in stream_text(
        model,
        params,
        tokenizer,
        encoded,
        max_new_tokens=config.max_new_tokens,
        key=jax.random.key(config.seed),
        sampling=sampling,
        stop=config.stop,
        num_completions=config.num_completions,
        batch_size=config.batch_size,
        segment=1 if is_single else SEGMENT,
    ):
        texts[number] += text
        prompt = prompts[number // config.num_completions]
        if is_single:
            print(text, end="\n" if is_last else "", flush=True)
        elif is_last:
            print(f"prompt: {prompt}\nanswer: {texts[number]}\n", flush=True)
    if config.output is not None:
        pairs = ((prompts[number // config.num_completions], text) for number, text in enumerate(texts))
        rows = [{"prompt": prompt, "completion": text} for prompt, text in pairs]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_whole(Path(config.output).expanduser(), "".join(lines))


def validate_config(config: Config) -> Sampling:
    """Raises for invalid settings before anything is loaded; returns how tokens are sampled."""
    if (config.prompt is None) == (config.prompts is None):
        raise UserError("Give either --prompt TEXT or --prompts FILE.")
    check_ranges(config, RANGES)
    if config.output is not None:
        output = Path(config.output).expanduser()
        check_writable(output.parent)
        if output.is_dir():
            raise UserError(f"output is the directory {output}. Give the name of a .jsonl file.")
    return Sampling(config.temperature, config.top_k, config.top_p, config.min_p)
