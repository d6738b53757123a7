"""What counts in supervised fine-tuning: the assistant's tokens or all, in one turn or many."""

import copy

import numpy as np
import pytest

from jaxalign.data.encode import Encoder
from jaxalign.data.kinds import Demonstration, Prompt
from jaxalign.data.messages import Message
from jaxalign.data.records import read_records
from jaxalign.data.tokenize import tokenize_completions, tokenize_prompts
from jaxalign.errors import UserError

SYSTEM, WHY, AIR, AND, LATER = (
    Message("system", "Be brief."),
    Message("user", "Why is the sky blue?"),
    Message("assistant", "Air."),
    Message("user", "And red?"),
    Message("assistant", "Evening."),
)
# Leaves the reasoning of earlier turns out, and that of no turn once it is the last, as Qwen's and others' do.
FORGETS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chat(*messages, cut):
    return Demonstration(messages[:cut], messages[cut:], "chat", "f.jsonl", 1)


def trees_of(record, tokenizer, **options):
    return tokenize_completions([record], tokenizer, **options)[0]


def counted(tree, tokenizer):
    """The text of each stretch of tokens that counts."""
    (completion,), (mask,) = tree.completions, tree.masks
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(completion[a:b]) for a, b in edges.reshape(-1, 2)]


def whole(tree):
    return [*tree.prompt.tolist(), *tree.completions[0].tolist()]


def test_every_turn_of_the_assistant_counts_with_its_end(byte_level):
    (tree,) = trees_of(chat(SYSTEM, WHY, AIR, AND, LATER, cut=2), byte_level)
    assert counted(tree, byte_level) == ["Air.<|im_end|>", "Evening.<|im_end|>"]
    rendered = byte_level.apply_chat_template([m._asdict() for m in (SYSTEM, WHY, AIR, AND, LATER)], tokenize=False)
    assert byte_level.decode(whole(tree)) + "\n" == rendered
    asked = byte_level.apply_chat_template([m._asdict() for m in (SYSTEM, WHY)], add_generation_prompt=True)
    assert tree.prompt.tolist() == asked["input_ids"]


def test_turns_end_with_eos_where_the_template_ends_them_so(sentencepiece):
    (tree,) = trees_of(chat(WHY, AIR, AND, LATER, cut=1), sentencepiece)
    assert [text.strip() for text in counted(tree, sentencepiece)] == ["Air.</s>", "Evening.</s>"]
    assert whole(tree).count(sentencepiece.bos_token_id) == 1


def test_turns_before_the_completion_are_context(byte_level):
    (tree,) = trees_of(chat(WHY, AIR, AND, LATER, cut=3), byte_level)
    assert counted(tree, byte_level) == ["Evening.<|im_end|>"]
    assert "Air." in byte_level.decode(tree.prompt)


def test_all_tokens_count_but_the_first(tokenizer):
    conversation = chat(WHY, AIR, AND, LATER, cut=1)
    (tree,) = trees_of(conversation, tokenizer, loss_on="all")
    assert len(tree.prompt) == 1
    assert tree.masks[0].all()
    assert whole(tree) == whole(trees_of(conversation, tokenizer)[0])
    text = Demonstration("The sky is", " blue.", "text")
    (tree,) = trees_of(text, tokenizer, loss_on="all")
    assert whole(tree) == whole(trees_of(text, tokenizer)[0])
    assert (len(tree.prompt), tree.masks[0].all()) == (1, True)


def test_a_text_is_modelled_as_a_whole(tokenizer):
    for loss_on in ("assistant", "all"):
        (tree,) = trees_of(Demonstration("", "The sky is blue.", "text"), tokenizer, loss_on=loss_on)
        assert len(tree.prompt) == 1
        assert tree.masks[0].all()
        assert whole(tree) == [*tokenizer("The sky is blue.")["input_ids"], tokenizer.eos_token_id]


def test_an_instruction_is_a_users_message_or_has_alpacas_layout(byte_level):
    record = Demonstration("Why?\n\nThe sky", "Air.", "instruction")
    (tree,) = trees_of(record, byte_level)
    assert byte_level.decode(tree.prompt) == "<|im_start|>user\nWhy?\n\nThe sky<|im_end|>\n<|im_start|>assistant\n"
    (tree,) = trees_of(record, byte_level, template="never")
    assert byte_level.decode(tree.prompt) == "### Instruction:\nWhy?\n\nThe sky\n\n### Response:\n"
    assert counted(tree, byte_level) == ["Air.<|im_end|>"]


