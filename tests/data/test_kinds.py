"""Every kind of record from every shape its rows have, and one clear sentence for every mistake."""

import json

import numpy as np
import pytest

from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, UnpairedPreference
from jaxalign.data.messages import Message
from jaxalign.data.records import read_records, split_by_prompt
from jaxalign.data.tokenize import tokenize_completions
from jaxalign.data.trees import pack
from jaxalign.errors import UserError

OPENING = "\n\nHuman: The sky is\n\nAssistant:"
SYSTEM, USER, BLUE, BLACK, THANKS = (
    {"role": role, "content": content}
    for role, content in [
        ("system", "Be brief."),
        ("user", "The sky is"),
        ("assistant", "blue."),
        ("assistant", "black."),
        ("user", "Thanks."),
    ]
)
question = (Message("user", "The sky is"),)
blue, black = Message("assistant", "blue."), Message("assistant", "black.")


def read(tmp_path, kind, *rows, **options):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_records(kind, path, **options)


DEMONSTRATIONS = {
    "text": ({"text": "The sky is blue."}, "", "The sky is blue.", "text"),
    "prompt and completion": ({"prompt": "The sky is", "completion": " blue."}, "The sky is", " blue.", "text"),
    "instruction": (
        {"instruction": "Correct this.", "input": "The sky are", "output": "is"},
        "Correct this.\n\nThe sky are",
        "is",
        "instruction",
    ),
    "instruction without input": ({"instruction": "Why?", "input": "", "output": "So."}, "Why?", "So.", "instruction"),
    "messages": ({"messages": [USER, BLUE]}, question, (blue,), "chat"),
    "several turns": (
        {"messages": [SYSTEM, USER, BLUE, THANKS, BLACK]},
        (Message("system", "Be brief."), *question),
        (blue, Message("user", "Thanks."), black),
        "chat",
    ),
    "chat prompt and completion": ({"prompt": [USER, BLUE, THANKS], "completion": [BLACK]},
                                   (*question, blue, Message("user", "Thanks.")), (black,), "chat"),
    "string prompt, chat completion": ({"prompt": "The sky is", "completion": [BLUE]}, question, (blue,), "chat"),
    "chat prompt, string completion": ({"prompt": [USER], "completion": "blue."}, question, (blue,), "chat"),
    "whole conversation as completion": ({"completion": [USER, BLUE]}, question, (blue,), "chat"),
    "transcript": ({"completion": OPENING + " blue."}, OPENING, " blue.", "transcript"),
    "better of two transcripts": (
        {"chosen": OPENING + " blue.", "rejected": OPENING + " black."}, OPENING, " blue.", "transcript"
    ),
    "better of two chats": ({"prompt": [USER], "chosen": [BLUE], "rejected": [BLACK]}, question, (blue,), "chat"),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "The sky is"}, {"from": "gpt", "value": "blue."}]},
        question,
        (blue,),
        "chat",
    ),
    "text parts": ({"messages": [{**USER, "content": [{"type": "text", "text": "The sky"}, {"text": " is"}]}, BLUE]},
                   question, (blue,), "chat"),
    "tools": (
        {"messages": [USER, BLUE, {"role": "tool", "content": "{}"}, BLACK]},
        question,
        (blue, Message("tool", "{}"), black),
        "chat",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations(tmp_path, name):
    row, prompt, completion, format = DEMONSTRATIONS[name]
    for named in ("auto", format):
        (record,), report = read(tmp_path, Demonstration, {**row, "source": "web"}, format=named)
        assert record == Demonstration(prompt, completion, format, str(tmp_path / "a.jsonl"), 1)
        assert str(report) == "1 of 1 rows kept"


@pytest.mark.parametrize(
    ("row", "prompt", "format"),
    [
        ({"prompt": "The sky is", "completions": ["blue.", "green.", "black."]}, "The sky is", "text"),
        ({"prompt": [USER], "completions": ["blue.", "green.", "black."]}, question, "chat"),
        ({"prompt": [USER], "completions": [[BLUE], [{**BLUE, "content": "green."}], [BLACK]]}, question, "chat"),
        ({"completions": [[USER, BLUE], [USER, {**BLUE, "content": "green."}], [USER, BLACK]]}, question, "chat"),
    ],
)
def test_rankings(tmp_path, row, prompt, format):
    (record,), _ = read(tmp_path, Ranking, row)
    assert record == Ranking(prompt, ("blue.", "green.", "black."), format, str(tmp_path / "a.jsonl"), 1)


@pytest.mark.parametrize("liked", [True, False])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "completion": [BLUE]},
        {"prompt": [USER], "completion": "blue."},
        {"prompt": "The sky is", "completion": [BLUE]},
        {"messages": [USER, BLUE]},
        {"messages": [USER, BLUE], "prompt": "something else that the row has"},
    ],
)
def test_unpaired_preferences(tmp_path, row, liked):
    written = [liked, int(liked), str(liked), str(int(liked))]
    records, _ = read(tmp_path, UnpairedPreference, *({**row, "label": way} for way in written))
    place = str(tmp_path / "a.jsonl")
    assert records == [UnpairedPreference(question, "blue.", liked, "chat", place, i) for i in (1, 2, 3, 4)]


def test_a_pair_is_two_unpaired_preferences(tmp_path):
    pair = {"prompt": "The sky is", "chosen": " blue.", "rejected": " black."}
    records, report = read(tmp_path, UnpairedPreference, pair, pair)
    assert [(r.prompt, r.completion, r.label, r.row) for r in records[:2]] == [
        ("The sky is", " blue.", True, 1),
        ("The sky is", " black.", False, 1),
    ]
    assert (len(records), str(report)) == (4, "2 of 2 rows kept, 4 records made of them")


