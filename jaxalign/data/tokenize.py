"""Tokenises records into prompt trees, with completions in the record's order: the chosen or best one first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np

from jaxalign.data.encode import Encoder, Ids
from jaxalign.data.files import Problem
from jaxalign.data.kinds import Demonstration, Prompt, Record
from jaxalign.data.messages import Message, transcript_messages
from jaxalign.data.records import BadRow, OnError, describe_skipped
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError

Template: TypeAlias = Literal["auto", "always", "never"]
LossOn: TypeAlias = Literal["assistant", "all"]
R = TypeVar("R", bound=Record)
E = TypeVar("E")
# Alpaca's layout of an instruction, for models without a chat template.
INSTRUCTION = "### Instruction:\n{}\n\n### Response:\n"


@dataclasses.dataclass(frozen=True)
class TokenizeReport:
    """Report on tokenising. ``str()`` of it is one line.

    Attributes:
        examples: Number of trees.
        tokens: Distinct tokens of all trees.
        longest: Tokens of the longest tree.
        prompts_truncated: Number of prompts that lost their beginning.
        completions_truncated: Number of completions that lost their end, and with it their EOS.
        skipped: Records that could not be tokenised.
    """

    examples: int
    tokens: int
    longest: int
    prompts_truncated: int
    completions_truncated: int
    skipped: tuple[BadRow, ...] = ()

    def __str__(self) -> str:
        text = f"{self.examples} examples, {self.tokens} tokens, the longest {self.longest}"
        if self.prompts_truncated:
            text += f"; {self.prompts_truncated} prompts lost their beginning"
        if self.completions_truncated:
            text += f"; {self.completions_truncated} completions lost their end"
        return text + (f"; {len(self.skipped)} skipped: {describe_skipped(self.skipped)}" if self.skipped else "")


class Text(NamedTuple):
    """One tree's ids before truncation. With masks None, every token of a completion counts."""

    prompt: Ids
    completions: Sequence[Ids]
    masks: Sequence[list[bool]] | None = None


def tokenize_completions(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    loss_on: LossOn = "assistant",
    max_length: int | None = None,
    max_completion_length: int | None = None,
    template: Template = "auto",
    on_error: OnError = "stop",
) -> tuple[list[Tree], TokenizeReport]:
    """Tokenises records with completions: a tree per record, with its completions and extras.

    With a chat template, chats and transcripts become messages, and a completion ends with the end of turn that the
    template writes. Without a chat template, a text is prompt, completion and EOS.

    A demonstration is a tree of one completion. In a chat every turn of the assistant counts, end of turn included. The
    turns between are context. If the chat template rewrites its history, a conversation becomes several trees
    (:meth:`jaxalign.data.encode.Encoder.turns`).

    Args:
        records: What :func:`jaxalign.data.records.read_records` returns.
        tokenizer: A ``transformers`` tokenizer.
        loss_on: ``assistant`` learns completions, ``all`` the whole texts of demonstrations: all tokens but the first.
        max_length: Maximum tokens of the prompt and the longest completion together. A longer prompt loses its
            beginning (never its BOS), down to half of ``max_length``. Then completions lose their end.
        max_completion_length: Maximum tokens of a completion, end of turn included.
        template: ``auto`` renders chats, transcripts and instructions with the chat template, if it exists. ``always``
            renders plain prompts too, as a user's message. ``never`` leaves transcripts as they are written.
        on_error: ``stop`` at the first record that cannot be tokenised, or ``skip`` and report it.

    Returns:
        Trees in the order of the records, and a report on what was truncated and skipped.

    Raises:
        UserError: If the limits leave no completion token, or the tokenizer lacks what the records need.
    """
    if loss_on not in ("assistant", "all"):
        raise UserError(f"loss_on is {loss_on!r}. Give assistant or all.")
    encoder = _encoder(tokenizer, max_length, max_completion_length, template)

    def encode(record: Record) -> list[Text]:
        if not isinstance(record, Demonstration):
            return [_encode(record, record.completions, encoder, template)]
        return _encode_demonstration(record, encoder, template, loss_on == "all")

    encoded, skipped = _encode_all(records, encode, on_error)
    trees: list[Tree] = []
    prompts_truncated = completions_truncated = 0
    for record, texts in encoded:
        for text in texts:
            prompt, completions = truncate(
                text.prompt,
                text.completions,
                max_length=max_length,
                max_completion_length=max_completion_length,
                opening=encoder.bos,
            )
            prompts_truncated += prompt != text.prompt
            completions_truncated += sum(a != b for a, b in zip(completions, text.completions, strict=True))
            masks = text.masks and [m[: len(c)] for m, c in zip(text.masks, completions, strict=True)]
            tree = Tree.of(prompt, completions, masks, **record.extras)
            if prompt != text.prompt:
                tree = dataclasses.replace(tree, cut_from=np.asarray(text.prompt, np.int32))
            trees.append(tree)
    sizes = [len(tree) for tree in trees]
    report = TokenizeReport(len(trees), sum(sizes), max(sizes), prompts_truncated, completions_truncated, skipped)
    if loss_on == "all" and isinstance(records[0], Demonstration):
        trees = [Tree.of([], [[*tree.prompt, *tree.completions[0]]]) for tree in trees]
    return trees, report


