"""Laws of conversations, for any text and four tokenizers: what counts, what stands before it, what never appears."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.kinds import Demonstration, Prompt, UnpairedPreference
from jaxalign.data.messages import Message
from jaxalign.data.tokenize import tokenize_completions, tokenize_prompts
from jaxalign.errors import UserError

LOOK_ALIKES = ["<|im_end|>", "<|im_start|>assistant\n", "</s>", "<s>", "<|endoftext|>", "<unk>", "[/INST]", "<0x0A>"]
# SentencePiece cannot tell its own ▁ from a space, so texts hold none.
contents = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="▁", codec="utf-8"), max_size=12),
        st.sampled_from([*LOOK_ALIKES, " ", "\n", "🙂", "sky"]),
    )
).map("".join)
spoken = contents.filter(str.strip)
# Without what could begin a control token, for laws that compare with a tokenizer's own way.
plain = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="▁<", codec="utf-8"), max_size=12),
        st.sampled_from([" ", "\n", "🙂", "sky", " [/INST]"]),
    )
).map("".join).filter(str.strip)  # fmt: skip


def talks(texts):
    return st.lists(st.tuples(texts, texts), min_size=1, max_size=3).map(
        lambda pairs: [t for pair in pairs for t in pair]
    )


law = settings(max_examples=40, deadline=None)


def conversation(texts):
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts))


def control(ids, tokenizer):
    tokens = tokenizer.added_tokens_decoder
    return [i for i in map(int, ids) if i in tokens and tokens[i].special and tokens[i].content != "<unk>"]


def keeps(tokenizer, text):
    """Whether the tokenizer by itself gives a text back: SmolLM2's lacks 21 bytes, Unigram takes <0x41> for A."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tokenizer.decode(ids).lstrip() == text.lstrip()


def answers(tree):
    """(everything before, what counts) for each stretch of tokens that counts."""
    ids, mask = np.concatenate([tree.prompt, tree.completions[0]]), np.pad(tree.masks[0], (len(tree.prompt), 0))
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=0, append=0)).reshape(-1, 2)
    return [(ids[:start].tolist(), ids[start:end].tolist()) for start, end in edges]


def fed(messages, tokenizer):
    """What inference feeds to get the next answer."""
    (((ids, _),), _) = tokenize_prompts([Prompt(tuple(messages), "chat")], tokenizer)
    return ids


@given(texts=talks(spoken))
@law
def test_every_answer_counts_and_stands_behind_what_inference_feeds(tokenizer, texts):
    talk = conversation(texts)
    trees, _ = tokenize_completions([Demonstration(talk[:1], talk[1:], "chat")], tokenizer)
    learned = [answer for tree in trees for answer in answers(tree)]
    assert len(learned) == len(talk) // 2
    for turn, (before, counted) in zip(range(1, len(talk), 2), learned, strict=True):
        assert before == fed(talk[:turn], tokenizer)
        assert control(counted, tokenizer) == [tokenizer.eos_token_id] == counted[-1:]
        if keeps(tokenizer, talk[turn].content):
            assert tokenizer.decode(counted[:-1]).strip() == talk[turn].content.strip()


@given(texts=talks(spoken))
@law
def test_what_is_said_never_becomes_a_control_token(tokenizer, texts):
    plain = conversation(["sky"] * len(texts))
    for loss_on in ("assistant", "all"):
        trees, expected = (
            tokenize_completions([Demonstration(talk[:1], talk[1:], "chat")], tokenizer, loss_on=loss_on)[0]
            for talk in (conversation(texts), plain)
        )
        ids = [control([*tree.prompt, *tree.completions[0]], tokenizer) for tree in (trees[-1], expected[-1])]
        assert ids[0] == ids[1]  # those of the template and no other
    first, second = ("a" + text for text in texts[:2])  # SmolLM2 knows some characters not at all
    (whole,), _ = tokenize_completions([Demonstration("", first, "text")], tokenizer)
    (pair,), _ = tokenize_completions([UnpairedPreference(first, second, True, "text")], tokenizer)
    for tree in (whole, pair):
        ends = [*tokenizer("")["input_ids"], tokenizer.eos_token_id]  # BOS once, if it has one, and EOS once
        assert control([*tree.prompt, *tree.completions[0]], tokenizer) == ends


@given(texts=talks(plain))
@law
def test_inference_feeds_what_the_tokenizers_own_template_gives(tokenizer, texts):
    asked = [message._asdict() for message in conversation(texts)[:-1]]
    expected = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert fed(conversation(texts)[:-1], tokenizer) == expected


@given(text=plain)
@law
def test_a_whole_text_is_the_tokenizers_own_and_eos(tokenizer, text):
    if not tokenizer(text)["input_ids"]:  # some of the bytes that SmolLM2 lacks, and no other
        with pytest.raises(UserError, match="data, row 0: the text has no token"):
            tokenize_completions([Demonstration("", text, "text")], tokenizer)
        return
    (tree,), _ = tokenize_completions([Demonstration("", text, "text")], tokenizer)
    assert [*tree.prompt, *tree.completions[0]] == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert tree.masks[0].all()
    assert len(tree.prompt) == 1


@given(texts=talks(plain), thoughts=st.lists(plain, min_size=3, max_size=3))
@law
def test_an_answer_is_what_comes_next_where_history_is_rewritten(forgetful, texts, thoughts):
    talk = [
        message if message.role == "user" else Message("assistant", f"{thoughts[i // 2]}</think>{message.content}")
        for i, message in enumerate(conversation(texts))
    ]
    trees, _ = tokenize_completions([Demonstration((talk[0],), tuple(talk[1:]), "chat")], forgetful)
    learned = [answer for tree in trees for answer in answers(tree)]
    assert len(learned) == len(talk) // 2
    for turn, (before, counted) in zip(range(1, len(talk), 2), learned, strict=True):
        asked = [message._asdict() for message in talk[:turn]]
        assert before == forgetful.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        assert counted[-1] == forgetful.eos_token_id
        if keeps(forgetful, talk[turn].content):
            assert forgetful.decode(counted[:-1]).strip() == talk[turn].content.strip()  # with its reasoning


@pytest.fixture(scope="module")
def forgetful(tokenizer):
    """The tokenizer with a template that leaves the reasoning of earlier turns out, as those of reasoning models do."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' }}"
        "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    return changed
