"""Encodes text as token ids: those of a prompt, which the model sees, and of a completion, which it must produce.

Three rules hold for any text. Nothing merges across the boundary between prompt and completion. What a user wrote never
becomes a control token, even where it spells one. The ids of a prompt are those that inference would use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxalign.data.files import Problem
from jaxalign.data.messages import Message
from jaxalign.errors import UserError, first_line

Ids = list[int]
# A control token's id, or ordinary text.
Run = int | str
# Texts that are put before a continuation to encode it, in the order of trial.
ANCHORS = ("\n", "\0", "|", "0")
# Takes the place of a message's content where only the template matters.
SLOT = "q7Zc{}Jx"
SLOT_PATTERN = re.compile(r"q7Zc(\d+)Jx")


class Turns(NamedTuple):
    """A prompt and what follows it. The mask is True where the assistant wrote."""

    prompt: Ids
    completion: Ids
    mask: list[bool]


class Encoder:
    """Encoder of texts and chats by the rules above.

    Args:
        tokenizer: A ``transformers`` tokenizer.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        added = dict(tokenizer.added_tokens_decoder)
        self.control = {token.content: id for id, token in added.items() if token.special}
        named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        # The unknown token may stand for characters the vocabulary lacks, unless it doubles as one of the others.
        self.control_ids = frozenset(id for id in self.control.values() if id != tokenizer.unk_token_id or id in named)
        self.flags = {id: added[id] for id in self.control.values()}
        longest_first = sorted(map(re.escape, self.control), key=len, reverse=True)
        self.control_pattern = re.compile("|".join(longest_first) or r"(?!)")
        self.bos = self._opening()
        # SentencePiece adds a space before a text's first word only. So a continuation is encoded behind an anchor,
        # which is then cut off.
        self.anchors = ("",) if self._encode("\na") == self._encode("\n") + self._encode("a") else ANCHORS
        self._layouts: dict[tuple[tuple[str, ...], bool], str] = {}

    def document(self, text: str) -> Ids:
        """Encodes plain text that starts a document: what the tokenizer puts in front (BOS), once, and the text."""
        return self.bos + (self._ordinary(text, first=True) if text else [])

    def continuation(self, text: str) -> Ids:
        """Encodes plain text that continues another text."""
        return self._ordinary(text)

    def prompt(self, messages: Sequence[Message]) -> Ids:
        """Encodes a chat that waits for an answer: ``apply_chat_template(messages, add_generation_prompt=True)``."""
        return self.conversation(messages, [])[0]

    def conversation(self, messages: Sequence[Message], replies: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """Encodes a chat as the tokenizer's template renders it: (prompt, one completion per reply).

        The prompt is :meth:`prompt`. A completion is what the template puts behind it for an assistant's message. It
        ends with the first control token after the content (EOS if the template has none): what the model has to write
        until its turn ends.

        Raises:
            Problem: If the template refuses the chat, or changes its contents beyond recognition.
        """
        layout, asked = self._layout(messages, generate=True), self._render(messages, generate=True)
        contents = _contents(layout, asked, messages)
        if contents is not None:
            prompt = self._encode_prompt(layout, contents)
        elif self._spells_control(message.content for message in messages):
            raise _rewritten()
        else:  # a template may rewrite contents: inference then sees the rewritten text, so training does too
            prompt = self._at_once(asked)
        return prompt, [self._encode_runs(self._reply(messages, reply, layout, asked)) for reply in replies]

    def turns(self, messages: Sequence[Message], start: int = 0) -> list[Turns]:
        """Encodes every answer of the assistant from message ``start`` behind the prompt that inference would use.

        A prompt that continues the answer before it joins that text, so a conversation is usually one text. Where the
        template rewrites history (drops the reasoning of earlier turns, for example), the answer begins a new text.
        """
        texts: list[Turns] = []
        seen: Ids = []
        for number, message in enumerate(messages):
            if message.role != "assistant" or number < start:
                continue
            prompt, (reply,) = self.conversation(messages[:number], [message.content])
            if texts and prompt[: len(seen)] == seen:
                first, completion, mask = texts[-1]
                between = prompt[len(seen) :]
                flags = [*mask, *[False] * len(between), *[True] * len(reply)]
                texts[-1] = Turns(first, [*completion, *between, *reply], flags)
            else:
                texts.append(Turns(prompt, reply, [True] * len(reply)))
            seen = prompt + reply
        return texts

    def _reply(self, messages: Sequence[Message], reply: str, opening: str, asked: str) -> list[Run]:
        """Returns what the template writes behind the prompt for this answer, up to the turn's end.

        ``opening`` is the layout of the prompt, ``asked`` its text.
        """
        whole = [*messages, Message("assistant", reply)]
        layout, answered = self._layout(whole, generate=False), self._render(whole, generate=False)
        contents = _contents(layout, answered, whole)
        if contents is not None:
            content = contents[-1]
            before, behind, after = layout[len(opening) :].partition(SLOT.format(len(messages)))
        else:
            content = next((text for text in (reply, reply.strip()) if text in answered[len(asked) :]), "")
            if not content or self._spells_control(message.content for message in whole):
                raise _rewritten()
            before, behind, after = answered[len(asked) :].partition(content)
        if not layout.startswith(opening) or not answered.startswith(asked) or not behind:
            raise Problem(
                "unusable chat template",
                "the tokenizer's chat template does not render an answer behind its own generation prompt. "
                "Use another template, or set template='never'",
            )
        end = self._split_control(after)
        if not any(isinstance(run, int) for run in end):
            end = [self.tokenizer.eos_token_id]
        end = end[: next(i for i, run in enumerate(end) if isinstance(run, int)) + 1]
        return [*self._split_control(before), content, *end]

    def _encode_prompt(self, layout: str, contents: Sequence[str]) -> Ids:
        runs: list[Run] = []
        for i, piece in enumerate(SLOT_PATTERN.split(layout)):  # template, number, template, number, …
            runs += [contents[int(piece)]] if i % 2 else self._split_control(piece)
        at_once = self._at_once(_fill(layout, contents))
        wanted = [run for run in runs if run in self.control_ids]
        # Inference tokenises the rendered text in one piece. So does training, unless a content spells a control token.
        clean = not self._spells_control(contents) and [id for id in at_once if id in self.control_ids] == wanted
        return at_once if clean else self._encode_runs(runs)

    def _encode_runs(self, runs: Sequence[Run]) -> Ids:
        ids: Ids = []
        text = ""
        strip = False  # some control tokens absorb the spaces next to them
        for run in [*runs, None]:
            if isinstance(run, str):
                text += run.lstrip() if strip and not text else run
                continue
            token = self.flags.get(run)
            text = text.rstrip() if token is not None and token.lstrip else text
            ids += self._ordinary(text) if text else []
            ids += [] if run is None else [run]
            text, strip = "", token is not None and token.rstrip
        return ids

    def _split_control(self, template: str) -> list[Run]:
        runs: list[Run] = []
        end = 0
        for match in self.control_pattern.finditer(template):
            runs += [template[end : match.start()], self.control[match.group()]]
            end = match.end()
        return [run for run in (*runs, template[end:]) if run != ""]

    def _ordinary(self, text: str, first: bool = False) -> Ids:
        ids = self._encode(text) if first else self._behind(text)
        if self.control_ids.isdisjoint(ids):
            return ids
        # In some vocabularies a control token's spelling is also an ordinary entry. Then cut the text within it.
        match = self.control_pattern.search(text)
        if match is None:
            raise ValueError(f"the tokenizer encodes the ordinary text {text!r} as a control token.")
        cut = match.start() + 1
        return self._ordinary(text[:cut], first) + self._ordinary(text[cut:])

    def _behind(self, text: str) -> Ids:
        """Encodes a continuation behind an anchor that does not merge with it."""
        for anchor in self.anchors:
            opening, ids = self._encode(anchor), self._encode(anchor + text)
            if ids[: len(opening)] == opening:
                return ids[len(opening) :]
        raise UserError(f"The tokenizer cannot encode {text[:20]!r} behind other text. Use another tokenizer.")

    def _spells_control(self, texts: Iterable[str]) -> bool:
        return any(map(self.control_pattern.search, texts))

    def _at_once(self, rendered: str) -> Ids:
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _encode(self, text: str) -> Ids:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _opening(self) -> Ids:
        """Returns what the tokenizer puts before a text (BOS or nothing), from an example: no attribute names it."""
        with_special, without = (self.tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
        for start in range(len(with_special) - len(without) + 1):
            if with_special[start : start + len(without)] == without:
                return list(with_special[:start])
        return []

    def _layout(self, messages: Sequence[Message], generate: bool) -> str:
        """Renders the template with slots in place of contents. The result depends on the roles alone."""
        roles = tuple(message.role for message in messages)
        if (roles, generate) not in self._layouts:
            slots = [Message(role, SLOT.format(i)) for i, role in enumerate(roles)]
            self._layouts[roles, generate] = self._render(slots, generate)
        return self._layouts[roles, generate]

    def _render(self, messages: Sequence[Message], generate: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [message._asdict() for message in messages], tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise Problem(
                "refused by the chat template",
                f"the tokenizer's chat template refuses it ({first_line(error)}). Use another template",
            ) from None


def _contents(layout: str, rendered: str, messages: Sequence[Message]) -> list[str] | None:
    """Returns the contents as the template writes them, unchanged or stripped; None if it writes something else."""
    for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
        if _fill(layout, contents) == rendered:
            return contents
    return None


def _rewritten() -> Problem:
    return Problem(
        "rewritten content",
        "the tokenizer's chat template changes a message, so what the model must produce is unknown. "
        "Use another template, or set template='never'",
    )


def _fill(layout: str, contents: Sequence[str]) -> str:
    return SLOT_PATTERN.sub(lambda match: contents[int(match.group(1))], layout)