def tokenize_prompts(
    records: Sequence[Prompt],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    template: Template = "auto",
    on_error: OnError = "stop",
) -> tuple[list[tuple[Ids, dict[str, Any]]], TokenizeReport]:
    """Tokenises prompts for generation: (the prompt's ids, its row) of every record.

    Args:
        records: Prompts.
        tokenizer: A ``transformers`` tokenizer.
        max_length: Maximum tokens of a prompt. A longer prompt loses its beginning (never its BOS).
        template: When to use the chat template, see :func:`tokenize_completions`.
        on_error: ``stop`` or ``skip``.

    Returns:
        Prompts in the order of the records, and a report on what was truncated and skipped.

    Raises:
        UserError: As :func:`tokenize_completions`.
    """
    if max_length is not None and max_length < 1:
        raise UserError(f"max_length is {max_length}, which leaves no prompt token. Give 1 or more.")
    encoder = _encoder(tokenizer, None, None, template)
    encoded, skipped = _encode_all(records, lambda record: _encode(record, (), encoder, template), on_error)
    prompts: list[tuple[Ids, dict[str, Any]]] = []
    cut = 0
    for record, (prompt, *_) in encoded:
        short = prompt if max_length is None else _end(prompt, max_length, encoder.bos)
        cut += short != prompt
        prompts.append((short, dict(record.fields)))
    sizes = [len(prompt) for prompt, _ in prompts]
    return prompts, TokenizeReport(len(prompts), sum(sizes), max(sizes), cut, 0, skipped)


def _encoder(tokenizer: Any, max_length: int | None, max_completion_length: int | None, template: Template) -> Encoder:
    """Returns the encoder after a check of the options."""
    if max_length is not None and max_length < 2:
        raise UserError(f"max_length is {max_length}, which leaves no completion token. Give 2 or more.")
    if max_completion_length is not None and max_completion_length < 1:
        raise UserError(
            f"max_completion_length is {max_completion_length}, which leaves no completion token. Give 1 or more."
        )
    if template == "always" and not tokenizer.chat_template:
        raise UserError(
            "template is 'always', and the tokenizer has no chat template. Give 'auto', or another tokenizer."
        )
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no EOS token, so a completion cannot end. Give it an eos_token.")
    return Encoder(tokenizer)


def _encode_all(
    records: Sequence[R], encode: Callable[[R], E], on_error: OnError
) -> tuple[list[tuple[R, E]], tuple[BadRow, ...]]:
    """Returns every record with its ids, and the records that could not be encoded."""
    encoded: list[tuple[R, E]] = []
    skipped: list[BadRow] = []
    for record in records:
        try:
            encoded.append((record, encode(record)))
        except Problem as problem:
            skipped.append(BadRow.of(problem, record.file, record.row, on_error))
    if not encoded:
        first = f" {skipped[0].file}, row {skipped[0].row}: {skipped[0].text}." if skipped else " Check the data."
        raise UserError(f"Every record was skipped, so none is left to train on.{first}")
    return encoded, tuple(skipped)