def test_where_the_template_rewrites_history_every_answer_stands_behind_what_inference_shows(byte_level):
    forgetful = copy.deepcopy(byte_level)
    forgetful.chat_template = FORGETS
    hmm, later = Message("assistant", "Hm.</think>Air."), Message("assistant", "So.</think>Evening.")
    trees = trees_of(chat(WHY, hmm, AND, later, cut=1), forgetful)
    assert [counted(tree, forgetful) for tree in trees] == [
        ["Hm.</think>Air.<|im_end|>"],
        ["So.</think>Evening.<|im_end|>"],
    ]
    for tree, before in zip(trees, ([WHY], [WHY, hmm, AND]), strict=True):
        asked = [message._asdict() for message in before]
        assert tree.prompt.tolist() == forgetful.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert "Hm." not in forgetful.decode(trees[1].prompt)
    (joined,) = trees_of(chat(WHY, AIR, AND, later, cut=1), forgetful)  # nothing to forget: one text
    assert counted(joined, forgetful) == ["Air.<|im_end|>", "So.</think>Evening.<|im_end|>"]
    (tree,) = trees_of(chat(WHY, hmm, AND, later, cut=1), forgetful, loss_on="all")
    assert whole(tree) == whole(trees[1])


def test_rewritten_content_that_spells_a_control_token_is_refused(byte_level):
    forgetful = copy.deepcopy(byte_level)
    forgetful.chat_template = FORGETS
    trick = Message("assistant", "Hm.</think><|im_end|>")
    with pytest.raises(UserError, match=r"f\.jsonl, row 1: .*changes a message"):
        trees_of(chat(WHY, trick, AND, LATER, cut=3), forgetful)


def test_limits_keep_masks_and_tokens_together(byte_level):
    record = chat(WHY, AIR, AND, LATER, cut=1)
    (full,) = trees_of(record, byte_level)
    for size in range(1, len(full.completions[0]) + 1):
        (tree,) = trees_of(record, byte_level, max_completion_length=size)
        assert tree.completions[0].tolist() == full.completions[0][:size].tolist()
        assert tree.masks[0].tolist() == full.masks[0][:size].tolist()
    (tree,) = trees_of(record, byte_level, max_length=20, loss_on="all")
    assert len(whole(tree)) == 20


def test_chats_need_a_template(byte_level):
    with pytest.raises(UserError, match="no chat template"):
        trees_of(chat(WHY, AIR, cut=1), byte_level, template="never")
    with pytest.raises(UserError, match=r"loss_on is 'some'"):
        trees_of(chat(WHY, AIR, cut=1), byte_level, loss_on="some")


def test_prompts_are_what_inference_feeds(tokenizer):
    records = [Prompt((WHY,), "chat", {"answer": 3}), Prompt("The sky is", "text", {"answer": 4})]
    prompts, report = tokenize_prompts(records, tokenizer)
    asked = tokenizer.apply_chat_template([WHY._asdict()], add_generation_prompt=True)["input_ids"]
    assert prompts == [(asked, {"answer": 3}), (tokenizer("The sky is")["input_ids"], {"answer": 4})]
    assert (report.examples, report.longest, report.prompts_truncated) == (2, len(asked), 0)
    opening = Encoder(tokenizer).bos
    (first, second), report = tokenize_prompts(records, tokenizer, max_length=4)
    assert first[0] == [*opening, *asked[len(opening) - 4 :]]
    assert len(second[0]) <= 4
    assert report.prompts_truncated >= 1


def test_instructions_and_questions_as_they_are_shipped(shared_data, byte_level):
    file = shared_data / "llms-from-scratch" / "instruction-data.json"
    records, report = read_records(Demonstration, file)
    assert (report.rows_kept, len(records), {record.format for record in records}) == (1100, 1100, {"instruction"})
    trees, report = tokenize_completions(records[:50], byte_level)
    assert report.examples == 50
    assert byte_level.decode(trees[0].completions[0]) == f"{records[0].completion}<|im_end|>"
    with pytest.raises(UserError, match=r"row 1: field 'prompt' is missing .*'question', 'answer'"):
        read_records(Prompt, shared_data / "gsm8k" / "gsm8k.jsonl.gz")
    questions, report = read_records(Prompt, shared_data / "gsm8k" / "gsm8k.jsonl.gz", columns={"prompt": "question"})
    assert len(questions) == report.rows == report.rows_kept
    prompts, _ = tokenize_prompts(questions[:20], byte_level, template="always")
    assert all("####" in row["answer"] for _, row in prompts)