@pytest.mark.parametrize(
    ("row", "prompt", "format"),
    [
        ({"prompt": "The sky is"}, "The sky is", "text"),
        ({"prompt": OPENING}, OPENING, "transcript"),
        ({"prompt": [SYSTEM, USER]}, (Message("system", "Be brief."), *question), "chat"),
        ({"prompt": "The sky is", "messages": [USER, BLUE]}, "The sky is", "text"),
        ({"messages": [USER, BLUE]}, question, "chat"),
        ({"messages": [USER, BLUE, THANKS]}, (*question, blue, Message("user", "Thanks.")), "chat"),
        ({"instruction": "Why", "input": "so?", "output": "."}, "Why\n\nso?", "instruction"),
        ({"chosen": OPENING + " blue.", "rejected": OPENING + " black."}, OPENING, "transcript"),
        ({"completion": [USER, BLUE], "label": False}, question, "chat"),
        ({"completions": [OPENING + " blue.", OPENING + " black."]}, OPENING, "transcript"),
    ],
)
def test_prompts_come_from_any_row_and_keep_it(tmp_path, row, prompt, format):
    row = {**row, "answer": 18}
    (record,), _ = read(tmp_path, Prompt, row)
    assert record == Prompt(prompt, format, row, str(tmp_path / "a.jsonl"), 1)


def test_columns_name_the_fields(tmp_path):
    row = {"question": "1 + 1?", "answer": "2", "prompt": "of something else"}
    (record,), _ = read(tmp_path, Prompt, row, columns={"prompt": "question"})
    assert (record.prompt, record.fields["answer"], record.fields["question"]) == ("1 + 1?", "2", "1 + 1?")
    (record,), _ = read(tmp_path, Demonstration, row, columns={"prompt": "question", "completion": "answer"})
    assert (record.prompt, record.completion) == ("1 + 1?", "2")
    with pytest.raises(UserError, match=r"a\.jsonl, row 1: field 'query' is missing .*columns names it as the prompt"):
        read(tmp_path, Prompt, row, columns={"prompt": "query"})
    with pytest.raises(UserError, match=r"columns has the unknown key 'promt'\. Give chosen, compl"):
        read(tmp_path, Demonstration, row, columns={"promt": "question"})


def test_one_answer_with_its_label_is_taken_before_a_pair(tmp_path):
    row = {"prompt": "The sky is", "completion": " blue.", "label": False, "chosen": " grey.", "rejected": " red."}
    (record,), _ = read(tmp_path, UnpairedPreference, row)
    assert (record.completion, record.label) == (" blue.", False)
    talk = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    (record,), _ = read(tmp_path, UnpairedPreference, {"conversations": talk, "label": "1.0"})
    assert (record.prompt, record.completion, record.label) == ((Message("user", "Why?"),), "So.", True)


def test_a_folder_within_a_folder(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"prompt": name}))
    records, _ = read_records(Prompt, tmp_path, data_dir="a")
    assert [record.prompt for record in records] == ["a"]
    with pytest.raises(UserError, match=r"the folder 'nope' does not exist in it\. Check data_dir"):
        read_records(Prompt, tmp_path, data_dir="nope")


def test_a_tree_with_an_empty_answer_keeps_the_others(tmp_path):
    answers = [{"text": text, "role": "assistant", "emojis": {"+1": 2}} for text in ("So.", " ")]
    tree = {"prompt": {"text": "Why?", "role": "prompter", "replies": answers}}
    records, report = read(tmp_path, UnpairedPreference, tree)
    assert [record.completion for record in records] == ["So."]
    assert str(report) == "1 of 1 rows kept"


def test_a_margin_is_in_all_rows_or_in_none(tmp_path):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(UserError, match="row 2: field 'margin' is missing, but set in the rows before"):
        read(tmp_path, Preference, {**pair, "margin": 1}, pair)
    with pytest.raises(UserError, match="row 2: field 'margin' is set, but not in the rows before"):
        read(tmp_path, Preference, pair, {**pair, "margin": 1})


def test_texts_without_prompts_are_split_by_the_text(tmp_path):
    rows = [{"text": f"text {i % 10}"} for i in range(20)]
    train, held = split_by_prompt(read(tmp_path, Demonstration, *rows)[0], holdout=6)
    assert len(held) == 6
    assert not {record.completion for record in train} & {record.completion for record in held}


def test_trees_carry_labels_margins_and_ranks(tmp_path, byte_level):
    margins = [2.5, "-0.5", 0]
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin} for margin in margins]
    pairs, _ = tokenize_completions(read(tmp_path, Preference, *rows)[0], byte_level)
    assert [tree.extras["margin"].tolist() for tree in pairs] == [[2.5, 2.5], [-0.5, -0.5], [0, 0]]
    thumbs, _ = tokenize_completions(read(tmp_path, UnpairedPreference, *rows)[0], byte_level)
    assert [tree.extras["label"].tolist() for tree in thumbs] == [[True], [False]] * 3
    rows = [{"prompt": "a", "completions": list("bcde")[:count]} for count in (4, 2)]
    ranked, report = tokenize_completions(read(tmp_path, Ranking, *rows)[0], byte_level)
    assert [[byte_level.decode(c[:-1]) for c in tree.completions] for tree in ranked] == [list("bcde"), list("bc")]
    assert report.examples == 2
    rows = pack(thumbs, row_lengths=(32,)).rows
    assert np.array_equal(rows.extras["label"][rows.example_mask][:, 0], [True, False] * 3)