def truncate(
    prompt: Ids,
    completions: Sequence[Ids],
    *,
    max_length: int | None,
    max_completion_length: int | None = None,
    opening: Sequence[int] = (),
) -> tuple[Ids, list[Ids]]:
    """Truncates a prompt from its start and completions from their end.

    Args:
        prompt: The prompt's ids.
        completions: The completions' ids.
        max_length: Maximum tokens of the prompt and the longest completion. The prompt is truncated first, down to half
            of it.
        max_completion_length: Maximum tokens of a completion.
        opening: Ids that stay if the prompt starts with them (BOS).

    Returns:
        The prompt and the completions.

    >>> truncate([1, 2, 3, 4, 5, 6], [[7, 8, 9], [7]], max_length=6, opening=[1])
    ([1, 5, 6], [[7, 8, 9], [7]])
    """
    keep = max(map(len, completions))
    if max_length is not None:
        keep = min(keep, max_length - min(len(prompt), max_length // 2))
    if max_completion_length is not None:
        keep = min(keep, max_completion_length)
    completions = [completion[:keep] for completion in completions]
    room = len(prompt) if max_length is None else max_length - max(map(len, completions))
    return _end(prompt, room, opening), completions


def _end(prompt: Ids, room: int, opening: Sequence[int]) -> Ids:
    """Returns the last tokens of a prompt that have room, behind its BOS."""
    if len(prompt) <= room:
        return prompt
    start = list(opening) if prompt[: len(opening)] == list(opening) and room > len(opening) else []
    return start + prompt[len(prompt) - room + len(start) :]


def _encode_demonstration(record: Demonstration, encoder: Encoder, template: Template, whole: bool) -> list[Text]:
    """Encodes a demonstration, of which the ``whole`` text counts, or the completion."""
    tokenizer, learned = encoder.tokenizer, record.completion
    if record.prompt == "":
        first, *rest = [*encoder.document(record.completions[0]), tokenizer.eos_token_id]
        if not rest:
            raise Problem("empty text", "the text has no token. Remove the row")
        return [Text([first], [rest])]
    if not isinstance(learned, str) and not whole and tokenizer.chat_template and template != "never":
        turns = encoder.turns((*record.prompt, *learned), start=len(record.prompt))
        return [Text(prompt, [completion], [mask]) for prompt, completion, mask in turns]
    if not isinstance(learned, str):  # all tokens count, so the messages before the last answer may be its prompt
        record = dataclasses.replace(record, prompt=(*record.prompt, *learned[:-1]))
    return [_encode(record, record.completions, encoder, template)]


def _encode(record: Record, replies: Sequence[str], encoder: Encoder, template: Template) -> Text:
    messages = _messages(record, template if encoder.tokenizer.chat_template else "never")
    if messages is not None:
        if record.format == "transcript":  # the space after "Assistant:" is part of the transcript, not of the message
            replies = [reply.strip() for reply in replies]
        return Text(*encoder.conversation(messages, replies))
    if not isinstance(record.prompt, str):
        raise Problem(
            "no chat template",
            "the data are chat messages and the tokenizer has no chat template (or template='never' forbids it). "
            "Use a chat model's tokenizer, or data with plain prompts",
        )
    prompt = encoder.document(INSTRUCTION.format(record.prompt) if record.format == "instruction" else record.prompt)
    if not prompt:
        raise Problem("empty prompt", "field 'prompt' is empty and the tokenizer puts no BOS before it. Write a prompt")
    return Text(prompt, [[*encoder.continuation(reply), encoder.tokenizer.eos_token_id] for reply in replies])


def _messages(record: Record, template: Template) -> Sequence[Message] | None:
    """Returns the record as a chat to render, or None for plain text."""
    if template == "never":
        return None
    if not isinstance(record.prompt, str):
        return record.prompt
    if record.format == "transcript":
        return transcript_messages(record.prompt)
    return [Message("user", record.prompt)] if template == "always" or record.format == "instruction" else None
