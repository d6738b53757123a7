"""Generation of text: prompts are strings, chats or token ids; completions are strings, whole or in pieces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxalign.data.encode import Encoder
from jaxalign.data.files import located, read_rows
from jaxalign.data.formats import prompt_only
from jaxalign.data.messages import Message, messages, transcript_messages
from jaxalign.errors import UserError
from jaxalign.models.model import Model
from jaxalign.models.open import check_positions, check_tokens
from jaxalign.rollout.decode import SEGMENT
from jaxalign.rollout.generate import pad_left, stream
from jaxalign.rollout.sample import Sampling
from jaxalign.rollout.stops import stop_strings

# Prompts are padded to a multiple of this width, so that a few compiled programs serve all of them.
WIDTH = 64

# A string, a chat (messages with "role" and "content"), or token ids.
PromptLike: TypeAlias = str | Sequence[Mapping[str, str]] | Sequence[Message] | Sequence[int] | np.ndarray


def generate_text(
    model: Model,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[PromptLike],
    *,
    key: jax.Array,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: Sequence[str] = (),
    num_completions: int = 1,
    chat: bool = True,
    batch_size: int = 8,
) -> list[list[str]]:
    """Samples completions of each prompt, as text without special tokens.

    Args:
        model: the language model.
        params: its parameters.
        tokenizer: the model's ``transformers`` tokenizer.
        prompts: B strings, or chats as lists of ``{"role": ..., "content": ...}``. Token ids are taken as they are.
        key: random key.
        max_new_tokens: maximum number of tokens of a completion.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely tokens only; 0 for all.
        top_p: sample among the most likely tokens that together reach this probability; 1 for all.
        min_p: sample among the tokens at least this fraction as likely as the most likely one; 0 for all.
        stop: a completion ends at the first token that completes one of these texts.
        num_completions: K, completions of each prompt.
        chat: put strings into the tokenizer's chat template as a user's message, if it has a template.
        batch_size: prompts at a time. It does not change the random numbers, but the rounding.

    Returns:
        For each prompt, in order, the list of its K completions.

    Raises:
        UserError: for a prompt that is empty, too long, or not a chat, and for a setting out of its range.

    >>> generate_text(model, params, tokenizer, ["Why?"], key=key, max_new_tokens=8)  # doctest: +SKIP
    [['Because the sky is blue.']]
    """
    texts = [""] * (len(prompts) * num_completions)
    for piece in stream_text(
        model,
        params,
        tokenizer,
        encode_prompts(tokenizer, prompts, chat=chat),
        key=key,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(float(temperature), int(top_k), float(top_p), float(min_p)),
        stop=stop,
        num_completions=num_completions,
        batch_size=batch_size,
    ):
        texts[piece.number] += piece.text
    return [texts[start : start + num_completions] for start in range(0, len(texts), num_completions)]


class Piece(NamedTuple):
    """More text of a completion.

    Attributes:
        number: index of the completion; it belongs to prompt ``number // num_completions``.
        text: the new text; it never ends within a character.
        is_last: whether the completion ends here.
    """

    number: int
    text: str
    is_last: bool


class IncrementalText:
    """Text of a growing sequence of token ids, in pieces.

    A token may end within a character. Its bytes then decode to U+FFFD at the end. That sign is not returned before the
    other bytes arrive or the text ends.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.length = tokenizer, 0

    def extend(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> str:
        """Returns the text of all ids so far, without special tokens, minus what earlier calls returned."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        complete = text if is_last else text.rstrip("\ufffd")
        new = complete[self.length :]
        self.length = max(self.length, len(complete))
        return new


def stream_text(
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
    """Yields the completions of prompts (token ids) while they are decoded, in pieces of ``segment`` tokens.

    The random numbers of a completion depend only on ``key`` and on its place in ``prompts``. A batch is as wide as its
    longest prompt, so another ``batch_size`` may round differently, which can change a token at a near tie.
    """
    check_tokens(model, prompts)
    longest = max(map(len, prompts), default=0)
    check_positions(model, longest + max_new_tokens, "The longest prompt plus max_new_tokens")
    # The last batch is filled up to this size, so that one program serves all batches of a width.
    size = min(batch_size, len(prompts))
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "key": key, "sampling": sampling}
    settings |= {"eos_id": end_ids(model, tokenizer), "stop": stop_strings(tokenizer, stop)}
    settings |= {"num_completions": num_completions, "segment": segment}
    for start in range(0, len(prompts), batch_size):
        chunk = prompts[start : start + batch_size]
        width = -(-max(map(len, chunk)) // WIDTH) * WIDTH
        tokens, mask = pad_left(chunk, width, size)
        running = {row: IncrementalText(tokenizer) for row in range(len(chunk) * num_completions)}
        example_ids = np.arange(start, start + size)
        for rollout, done in stream(model, params, tokens, prompt_mask=mask, example_ids=example_ids, **settings):
            for row, text in list(running.items()):
                new = text.extend(rollout.tokens[row][rollout.mask[row]], bool(done[row]))
                if new or done[row]:
                    yield Piece(start * num_completions + row, new, bool(done[row]))
                if done[row]:
                    del running[row]
            if not running:
                break


def end_ids(model: Model, tokenizer: Any) -> tuple[int, ...]:
    """Returns the ids that end a completion: those of the model's configuration and the tokenizer's own."""
    return tuple(sorted({*model.config.eos_token_ids, tokenizer.eos_token_id} - {None}))


def encode_prompts(tokenizer: Any, prompts: Sequence[PromptLike], *, chat: bool = True) -> list[list[int]]:
    """Returns each prompt's token ids, as training sees them; ``chat`` as in :func:`generate_text`."""
    encoder = Encoder(tokenizer)
    chat = chat and bool(tokenizer.chat_template)
    return [encode_prompt(encoder, prompt, chat, number) for number, prompt in enumerate(prompts, start=1)]


def encode_prompt(encoder: Encoder, prompt: PromptLike, chat: bool, number: int) -> list[int]:
    r"""Returns a prompt's token ids, as training sees them.

    Args:
        encoder: of the tokenizer.
        prompt: a string, a transcript (``\n\nHuman: ...``), a chat, or token ids, which are returned as they are.
        chat: whether a string becomes a user's message in the chat template, and a transcript a chat.
        number: of the prompt, for messages, counted from 1.

    Raises:
        UserError: for a prompt without tokens, or a chat that the template refuses.
    """
    if isinstance(prompt, str):
        if not chat:
            ids = encoder.document(prompt)
        else:
            is_transcript = prompt.strip() and prompt_only({"prompt": prompt}, None)[1] == "transcript"
            turns = transcript_messages(prompt) if is_transcript else [Message("user", prompt)]
            with located(f"Prompt {number}", advice=" Or set chat=False."):
                ids = encoder.prompt(turns)
    elif len(prompt) and isinstance(prompt[0], Mapping | Message):
        given = [turn._asdict() if isinstance(turn, Message) else turn for turn in prompt]
        with located(f"Prompt {number}"):
            ids = encoder.prompt(messages("messages", given))
    else:
        ids = [int(token) for token in prompt]  # type: ignore[arg-type]
    if not ids:
        raise UserError(f"Prompt {number} is empty, and the tokenizer puts nothing before it. Give a prompt.")
    return ids


def read_prompts(path: str, limit: int | None = None) -> list[str]:
    """Returns the field ``prompt`` of every row of a file.

    A row of transcripts (``chosen`` and ``rejected``, as in hh-rlhf) gives what comes before its last answer.

    Args:
        path: a .jsonl, .json, .csv or .parquet file.
        limit: read at most this many rows.

    Raises:
        UserError: for a row without a prompt, or a file without rows.
    """
    prompts = []
    for row in itertools.islice(read_rows(path, streaming=True), limit):
        with located(row.place):
            prompt: Any = row.checked.get("prompt")
            if prompt is None and isinstance(row.checked.get("chosen"), str):
                prompt, _ = prompt_only(row.checked, None)
        if not isinstance(prompt, str):
            raise UserError(f"{row.place}: field 'prompt' is not a string. Give one.")
        prompts.append(prompt)
    if not prompts:
        raise UserError(f"{path} has no rows. Give a file with at least one.")
    return prompts


def answers(*args: Any, **settings: Any) -> list[str]:
    """Returns one completion of each prompt."""
    return [text for (text,) in generate_text(*args, **settings)]
