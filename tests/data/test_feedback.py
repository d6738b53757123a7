"""Logs of products and OpenAssistant's trees: labels of answers, and counts of what is omitted."""

import csv
import json

import pytest

from jaxalign.data.feedback import Signals, read_feedback
from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, UnpairedPreference
from jaxalign.data.messages import Message
from jaxalign.data.records import read_records
from jaxalign.errors import UserError


def log(tmp_path, *rows):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": "a", **r}) + "\n" for i, r in enumerate(rows)))
    return path


LABELS = [
    (Signals(up="up", down="down"), {"up": 3, "down": 1}, True),
    (Signals(up="up", down="down"), {"up": 1, "down": "2"}, False),
    (Signals(up="up", down="down"), {"up": 2, "down": 2}, None),
    (Signals(up="up", down="down"), {"up": None}, None),
    (Signals(up="up", down="down"), {"down": True}, False),
    (Signals(up="up", down="down", min_votes=3), {"up": 3, "down": 1}, None),
    (Signals(up="up", down="down", min_votes=3), {"up": 1, "down": 4}, False),
    (Signals(accepted="taken"), {"taken": True}, True),
    (Signals(accepted="taken"), {"taken": "false"}, False),
    (Signals(accepted="taken"), {"taken": None}, None),
    (Signals(rejected="refused"), {"refused": 1}, False),
    (Signals(rejected="refused"), {"refused": 0}, None),
    (Signals(regenerated="again"), {"again": 2}, False),
    (Signals(regenerated="again"), {"again": False}, None),
    (Signals(edited="edited"), {"edited": True}, False),
    (Signals(edited="edited"), {"edited": ""}, None),
    (Signals(stars="stars"), {"stars": 4}, True),
    (Signals(stars="stars"), {"stars": 3}, None),
    (Signals(stars="stars"), {"stars": "2.0"}, False),
    (Signals(stars="stars", stars_liked=5, stars_disliked=4.5), {"stars": 4.5}, False),
    (Signals(stars="stars", accepted="taken"), {"stars": 5, "taken": True}, True),
]


@pytest.mark.parametrize(("signals", "row", "liked"), LABELS)
def test_what_a_row_says(tmp_path, signals, row, liked):
    sure = {"up": 9, "down": 0, "taken": True, "refused": True, "again": 1, "edited": True, "stars": 5}
    sure = {field: sure[field] for field in signals.fields[:1]}
    everything = dict.fromkeys(signals.fields)
    records, report = read_feedback(log(tmp_path, everything | sure, everything | row), signals)
    assert [record.label for record in records[1:]] == ([] if liked is None else [liked])
    assert report.omitted["without a signal"] == (liked is None)
    assert (report.rows, report.rows_kept) == (2, 2 - (liked is None))


def test_a_correction_is_an_answer_that_is_liked(tmp_path):
    rows = [{"fixed": "b"}, {"fixed": None}]
    records, report = read_feedback(log(tmp_path, *rows), Signals(edited="fixed"))
    assert [(r.prompt, r.completion, r.label, r.row) for r in records] == [("0?", "a", False, 1), ("0?", "b", True, 1)]
    assert str(report) == "1 of 2 rows kept, 2 records made of them (1 without a signal)"
    asked = {"role": "user", "content": "Why?"}
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"talk": [asked, {"role": "assistant", "content": "a"}], "fixed": "b"}))
    records, _ = read_feedback(path, Signals(edited="fixed"), columns={"messages": "talk"})
    assert [(r.prompt, r.completion, r.label) for r in records] == [
        ((Message("user", "Why?"),), "a", False),
        ((Message("user", "Why?"),), "b", True),
    ]


def test_a_correction_stands_where_the_answer_stood(tmp_path):
    path = tmp_path / "chats.jsonl"
    talk = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "a"}]
    transcript = "\n\nHuman: Why?\n\nAssistant: a"
    for row, liked in [
        ({"messages": talk}, "b"),
        ({"conversations": talk, "completion": None}, "b"),
        ({"completion": transcript}, " b"),
    ]:
        path.write_text(json.dumps({**row, "fixed": "b"}))
        records, _ = read_feedback(path, Signals(edited="fixed"))
        assert [(r.completion.strip(), r.label) for r in records] == [("a", False), ("b", True)]
        assert records[1].completion == liked
        assert records[0].prompt == records[1].prompt


