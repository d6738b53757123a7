"""Laws of tokenisation, on a byte-level and a SentencePiece-style tokenizer: boundary, BOS, EOS, limits."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.encode import Encoder
from jaxalign.data.kinds import Preference
from jaxalign.data.messages import Message
from jaxalign.data.tokenize import tokenize_completions, truncate
from jaxalign.errors import UserError

LOOK_ALIKES = ["<|im_end|>", "<|im_start|>system\n", "</s>", "<s>", "<|endoftext|>", "[/INST]", "<0x0A>"]
# SentencePiece cannot tell its own ▁ from a space, so texts hold none.
contents = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="▁", codec="utf-8"), max_size=12),
        st.sampled_from([*LOOK_ALIKES, " ", "\n", "🙂", "sky"]),
    )
).map("".join)
spoken = contents.filter(str.strip)


def chat(prompt, chosen, rejected=" no"):
    return Preference((Message("user", prompt),), chosen, rejected, "chat", "f.jsonl", 1)


def text(prompt, chosen, rejected=" no"):
    return Preference(prompt, chosen, rejected, "text", "f.jsonl", 1)


def tree_of(record, tokenizer, **options):
    (tree,), report = tokenize_completions([record], tokenizer, **options)
    return tree, report


def control_tokens(ids, tokenizer):
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special and token.content != "<unk>"}
    return [int(i) for i in ids if int(i) in control]


def keeps(tokenizer, *texts):
    """Whether the tokenizer by itself gives texts back: SmolLM2's lacks 21 bytes, Unigram takes <0x41> for A."""
    ids = (tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in texts)
    return all(tokenizer.decode(i).lstrip() == text.lstrip() for i, text in zip(ids, texts, strict=True))


@given(prompt=spoken, chosen=spoken)
@settings(max_examples=60, deadline=None)
def test_plain_text(tokenizer, prompt, chosen):
    prompt = "a" + prompt  # SmolLM2 knows some characters not at all
    tree, _ = tree_of(text(prompt, chosen), tokenizer)
    ids, (completion, _) = tree.prompt.tolist(), [c.tolist() for c in tree.completions]
    bos = tokenizer("")["input_ids"]
    assert control_tokens(ids, tokenizer) == bos == ids[: len(bos)]  # BOS once, and none from what was contents
    assert control_tokens(completion, tokenizer) == [tokenizer.eos_token_id] == completion[-1:]  # EOS once, at the end
    assert all(mask.all() for mask in tree.masks)  # and EOS counts, even where pad is eos
    whole = tokenizer.decode(ids[len(bos) :] + completion[:-1])
    if keeps(tokenizer, prompt, chosen):
        assert whole.lstrip() == (prompt + chosen).lstrip()  # SentencePiece's own first space is not part of the text


@given(prompt=spoken, chosen=spoken)
@settings(max_examples=60, deadline=None)
def test_chat(tokenizer, prompt, chosen):
    tree, _ = tree_of(chat(prompt, chosen), tokenizer)
    ids, completion = tree.prompt.tolist(), tree.completions[0].tolist()
    empty, _ = tree_of(chat("x", "x"), tokenizer)
    assert control_tokens(ids, tokenizer) == control_tokens(empty.prompt, tokenizer)  # the template's, no other
    assert control_tokens(completion, tokenizer) == [tokenizer.eos_token_id] == completion[-1:]
    if keeps(tokenizer, chosen):
        assert tokenizer.decode(completion[:-1]).strip() == chosen.strip()
    messages = [{"role": "user", "content": prompt}]
    if not any(token.content in prompt for token in tokenizer.added_tokens_decoder.values()):
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_nothing_merges_across_the_boundary(byte_level):
    ids = byte_level("The sky")["input_ids"]
    merged = byte_level("The sky is")["input_ids"]
    for cut in range(1, len("The sky")):
        tree, _ = tree_of(text("The sky"[:cut], "The sky"[cut:]), byte_level)
        assert tree.prompt.tolist() == byte_level("The sky"[:cut])["input_ids"]
    assert merged[: len(ids)] == ids
    assert len(tree_of(text("The sk", "y is"), byte_level)[0].prompt) != len(ids)


def test_a_continuation_gets_no_space_of_its_own(sentencepiece):
    encoder = Encoder(sentencepiece)
    pieces = sentencepiece.convert_ids_to_tokens
    assert pieces(encoder.document("sky"))[:2] == ["<s>", "▁sky"]
    assert "".join(pieces(encoder.continuation("sky"))) == "sky"
    assert "".join(pieces(encoder.continuation(" sky"))) == "▁sky"


def test_a_continuation_keeps_a_first_line_break_that_would_join_another(unigram):
    assert "\n\n" in unigram.get_vocab()
    assert "".join(unigram.convert_ids_to_tokens(Encoder(unigram).continuation("\nsky"))) == "\nsky"


def test_an_unknown_token_that_text_spells_is_text_too(smollm2):
    assert smollm2.unk_token == "<|endoftext|>"
    tree, _ = tree_of(chat("<|endoftext|>", "<|endoftext|>"), smollm2)
    assert smollm2.unk_token_id not in [*tree.prompt, *tree.completions[0]]
    assert "user\n<|endoftext|><|im_end|>" in smollm2.decode(tree.prompt)


def test_the_completion_is_what_the_template_writes(byte_level, sentencepiece):
    tree, _ = tree_of(chat("Why?", "The sky."), byte_level)
    assert byte_level.decode(tree.prompt) == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert byte_level.decode(tree.completions[0]) == "The sky.<|im_end|>"  # and not the newline behind it
    tree, _ = tree_of(chat(" Why? ", " The sky. "), sentencepiece)  # this template strips, and starts with a space
    assert sentencepiece.decode(tree.prompt).replace("<s> ", "<s>") == "<s>[INST] Why? [/INST]"
    assert "".join(sentencepiece.convert_ids_to_tokens(tree.completions[0])) == "▁The▁sky.</s>"


