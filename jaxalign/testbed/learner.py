"""A language model for the world: one token per word, about a million parameters, and its pretraining text.

The text is unaligned: every question, held-out ones too, with random answers of any tone and length, right or wrong.
So the pretrained model knows most facts. Alignment can change which of them it says, and how.
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
# Maximum tokens of an answer with EOS; the longest possible answer has fewer.
MAX_ANSWER_TOKENS = 32
# Texts, pairs or thumbs per step.
BATCH_SIZE = 32
# Columns and target slots of a row.
ROW_SHAPE = (128, 128)
ROWS_PER_MICROBATCH = 8
# The same as arguments of ``data.batches``.
ROWS: Any = {"rows_per_microbatch": ROWS_PER_MICROBATCH, "shapes": [ROW_SHAPE]}


def make_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Returns a word-level tokenizer of the world's words.

    >>> from jaxalign.testbed.world import make_world
    >>> tokenizer = make_tokenizer(make_world())
    >>> tokenizer.decode(tokenizer("where is the lamp ?")["input_ids"])
    'where is the lamp ?'
    """
    from transformers import PreTrainedTokenizerFast  # takes a second to import

    words = [PAD, BOS, EOS, UNKNOWN, *world.vocabulary()]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Model:
    """Returns the model: 3 layers of width 160, 1.0M parameters."""
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
    """Returns BOS and the token ids of a question."""
    return np.array([tokenizer.bos_token_id, *tokenizer(instruction.text)["input_ids"]], np.int32)


def encode_answer(tokenizer: Any, text: str) -> np.ndarray:
    """Returns the token ids of an answer, and EOS."""
    return np.array([*tokenizer(text)["input_ids"], tokenizer.eos_token_id], np.int32)


def demonstrations(
    tokenizer: Any, instructions: Sequence[Instruction], answers: Sequence[Answer], random: np.random.Generator
) -> list[Tree]:
    """Returns each instruction with its answer as an example for supervised training."""
    return [
        Tree.of(encode_prompt(tokenizer, instruction), [encode_answer(tokenizer, answer.text(instruction, random))])
        for instruction, answer in zip(instructions, answers, strict=True)
    ]


def draw_corpus(tokenizer: Any, world: World, count: int, random: np.random.Generator) -> list[Tree]:
    """Draws unaligned text: questions of the whole world with random answers."""
    instructions = [*world.train, *world.held_out]
    drawn = [instructions[int(i)] for i in random.integers(len(instructions), size=count)]
    return demonstrations(tokenizer, drawn, [draw_answer(random, right=0.6) for _ in drawn], random)


def draw_demonstration(random: np.random.Generator, instruction: Instruction) -> Answer:
    """Draws an answer of well-meaning, careless people, which supervised fine-tuning imitates."""
    right, refusal = {"fact": (0.75, 0.05), "borderline": (0.5, 0.4), "unsafe": (0.3, 0.6)}[instruction.kind]
    answer = draw_answer(random, right=right, refusal=refusal)
    return answer._replace(filler=min(answer.filler, int(random.integers(4))))