def test_a_correction_that_reads_like_a_flag_is_still_one(tmp_path):
    rows = [{"completion": "4", "up": 1, "fixed": "0"}, {"up": 1, "fixed": "c"}, {"up": 1, "fixed": "a"}]
    with pytest.raises(UserError, match="none of the 2 rows clearly says"):
        read_feedback(log(tmp_path, *rows[:2]), Signals(up="up", edited="fixed"))
    records, report = read_feedback(log(tmp_path, *rows), Signals(up="up", edited="fixed"))
    assert [(r.completion, r.label) for r in records] == [("a", True)], "the last was not changed"
    assert report.omitted["with conflicting signals"] == 2
    records, _ = read_feedback(log(tmp_path, {"fixed": "true"}, {"fixed": "false"}), Signals(edited="fixed"))
    assert [(r.completion, r.label) for r in records] == [("a", False)], "a column of flags"


def test_fields_called_chosen_and_rejected_are_not_the_answers(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("prompt,completion,chosen,rejected\nWhy?,Because,true,\nWho?,Me,,true\n")
    records, _ = read_feedback(path, Signals(accepted="chosen", rejected="rejected"))
    assert [(r.completion, r.label) for r in records] == [("Because", True), ("Me", False)]
    row = {"prompt": "Why?", "completion": None, "chosen": "a", "rejected": "b", "up": 1}
    with pytest.raises(UserError, match="row 2: the row is a pair"):
        read_feedback(log(tmp_path, {"up": 1}, row), Signals(up="up"))


def test_empty_cells_and_gaps_of_parquet_say_nothing(tmp_path):
    rows = [{"ok": "", "stars": ""}, {"ok": 1.0, "stars": None}, {"ok": 0.0, "stars": ""}]
    records, report = read_feedback(log(tmp_path, *rows), Signals(accepted="ok", stars="stars"))
    assert [r.label for r in records] == [True, False]
    assert report.omitted["without a signal"] == 1


def test_a_file_that_is_not_json_is_reported(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text("no\njson\n")
    with pytest.raises(UserError, match="row 1: the row is not JSON"):
        read_feedback(path, Signals(up="up"), on_error="skip")


def test_conflicts_and_repetitions_are_omitted_and_counted(tmp_path):
    one, other = {"prompt": "same?", "completion": "a"}, {"prompt": "same?", "completion": "b"}
    rows = [
        {**one, "up": 1},
        {**one, "up": 2},  # again
        {**other, "up": 1},
        {**other, "up": 0, "stars": 1},  # the other way round
        {"up": 1, "stars": 1},  # both at once
        {"up": 0},
    ]
    records, report = read_feedback(log(tmp_path, *rows), Signals(up="up", stars="stars"))
    assert [(record.completion, record.label, record.row) for record in records] == [("a", True, 1)]
    assert report.omitted == {
        "without a signal": 1,
        "with conflicting signals": 1,
        "repeated": 1,
        "in conflict with another row": 2,
    }
    assert str(report) == (
        "4 of 6 rows kept, 1 records made of them (1 without a signal, 1 with conflicting signals, 1 repeated, "
        "2 in conflict with another row)"
    )


def test_a_log_as_a_table(tmp_path):
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["question", "reply", "ups", "fixed"], ["1?", "a", "2", ""], ["2?", "b", "0", "c"]])
    columns = {"prompt": "question", "completion": "reply"}
    records, _ = read_feedback(path, Signals(up="ups", edited="fixed"), columns=columns)
    assert [(r.prompt, r.completion, r.label) for r in records] == [
        ("1?", "a", True),
        ("2?", "b", False),
        ("2?", "c", True),
    ]


