"""Text to token ids, such that a prompt's ids and then a completion's are what the model sees and must produce.

Three rules hold for any text: nothing merges across the boundary between prompt and completion; what a user wrote never
becomes a control token, even where it spells one; and the ids of a prompt are those that inference would feed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxalign.data.files import Problem
from jaxalign.data.messages import Message
from jaxalign.errors import UserError, first_line

Ids = list[int]
Run = int | str  # a control token's id, or ordinary text
ANCHORS = ("\n", "\0", "|", "0")
SLOT = "q7Zc{}Jx"  # stands for the content of a message when only the template is looked at
SLOT_PATTERN = re.compile(r"q7Zc(\d+)Jx")


class Turns(NamedTuple):
    """A prompt and what follows, of which the mask says what the assistant wrote."""

    prompt: Ids
    completion: Ids
    mask: list[bool]


class Encoder:
    """A ``transformers`` tokenizer with the rules above."""

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
        # SentencePiece puts a space before a text's first word. Behind other text it does not: then cut that off.
        self.anchors = ("",) if self._encode("\na") == self._encode("\n") + self._encode("a") else ANCHORS
        self._layouts: dict[tuple[tuple[str, ...], bool], str] = {}

    def document(self, text: str) -> Ids:
        """Plain text that starts a document: what the tokenizer puts in front (BOS), once, and the text."""
        return self.bos + (self._ordinary(text, first=True) if text else [])

    def continuation(self, text: str) -> Ids:
        """Plain text that goes on where another stopped."""
        return self._ordinary(text)

    def prompt(self, messages: Sequence[Message]) -> Ids | Problem:
        """A chat that waits for an answer: ``apply_chat_template(messages, add_generation_prompt=True)``."""
        found = self.conversation(messages, [])
        return found if isinstance(found, Problem) else found[0]

    def conversation(self, messages: Sequence[Message], replies: Sequence[str]) -> tuple[Ids, list[Ids]] | Problem:
        """A chat as the tokenizer's template renders it: (prompt, one completion per reply).

        The prompt is :meth:`prompt`. A completion is what the template puts behind it for an assistant's message, up to
        and including the first control token after the content (EOS if there is none): what the model has to write
        until it hands over.
        """
        layout, asked = self._layout(messages, generate=True), self._render(messages, generate=True)
        if isinstance(layout, Problem):
            return layout
        if isinstance(asked, Problem):
            return asked
        contents = _contents(layout, asked, messages)
        if contents is not None:
            prompt = self._encode_prompt(layout, contents)
        elif self._spells_control(message.content for message in messages):
            return _rewritten()
        else:  # a template may rewrite what was said: inference then sees that, and so do we
            prompt = self._at_once(asked)
        completions = []
        for reply in replies:
            runs = self._reply(messages, reply, layout, asked)
            if isinstance(runs, Problem):
                return runs
            completions.append(self._encode_runs(runs))
        return prompt, completions

    def turns(self, messages: Sequence[Message], start: int = 0) -> list[Turns] | Problem:
        """Every answer of the assistant from message ``start`` on, each behind the prompt that inference would feed.

        A prompt that goes on from the answer before it joins that text, so a whole conversation is one. Where the
        template rewrites history (drops the reasoning of earlier turns, say) it does not, and the answer begins a new
        text: what is learned is always what has to be written next.
        """
        texts: list[Turns] = []
        seen: Ids = []
        for number, message in enumerate(messages):
            if message.role != "assistant" or number < start:
                continue
            found = self.conversation(messages[:number], [message.content])
            if isinstance(found, Problem):
                return found
            prompt, (reply,) = found
            if texts and prompt[: len(seen)] == seen:
                first, completion, mask = texts[-1]
                between = prompt[len(seen) :]
                flags = [*mask, *[False] * len(between), *[True] * len(reply)]
                texts[-1] = Turns(first, [*completion, *between, *reply], flags)
            else:
                texts.append(Turns(prompt, reply, [True] * len(reply)))
            seen = prompt + reply
        return texts

    def _reply(self, messages: Sequence[Message], reply: str, opening: str, asked: str) -> list[Run] | Problem:
        """What the template writes behind the prompt (its layout, its text) for this answer, up to the turn's end."""
        whole = [*messages, Message("assistant", reply)]
        layout, answered = self._layout(whole, generate=False), self._render(whole, generate=False)
        if isinstance(layout, Problem):
            return layout
        if isinstance(answered, Problem):
            return answered
        contents = _contents(layout, answered, whole)
        if contents is not None:
            said = contents[-1]
            before, behind, after = layout[len(opening) :].partition(SLOT.format(len(messages)))
        else:
            said = next((text for text in (reply, reply.strip()) if text in answered[len(asked) :]), "")
            if not said or self._spells_control(message.content for message in whole):
                return _rewritten()
            before, behind, after = answered[len(asked) :].partition(said)
        if not layout.startswith(opening) or not answered.startswith(asked) or not behind:
            return Problem(
                "unusable chat template",
                "the tokenizer's chat template does not render an answer behind its own generation prompt: "
                "use another template, or data.template=never",
            )
        end = self._split_control(after)
        if not any(isinstance(run, int) for run in end):
            end = [self.tokenizer.eos_token_id]
        end = end[: next(i for i, run in enumerate(end) if isinstance(run, int)) + 1]
        return [*self._split_control(before), said, *end]

    def _encode_prompt(self, layout: str, contents: Sequence[str]) -> Ids:
        runs: list[Run] = []
        for i, piece in enumerate(SLOT_PATTERN.split(layout)):  # template, number, template, number, …
            runs += [contents[int(piece)]] if i % 2 else self._split_control(piece)
        at_once = self._at_once(_fill(layout, contents))
        wanted = [run for run in runs if run in self.control_ids]
        # Inference tokenises the rendered text in one go: so do we, unless some content spells a control token.
        clean = not self._spells_control(contents) and [id for id in at_once if id in self.control_ids] == wanted
        return at_once if clean else self._encode_runs(runs)

    def _encode_runs(self, runs: Sequence[Run]) -> Ids:
        ids: Ids = []
        text = ""
        strip = False  # some control tokens swallow the spaces beside them
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
        # In some vocabularies a control token's spelling is also an ordinary entry: cut the look-alike in two.
        match = self.control_pattern.search(text)
        if match is None:
            raise ValueError(f"the tokenizer makes a control token of the ordinary text {text!r}")
        cut = match.start() + 1
        return self._ordinary(text[:cut], first) + self._ordinary(text[cut:])

    def _behind(self, text: str) -> Ids:
        """Text that goes on, cut off behind an anchor that no token joins it to."""
        for anchor in self.anchors:
            opening, ids = self._encode(anchor), self._encode(anchor + text)
            if ids[: len(opening)] == opening:
                return ids[len(opening) :]
        raise UserError(f"the tokenizer cannot encode {text[:20]!r} behind other text: use another tokenizer")

    def _spells_control(self, texts: Iterable[str]) -> bool:
        return any(map(self.control_pattern.search, texts))

    def _at_once(self, rendered: str) -> Ids:
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _encode(self, text: str) -> Ids:
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _opening(self) -> Ids:
        """What the tokenizer puts before a text (BOS, if anything), found by looking: it has no common name."""
        with_special, without = (self.tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
        for start in range(len(with_special) - len(without) + 1):
            if with_special[start : start + len(without)] == without:
                return list(with_special[:start])
        return []

    def _layout(self, messages: Sequence[Message], generate: bool) -> str | Problem:
        """The template rendered with a slot in place of each content; it depends on the roles alone."""
        roles = tuple(message.role for message in messages)
        if (roles, generate) not in self._layouts:
            slots = [Message(role, SLOT.format(i)) for i, role in enumerate(roles)]
            layout = self._render(slots, generate)
            if isinstance(layout, Problem):
                return layout
            self._layouts[roles, generate] = layout
        return self._layouts[roles, generate]

    def _render(self, messages: Sequence[Message], generate: bool) -> str | Problem:
        try:
            return self.tokenizer.apply_chat_template(
                [message._asdict() for message in messages], tokenize=False, add_generation_prompt=generate
            )
        except Exception as error:  # a template is a program: it may raise anything
            return Problem(
                "refused by the chat template", f"the tokenizer's chat template refuses it ({first_line(error)})"
            )


def _contents(layout: str, rendered: str, messages: Sequence[Message]) -> list[str] | None:
    """The contents as the template writes them, as they are or stripped; None if it writes something else."""
    for contents in ([m.content for m in messages], [m.content.strip() for m in messages]):
        if _fill(layout, contents) == rendered:
            return contents
    return None


def _rewritten() -> Problem:
    return Problem(
        "rewritten content",
        "the tokenizer's chat template changes what a message says, so what the model must produce is not known: "
        "use another template, or data.template=never",
    )


def _fill(layout: str, contents: Sequence[str]) -> str:
    return SLOT_PATTERN.sub(lambda match: contents[int(match.group(1))], layout)
