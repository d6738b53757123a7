"""What is found in a data set before training on it."""

import dataclasses

import pytest

from jaxalign.data.inspect import count_findings, kind_of, measure_balance
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, UnpairedPreference
from jaxalign.data.messages import Message
from jaxalign.data.records import read_records

PAIR = Preference("Why is it blue?", " Air.", " A lie.", "text")


def test_findings_are_counted():
    records = [
        PAIR,
        dataclasses.replace(PAIR, row=2),  # elsewhere, and the same
        dataclasses.replace(PAIR, chosen=" A lie.", rejected=" Air."),
        dataclasses.replace(PAIR, prompt="Why is it red?"),
        dataclasses.replace(PAIR, prompt="Why is it red?", rejected=" Air."),
    ]
    findings = count_findings(records, [Prompt("why  is it\nRED?", "text")])
    assert findings._asdict() == {"prompts": 2, "repeated": 1, "contradicted": 3, "undecided": 1, "leaked": 2}
    assert count_findings(records[:1], [Prompt("Why is it bluer?", "text")])[1:] == (0, 0, 0, 0)


def test_thumbs_that_disagree_are_contradictions():
    thumbs = [UnpairedPreference("a", "b", liked, "text") for liked in (True, False)]
    assert count_findings([*thumbs, UnpairedPreference("a", "c", True, "text")]).contradicted == 2


def test_a_chat_is_not_its_messages_run_together():
    chats = [(Message("user", "a b"),), (Message("user", "a"), Message("user", "b"))]
    assert count_findings([Prompt(chat, "chat") for chat in chats]).prompts == 2


def test_texts_without_prompts_repeat_and_leak_as_a_whole():
    texts = [Demonstration("", text, "text") for text in ("One.", "Two.", "one. ")]
    assert count_findings(texts, [Demonstration("", "TWO.", "text")])._asdict() == {
        "prompts": 2, "repeated": 0, "contradicted": 0, "undecided": 0, "leaked": 1,
    }  # fmt: skip


def test_balance():
    assert measure_balance([Ranking("a", answers, "text") for answers in (("bbb", "b"), ("b", "bb", "b"))]) == {
        "the best answer is the longest": 0.5
    }
    assert measure_balance([Prompt("a", "text")]) == {}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, Preference),
        ({"prompt": "a", "completions": ["b"]}, Ranking),
        ({"prompt": "a", "completion": "b", "label": False}, UnpairedPreference),
        ({"prompt": "a", "completion": "b"}, Demonstration),
        ({"messages": []}, Demonstration),
        ({"instruction": "a", "output": "b"}, Demonstration),
        ({"question": "a"}, Prompt),
        ({"prompt": {"text": "a", "role": "prompter"}}, Preference),
    ],
)
def test_a_row_shows_its_kind(row, kind):
    assert kind_of(row) is kind


def test_what_the_notes_on_the_real_data_say(shared_data):
    folder = shared_data / "llms-from-scratch"
    records, _ = read_records(Demonstration, folder / "instruction-data.json")
    assert len(records) - count_findings(records).prompts == 25
    pairs, _ = read_records(Preference, folder / "instruction-data-with-preference.json")
    assert count_findings(pairs).undecided == 6