BAD = {
    "votes in words": ({"up": "many"}, "not a number", "'up' is 'many'. Give"),
    "negative votes": ({"up": -1}, "not a count", "'up' is -1. Give"),
    "NaN stars": ({"stars": float("nan")}, "not a number", "'stars' is nan"),
    "stars of a list": ({"stars": [5]}, "not a number", r"'stars' is \[5\]"),
    "taken perhaps": ({"taken": "perhaps"}, "not a label", "'taken' is 'perhaps'"),
    "edited 3 ways": ({"fixed": 3}, "not a label", "'fixed' is 3. Give"),
    "no answer": ({"up": 1, "completion": None}, "missing field completion", "'completion' is null"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_stops_with_its_sentence_or_is_skipped_and_counted(tmp_path, name):
    bad, kind, sentence = BAD[name]
    signals = Signals(up="up", stars="stars", accepted="taken", edited="fixed")
    good = {"up": 1, "stars": 5, "taken": True, "fixed": None}
    path = log(tmp_path, good, bad, good)
    with pytest.raises(UserError, match=rf"log\.jsonl, row 2: field {sentence}.*on_error='skip'"):
        read_feedback(path, signals)
    records, report = read_feedback(path, signals, on_error="skip")
    assert [record.row for record in records] == [1, 3]
    assert report.counts == {kind: 1}
    assert (report.rows, report.rows_kept) == (3, 2)


def test_impossible_signals_are_refused(tmp_path):
    path = log(tmp_path, {"up": 1})
    for signals, sentence in [
        (Signals(), "signals has no fields"),
        (Signals(up="ups"), "field 'ups' of signals does not occur in any row"),
        (Signals(up="up", stars="rating"), "field 'rating' of signals does not occur"),
        (Signals(up="up", min_votes=0), "min_votes=0"),
        (Signals(up="up", stars_liked=2), "liked ratings above"),
        (Signals(up="up", stars_liked=float("nan")), "liked ratings above"),
    ]:
        with pytest.raises(UserError, match=sentence):
            read_feedback(path, signals)
    with pytest.raises(UserError, match=r"log\.jsonl: none of the 1 rows clearly says"):
        read_feedback(log(tmp_path, {"up": 0}), Signals(up="up"))


def answer(text, rank=None, *replies, **more):
    return {"text": text, "role": "assistant", "rank": rank, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "x",
    "prompt": {
        "text": "Why?",
        "role": "prompter",
        "replies": [
            answer("worst", 2, emojis={"-1": 2, "+1": 1}),
            answer("best", 0, {"text": "And?", "role": "prompter", "replies": [answer("so")]}, emojis={"+1": 1}),
            answer("middle", 1, emojis={"+1": 1, "-1": 1}),
            answer("unranked"),
            answer("gone", 3, deleted=True),
        ],
    },
}


def test_a_tree_gives_what_each_kind_needs(tmp_path):
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(TREE))
    why = (Message("user", "Why?"),)
    later = (*why, Message("assistant", "best"), Message("user", "And?"))

    def read(kind):
        return read_records(kind, path)[0]

    assert [(r.prompt, r.chosen, r.rejected) for r in read(Preference)] == [
        (why, "best", "middle"), (why, "best", "worst"), (why, "middle", "worst")
    ]  # fmt: skip
    assert [(r.prompt, r.ranked) for r in read(Ranking)] == [(why, ("best", "middle", "worst"))]
    votes = [(r.prompt, r.completion, r.label) for r in read(UnpairedPreference)]
    assert votes == [(why, "worst", False), (why, "best", True)]
    assert [(r.prompt, r.completions) for r in read(Demonstration)] == [(why, ("best",)), (later, ("so",))]
    assert [r.prompt for r in read(Prompt)] == [why, later]


@pytest.mark.parametrize(
    "fault",
    [
        {"replies": [None]},
        {"replies": "none"},
        {"replies": [answer("a", "first")]},
        {"replies": [answer("a", 0, emojis=["+1"])]},
        {"replies": [answer("a", 0, emojis={"+1": "two"})]},
        {"replies": [answer(None)]},
        {"role": "system"},
    ],
)
def test_a_malformed_tree_is_refused(tmp_path, fault):
    path = tmp_path / "trees.jsonl"
    path.write_text(json.dumps(TREE) + "\n" + json.dumps({"prompt": {**TREE["prompt"], **fault}}))
    with pytest.raises(UserError, match=r"trees\.jsonl, row 2: the tree has a message without"):
        read_records(Preference, path)
    assert read_records(Preference, path, on_error="skip")[1].counts == {"malformed tree": 1}


def test_the_votes_and_ranks_of_openassistant(shared_data):
    path = shared_data / "oasst" / "en_100_tree.jsonl"
    thumbs, report = read_records(UnpairedPreference, path)
    assert [sum(record.label for record in thumbs), len(thumbs)] == [334, 430]  # as the data's own notes count them
    assert str(report) == "100 of 100 rows kept, 430 records made of them"
    assert len(read_records(Prompt, path)[0]) == 480
    trees = [json.loads(line) for line in path.open()]

    def siblings(node):
        yield [r["rank"] for r in node["replies"] if r["role"] == "assistant" and r.get("rank") is not None]
        for reply in node["replies"]:
            yield from siblings(reply)

    groups = [ranks for tree in trees for ranks in siblings(tree["prompt"])]
    assert len(read_records(Preference, path)[0]) == sum(len(g) * (len(g) - 1) // 2 for g in groups)
    assert len(read_records(Ranking, path)[0]) == sum(len(g) > 1 for g in groups)
