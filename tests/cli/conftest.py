"""A tiny model on disk, pairs to align it on, and the settings of a run that takes seconds."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import jaxalign
from jaxalign.cli import main
from jaxalign.models.model import Model
from jaxalign.models.weights import save_model
from tests import tiny

WORDS = ["sky", "sea", "grass", "blue", "green", "red", "deep", "tall"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and control tokens for a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    control = ["<|end|>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: index for index, token in enumerate([*control, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(control)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A one-layer model in Hugging Face layout."""
    tokenizer = byte_tokenizer()
    config = tiny.config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    model = Model(config)
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, model, model.init(jax.random.key(0)), tokenizer)
    return directory


def pair(i: int) -> dict[str, str]:
    first, second = WORDS[i % 3], WORDS[3 + i % 5]
    return {
        "prompt": f"what is the {first} {i}?",
        "chosen": f"{second}",
        "rejected": f"it is like {second} {WORDS[i % 7]}",
    }


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory) -> Path:
    """Twenty preference pairs: short answers are preferred."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("".join(json.dumps(pair(i)) + "\n" for i in range(20)))
    return file


@pytest.fixture(scope="session")
def flags(tiny_model, pairs_file):
    """The command line of a short run into a directory, as a function of what to change; None omits a setting."""

    def build(output: Path, command: str = "dpo", **changes) -> list[str]:
        settings = {
            "model.path": tiny_model,
            "data.path": pairs_file,
            "data.holdout": 4,
            "output": output,
            "train.batch_size": 4,
            "train.steps": 5,
            "train.row_lengths": "[64]",
            "train.eval_every": 2,
            "optim.learning_rate": 1e-2,
            "optim.warmup_ratio": 0,
            "samples.prompts": 1,
            "samples.max_new_tokens": 4,
        }
        settings |= {name.replace("__", "."): value for name, value in changes.items()}
        given = {name: value for name, value in settings.items() if value is not None}
        return [command, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]

    return build


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def same_model(a: Path, b: Path) -> bool:
    """Whether two saved models hold the same numbers."""
    (_, left), (_, right) = jaxalign.load_model(a), jaxalign.load_model(b)
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


@pytest.fixture
def error_of(capsys):
    """Runs a command with a mistake and returns its one line on standard error; the exit code is 2."""

    def run(arguments: list[str]) -> str:
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        (line,) = captured.err.splitlines()
        return line.removeprefix("jaxalign: ")

    return run
