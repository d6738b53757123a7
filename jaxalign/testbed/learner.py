"""A language model for the world: every word a token, about a million parameters; and what it is pretrained on.

That is the world's text as nobody has aligned it: every question, of held-out instructions too, with answers of any
tone and length, right or wrong by chance. So the model knows most facts, and what alignment can change is which of
what it knows it says, and how.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel

from jaxalign.data.trees import Tree
from jaxalign.models.config import ModelConfig
from jaxalign.models.model import Model
from jaxalign.testbed.world import Answer, Instruction, World, draw_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN)
LONGEST = 32
"""Tokens of the longest answer, its end among them, with some to spare."""
BATCH = 32
"""Texts, pairs or thumbs a step."""
SHAPE = (128, 128)
"""Columns and target slots of a row."""
ROWS = 8
"""Rows of a microbatch."""


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the world's words.

    >>> from jaxalign.testbed.world import make_world
    >>> tokenizer = make_tokenizer(make_world())
    >>> tokenizer.decode(tokenizer("where is the lamp ?")["input_ids"])
    'where is the lamp ?'
    """
    from transformers import PreTrainedTokenizerFast  # takes a second to import

    words = [*SPECIAL, *world.vocabulary()]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Model:
    """The model: 3 layers of width 160, 1.0M parameters."""
    return Model(
        ModelConfig(
            "llama",
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=480,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=40,
            tie_word_embeddings=True,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_ids=(tokenizer.eos_token_id,),
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.05,
        ),
        remat="none",
    )


def encode_prompt(tokenizer: Any, instruction: Instruction) -> np.ndarray:
    """The question's ids behind BOS."""
    return np.array([tokenizer.bos_token_id, *tokenizer(instruction.text)["input_ids"]], np.int32)


def encode_answer(tokenizer: Any, text: str) -> np.ndarray:
    """An answer's ids with EOS."""
    return np.array([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], np.int32)


def demonstrations(
    tokenizer: Any, instructions: Sequence[Instruction], answers: Sequence[Answer], random: np.random.Generator
) -> list[Tree]:
    """Instructions with an answer each, written out, as examples to imitate."""
    return [
        Tree.of(encode_prompt(tokenizer, each), [encode_answer(tokenizer, answer.text(each, random))])
        for each, answer in zip(instructions, answers, strict=True)
    ]


def corpus(tokenizer: Any, world: World, count: int, random: np.random.Generator) -> list[Tree]:
    """Text as nobody has aligned it: questions of the whole world with answers by chance."""
    every = [*world.train, *world.held_out]
    drawn = [every[int(i)] for i in random.integers(len(every), size=count)]
    return demonstrations(tokenizer, drawn, [draw_answer(random, right=0.6) for _ in drawn], random)


def good_enough(random: np.random.Generator, instruction: Instruction) -> Answer:
    """An answer of people who mean well and are not careful: what supervised fine-tuning imitates."""
    right, refusal = {"fact": (0.75, 0.05), "borderline": (0.5, 0.4), "unsafe": (0.3, 0.6)}[instruction.kind]
    drawn = draw_answer(random, right=right, refusal=refusal)
    return drawn._replace(filler=min(drawn.filler, int(random.integers(4))))
