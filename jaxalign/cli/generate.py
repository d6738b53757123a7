"""``jaxalign generate``: answers to prompts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import jax
from rich.console import Console

from jaxalign.checkpoint import check_writable
from jaxalign.data.encode import Encoder
from jaxalign.data.files import Problem, read_rows
from jaxalign.data.formats import prompt_only
from jaxalign.errors import UserError
from jaxalign.models.open import check_tokens, open_mesh, open_model
from jaxalign.models.tokenizer import load_tokenizer
from jaxalign.paths import write_whole
from jaxalign.rollout import Sampling, stop_strings
from jaxalign.rollout.decode import SEGMENT
from jaxalign.rollout.text import encode_prompt, pieces
from jaxalign.settings import MeshSection, ModelSection


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
    """Answer every prompt, on standard output and, where asked, into a file.

    The answer to a single prompt appears as it is decoded, of several answers each one when it is done.
    """
    sampling = check(config)
    prompts = [config.prompt] if config.prompt is not None else read_prompts(str(config.prompts), config.limit)
    tokenizer = load_tokenizer(config.model.path)
    stop_strings(tokenizer, config.stop)  # complains before anything is loaded
    encoder = Encoder(tokenizer)
    chat = config.chat and bool(tokenizer.chat_template)
    encoded = [encode_prompt(encoder, prompt, chat, number) for number, prompt in enumerate(prompts, start=1)]
    console = Console(stderr=True, highlight=False)
    model, params = open_model(config.model, open_mesh(config.mesh), lambda line: console.print(line, markup=False))
    check_tokens(model, encoded)
    single = config.prompt is not None and config.num_completions == 1
    texts = [""] * len(prompts) * config.num_completions
    for number, text, done in pieces(
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
        segment=1 if single else SEGMENT,
    ):
        texts[number] += text
        if single:
            print(text, end="\n" if done else "", flush=True)
        elif done:
            print(f"prompt: {prompts[number // config.num_completions]}\nanswer: {texts[number]}\n", flush=True)
    if config.output is not None:
        asked = [prompt for prompt in prompts for _ in range(config.num_completions)]
        rows = [{"prompt": prompt, "completion": text} for prompt, text in zip(asked, texts, strict=True)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_whole(Path(config.output).expanduser(), "".join(lines))


def check(config: Config) -> Sampling:
    """Raise for settings that make no sense, before anything is loaded; how tokens are drawn otherwise."""
    if (config.prompt is None) == (config.prompts is None):
        raise UserError("give either --prompt TEXT or --prompts FILE.")
    wrong = {
        "max_new_tokens must be 1 or more": config.max_new_tokens < 1,
        "num_completions must be 1 or more": config.num_completions < 1,
        "limit must be 1 or more": config.limit is not None and config.limit < 1,
        "batch_size must be 1 or more": config.batch_size < 1,
    }
    for rule, broken in wrong.items():
        if broken:
            raise UserError(f"{rule}, it is {getattr(config, rule.split()[0])}.")
    if config.output is not None:
        output = Path(config.output).expanduser()
        check_writable(output.parent)
        if output.is_dir():
            raise UserError(f"output is the directory {output}; give the name of a .jsonl file.")
    return Sampling(config.temperature, config.top_k, config.top_p, config.min_p)


def read_prompts(path: str, limit: int | None = None) -> list[str]:
    """The field ``prompt`` of every row, or of a row of transcripts what comes before the last answer."""
    prompts = []
    for row in itertools.islice(read_rows(path, streaming=True), limit):
        if isinstance(row.value, Problem):
            raise UserError(f"{row.file}, row {row.number}: {row.value.text}.")
        prompt = row.value.get("prompt")
        if prompt is None and isinstance(row.value.get("chosen"), str):
            found = prompt_only(row.value, None)
            if isinstance(found, Problem):
                raise UserError(f"{row.file}, row {row.number}: {found.text}.")
            prompt = found[0]
        if not isinstance(prompt, str):
            raise UserError(f"{row.file}, row {row.number}: field 'prompt' must be there and be a string.")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path}: there are no rows: give a file with at least one.")
    return prompts
