"""Preference records and a tokenizer into prompt trees, the chosen completion first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from jaxalign.data.encode import Encoder, Ids
from jaxalign.data.files import Problem
from jaxalign.data.records import BadRow, Message, Preference, transcript_messages
from jaxalign.data.trees import Tree
from jaxalign.errors import UserError

Template = Literal["auto", "always", "never"]


@dataclasses.dataclass(frozen=True)
class TokenizeReport:
    """What tokenising made and cut. ``str()`` of it is a line for people."""

    examples: int
    tokens: int  # distinct tokens of all trees
    longest: int  # tokens of the longest tree
    prompts_truncated: int  # prompts that lost their beginning
    completions_truncated: int  # completions that lost their end, and with it their EOS
    skipped: tuple[BadRow, ...] = ()

    def __str__(self) -> str:
        text = f"{self.examples} examples, {self.tokens} tokens, the longest {self.longest}"
        if self.prompts_truncated:
            text += f"; {self.prompts_truncated} prompts lost their beginning"
        if self.completions_truncated:
            text += f"; {self.completions_truncated} completions lost their end"
        return text + (f"; {len(self.skipped)} rows skipped" if self.skipped else "")


def tokenize_preferences(
    records: Sequence[Preference],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    max_completion_length: int | None = None,
    template: Template = "auto",
    on_error: Literal["stop", "skip"] = "stop",
) -> tuple[list[Tree], TokenizeReport]:
    """A tree of two completions, chosen then rejected, for every record.

    With a chat template, chats and transcripts become messages, and a completion ends with the end of turn that the
    template writes. Without, a text is prompt, completion and EOS.

    Args:
        records: what :func:`jaxalign.data.records.read_preferences` returns.
        tokenizer: a ``transformers`` tokenizer.
        max_length: tokens that the prompt and the longer completion may have together. A longer prompt loses its
            beginning (never its BOS), down to half of ``max_length``; then completions lose their end.
        max_completion_length: tokens that a completion may have, end of turn included.
        template: ``auto`` renders chats and transcripts with the chat template, if there is one; ``always`` plain
            prompts too, as a user's message; ``never`` takes transcripts as they are written.
        on_error: ``stop`` at the first record that cannot be tokenised, or ``skip`` and report it.

    Raises:
        UserError: if the limits leave no completion token, or the tokenizer lacks what the records need.
    """
    if max_length is not None and max_length < 2:
        raise UserError(f"data.max_length={max_length} leaves no completion token: it must be at least 2")
    if max_completion_length is not None and max_completion_length < 1:
        raise UserError(
            f"data.max_completion_length={max_completion_length} leaves no completion token: set at least 1"
        )
    if template == "always" and not tokenizer.chat_template:
        raise UserError("data.template=always, and the tokenizer has no chat template: use auto, or another tokenizer")
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, so no completion could end: give it an eos_token")
    encoder = Encoder(tokenizer)
    trees: list[Tree] = []
    skipped: list[BadRow] = []
    prompts_truncated = completions_truncated = 0
    for record in records:
        ids = _encode(record, encoder, template)
        if isinstance(ids, Problem):
            if on_error == "stop":
                raise UserError(f"{record.place}: {ids.text}")
            skipped.append(BadRow(record.file, record.row, *ids))
            continue
        prompt, completions = truncate(
            *ids, max_length=max_length, max_completion_length=max_completion_length, opening=encoder.bos
        )
        prompts_truncated += prompt != ids[0]
        completions_truncated += sum(short != full for short, full in zip(completions, ids[1], strict=True))
        trees.append(Tree.of(prompt, completions))
    if not trees:
        first = f": {skipped[0].file}, row {skipped[0].row}: {skipped[0].text}" if skipped else ""
        raise UserError(f"no record is left to train on{first}")
    sizes = [len(tree) for tree in trees]
    report = TokenizeReport(
        len(trees), sum(sizes), max(sizes), prompts_truncated, completions_truncated, tuple(skipped)
    )
    return trees, report


def truncate(
    prompt: Ids,
    completions: Sequence[Ids],
    *,
    max_length: int | None,
    max_completion_length: int | None = None,
    opening: Sequence[int] = (),
) -> tuple[Ids, list[Ids]]:
    """Keep the end of the prompt and the start of the completions.

    ``opening`` (BOS) stays if the prompt has it. The prompt yields first, down to half of ``max_length``.

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
    if len(prompt) > room:
        kept = list(opening) if prompt[: len(opening)] == list(opening) and room > len(opening) else []
        prompt = kept + prompt[len(prompt) - room + len(kept) :]
    return prompt, completions


def _encode(record: Preference, encoder: Encoder, template: Template) -> tuple[Ids, list[Ids]] | Problem:
    replies = [record.chosen, record.rejected]
    messages = _messages(record, template if encoder.tokenizer.chat_template else "never")
    if messages is not None:
        if record.format == "transcript":  # the space after "Assistant:" belongs to the transcript, not to what is said
            replies = [reply.strip() for reply in replies]
        return encoder.conversation(messages, replies)
    if not isinstance(record.prompt, str):
        return Problem(
            "no chat template",
            "the data are chat messages and the tokenizer has no chat template (or data.template=never forbids it): "
            "use a chat model's tokenizer, or data with plain prompts",
        )
    prompt = encoder.document(record.prompt)
    if not prompt:
        return Problem(
            "empty prompt", "the prompt is empty and the tokenizer puts no BOS before it: fill field 'prompt'"
        )
    return prompt, [[*encoder.continuation(reply), encoder.tokenizer.eos_token_id] for reply in replies]


def _messages(record: Preference, template: Template) -> Sequence[Message] | None:
    """The record as a chat to render, or None to take it as plain text."""
    if template == "never":
        return None
    if record.format == "transcript":
        return transcript_messages(str(record.prompt))
    if isinstance(record.prompt, str):
        return [Message("user", record.prompt)] if template == "always" else None
    return record.prompt
