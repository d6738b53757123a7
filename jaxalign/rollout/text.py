"""Answers to prompts of any length, as text, while they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxalign.data.encode import Encoder
from jaxalign.data.files import Problem
from jaxalign.data.formats import prompt_only
from jaxalign.data.messages import Message, transcript_messages
from jaxalign.errors import UserError
from jaxalign.models.model import Model
from jaxalign.rollout import Sampling, stop_strings, stream
from jaxalign.rollout.decode import SEGMENT

WIDTH = 64  # prompts are padded to a multiple of this, so that a few programs serve all


class Piece(NamedTuple):
    """More text of an answer.

    Attributes:
        number: which answer: that of prompt ``number // num_completions``.
        text: what is new; it never ends within a character.
        done: whether this was the last of it.
    """

    number: int
    text: str
    done: bool


class TextSoFar:
    """The text of growing token ids, piece by piece.

    A token may end within a character: its bytes then decode to U+FFFD at the end, which is held back until the rest
    has come, or the end.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.shown = tokenizer, 0

    def more(self, ids: Sequence[int] | np.ndarray, done: bool) -> str:
        """What these ids say beyond what the ids before said, without special tokens."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        whole = text if done else text.rstrip("\ufffd")
        new = whole[self.shown :]
        self.shown = max(self.shown, len(whole))
        return new


def end_ids(model: Model, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer: those of the model's configuration and the tokenizer's own."""
    ids = {*model.config.eos_token_ids}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return tuple(sorted(ids))


def pieces(
    model: Model,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int] | np.ndarray],
    *,
    max_new_tokens: int,
    key: jax.Array,
    sampling: Sampling = Sampling(),  # noqa: B008  # frozen
    stop: Sequence[str] = (),
    num_completions: int = 1,
    batch_size: int = 8,
    segment: int = SEGMENT,
) -> Iterator[Piece]:
    """The answers to each prompt (token ids) as they are decoded, in pieces of ``segment`` tokens.

    The random numbers of an answer depend on ``key`` and its place in ``prompts`` alone. The width of a batch is that
    of its longest prompt, so another ``batch_size`` may round differently, and an answer then turn at a near tie.
    """
    longest = max(map(len, prompts), default=0)
    if longest + max_new_tokens > model.config.max_position_embeddings:
        raise UserError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} are more than the model's "
            f"{model.config.max_position_embeddings} positions (max_position_embeddings); shorten either"
        )
    size = min(batch_size, len(prompts))  # the last batch is filled up: one program for all of a width
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        width = -(-max(map(len, chunk)) // WIDTH) * WIDTH
        tokens = np.zeros((size, width), np.int32)
        mask = np.zeros((size, width), bool)
        mask[len(chunk) :, -1] = True
        for row, prompt in enumerate(chunk):
            tokens[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = True
        going = {row: TextSoFar(tokenizer) for row in range(len(chunk) * num_completions)}
        for rollout, done in stream(
            model,
            params,
            tokens,
            prompt_mask=mask,
            max_new_tokens=max_new_tokens,
            key=key,
            sampling=sampling,
            eos_id=end_ids(model, tokenizer),
            stop=stop_strings(tokenizer, stop),
            num_completions=num_completions,
            example_ids=np.arange(start, start + size),
            segment=segment,
        ):
            for row, text in list(going.items()):
                new = text.more(rollout.tokens[row][rollout.mask[row]], bool(done[row]))
                if new or done[row]:
                    yield Piece(start * num_completions + row, new, bool(done[row]))
                if done[row]:
                    del going[row]
            if not going:
                break


def answers(*args: Any, temperature: float = 1.0, **settings: Any) -> list[str]:
    """The answers of :func:`pieces`, whole, in the order of the prompts."""
    texts: dict[int, str] = {}
    for number, text, _ in pieces(*args, sampling=Sampling(temperature), **settings):
        texts[number] = texts.get(number, "") + text
    return [texts[number] for number in sorted(texts)]


def encode_prompt(encoder: Encoder, prompt: str, chat: bool, number: int) -> list[int]:
    """The prompt's ids as training sees them."""
    if not chat:
        ids = encoder.document(prompt)
    else:
        transcript = prompt.strip() and prompt_only({"prompt": prompt}, None)[1] == "transcript"
        found = encoder.prompt(transcript_messages(prompt) if transcript else [Message("user", prompt)])
        if isinstance(found, Problem):
            raise UserError(f"prompt {number}: {found.text}; or set chat=false.")
        ids = found
    if not ids:
        raise UserError(f"prompt {number} is empty and the tokenizer puts nothing before it; give a prompt.")
    return ids