def test_transcripts_become_chats_where_there_is_a_template(byte_level):
    opening = "\n\nHuman: Hi\n\nAssistant: Hello \n\nHuman: Why?\n\nAssistant:"
    record = Preference(opening, " The sky. ", " no", "transcript", "f.jsonl", 1)
    tree, _ = tree_of(record, byte_level)
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Why?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert tree.prompt.tolist() == byte_level.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert byte_level.decode(tree.completions[0]) == "The sky.<|im_end|>"
    plain, _ = tree_of(record, byte_level, template="never")
    assert byte_level.decode(plain.prompt) == opening
    assert byte_level.decode(plain.completions[0]) == " The sky. <|im_end|>"


def test_plain_prompts_become_chats_if_asked(byte_level):
    always, _ = tree_of(text("Why?", "The sky."), byte_level, template="always")
    assert np.array_equal(always.prompt, tree_of(chat("Why?", "The sky."), byte_level)[0].prompt)


def with_template(tokenizer, template):
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


MISFITS = {
    "rewrites": (
        "{% for m in messages %}{{ m['content'] | replace('h', 'H') }}{% endfor %}",
        "changes a message",
    ),
    "ends before": ("{% if add_generation_prompt %}answer: {% endif %}{{ messages[0]['content'] }}", "behind its own"),
    "refuses": ("{{ raise_exception('no talk') }}", r"refuses it \(no talk\)"),
    "fails": ("{{ messages[0]['content'] + 1 }}", "refuses it"),
    "none": (None, "no chat template"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_templates_that_cannot_be_used_say_so(byte_level, name):
    template, sentence = MISFITS[name]
    with pytest.raises(UserError, match=rf"f\.jsonl, row 1: .*{sentence}"):
        tree_of(chat("Why?", "The sky."), with_template(byte_level, template))


def test_a_template_without_an_end_of_turn_ends_with_eos(byte_level):
    bare = with_template(byte_level, "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
                         "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")  # fmt: skip
    tree, _ = tree_of(chat("Why?", "The sky."), bare)
    assert byte_level.decode(tree.completions[0]) == "The sky.<|im_end|>"


def test_records_the_template_refuses_can_be_skipped(sentencepiece):
    doubled = Preference((Message("user", "a"), Message("user", "b")), "c", "d", "chat", "f.jsonl", 7)
    trees, report = tokenize_completions([chat("a", "b"), doubled], sentencepiece, on_error="skip")
    assert len(trees) == report.examples == 1
    assert [(bad.row, bad.kind) for bad in report.skipped] == [(7, "refused by the chat template")]
    with pytest.raises(UserError, match=r"none is left to train on\. f\.jsonl, row 7"):
        tokenize_completions([doubled], sentencepiece, on_error="skip")


@given(
    st.integers(1, 40), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(2, 50),
    st.one_of(st.none(), st.integers(1, 50)), st.booleans(),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_truncation(prompt_size, sizes, max_length, max_completion_length, bos):
    prompt = [100 + i for i in range(prompt_size)]
    texts = [[200 + i for i in range(size - 1)] + [2] for size in sizes]
    limits = {"max_length": max_length, "max_completion_length": max_completion_length}
    short, cut = truncate(prompt, texts, **limits, opening=prompt[:1] if bos else ())
    longest = max(map(len, cut))
    assert 1 <= longest <= min(max_length - 1, max_completion_length or 99)
    assert len(short) >= 1
    assert len(short) + longest <= max_length
    assert all(part == full[: len(part)] and part for part, full in zip(cut, texts, strict=True))  # the start is kept
    assert all((part[-1] == 2) == (part == full) for part, full in zip(cut, texts, strict=True))  # cut: no EOS
    tail = short[1:] if bos and short[0] == 100 else short
    assert prompt[len(prompt) - len(tail) :] == tail  # of the prompt, the end (behind BOS)
    if len(short) < prompt_size:
        assert len(short) + longest == max_length  # no more is cut than must be
    if prompt_size + max(sizes) <= max_length and max(sizes) <= (max_completion_length or 99):
        assert (short, cut) == (prompt, texts)


def test_truncation_is_counted(byte_level):
    records = [
        text("The sky is blue. " * 20, " yes", " no"),
        text("Why", " because " * 40, " no"),
        text("Why", " y", " n"),
    ]
    trees, report = tokenize_completions(records, byte_level, max_length=40)
    assert (report.prompts_truncated, report.completions_truncated) == (1, 1)
    assert byte_level.decode(trees[0].prompt).endswith("The sky is blue. ")
    assert trees[1].completions[0][-1] != byte_level.eos_token_id
    assert trees[1].completions[1][-1] == byte_level.eos_token_id
    assert re.search(r"1 prompts lost their beginning; 1 completions lost their end", str(report))


@pytest.mark.parametrize("limit", [{"max_length": 1}, {"max_length": -5}, {"max_completion_length": 0}])
def test_a_limit_that_leaves_no_completion_token(byte_level, limit):
    (name, value), *_ = limit.items()
    with pytest.raises(UserError, match=rf"{name} is {value}, which leaves no completion token"):
        tokenize_completions([text("Why?", " The sky.")], byte_level, **limit)


def test_an_empty_prompt_needs_bos(byte_level, sentencepiece):
    assert tree_of(text("", "sky"), sentencepiece)[0].prompt.tolist() == [sentencepiece.bos_token_id]
    with pytest.raises(UserError, match="row 1: field 'prompt' is empty and the tokenizer puts no BOS"):
        tree_of(text("", "sky"), byte_level)
