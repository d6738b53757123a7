"""Training examples from rows in memory: the same records as from a file, and errors that name the row."""

import dataclasses
import json

import datasets
import numpy as np
import pytest

from jaxalign.data.feedback import Signals
from jaxalign.data.kinds import Demonstration, Preference, Prompt, UnpairedPreference
from jaxalign.data.load import read_examples, read_source, tokenize_examples
from jaxalign.data.records import read_records
from jaxalign.errors import UserError

PAIRS = [{"prompt": f"Is {i} even?", "chosen": "yes" if i % 2 == 0 else "no", "rejected": "maybe"} for i in range(8)]


def without_place(records):
    return [dataclasses.replace(record, file="", row=0) for record in records]


def test_rows_in_memory_are_read_as_a_file_is(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    from_file, _ = read_records(Preference, path)
    for rows in (PAIRS, tuple(PAIRS), datasets.Dataset.from_list(PAIRS)):
        records, report = read_records(Preference, rows)
        assert without_place(records) == without_place(from_file)
        assert str(report) == "8 of 8 rows kept"
        assert [record.place for record in records[:2]] == ["rows, row 1", "rows, row 2"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**PAIRS[0], "rejected": None}, "rows, row 3: field 'rejected' is null"),
        ({"prompt": "a", "chosen": "b"}, "rows, row 3: field 'rejected' is missing"),
        ({**PAIRS[0], "chosen": 3}, "rows, row 3: field 'chosen' is"),
        ({**PAIRS[0], "chosen": "half \ud83d"}, "rows, row 3"),
        ({**PAIRS[0], 7: "seven"}, "rows, row 3: the row is of type dict"),
        ("a string", "rows, row 3: the row is of type str"),
    ],
)
def test_a_bad_row_is_named_or_skipped(row, words):
    rows = [*PAIRS[:2], row, *PAIRS[3:]]
    with pytest.raises(UserError, match=words):
        read_records(Preference, rows)
    records, report = read_records(Preference, rows, on_error="skip")
    assert len(records) == 7
    assert [(bad.file, bad.row) for bad in report.skipped] == [("rows", 3)]


@pytest.mark.parametrize(
    "rows", [{"train": PAIRS}, datasets.DatasetDict({"train": datasets.Dataset.from_list(PAIRS)}), 3]
)
def test_what_is_not_a_list_of_rows_is_refused(rows):
    with pytest.raises(UserError, match=r"rows is of type .* Give a list of dicts or a datasets.Dataset"):
        read_records(Preference, rows)


def test_no_rows_are_refused():
    with pytest.raises(UserError, match="rows: "):
        read_records(Preference, [])


def test_numpy_scalars_are_values_of_their_own():
    rows = [{"prompt": "a?", "completion": "b", "label": label} for label in (np.bool_(True), np.int64(0))]
    records, _ = read_records(UnpairedPreference, rows)
    assert [record.label for record in records] == [True, False]
    pair = {**PAIRS[0], "margin": np.float32(0.5)}
    assert read_records(Preference, [pair])[0][0].margin == 0.5


def test_the_split_does_not_depend_on_the_source(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    lines = []
    sides = read_examples(Preference, path, holdout=3, seed=1)
    in_memory = read_examples(Preference, rows=PAIRS, holdout=3, seed=1, report=lines.append)
    assert list(map(without_place, sides)) == list(map(without_place, in_memory))
    assert list(map(len, sides)) == [5, 3]
    assert lines == ["rows: 8 of 8 rows kept"]


def test_evaluation_rows_replace_the_split():
    lines = []
    train, held_out = read_examples(
        Preference, rows=PAIRS, eval_rows=PAIRS[:2], holdout=3, limit=4, report=lines.append
    )
    assert [len(train), len(held_out)] == [4, 2]
    assert held_out[0].place == "eval_rows, row 1"
    assert lines[1] == "eval_rows: 2 of 2 rows kept"
    with pytest.raises(UserError, match="eval_rows, row 1: "):
        read_examples(Preference, rows=PAIRS, eval_rows=[{"prompt": "a"}])
    with pytest.raises(UserError, match="Give a path or rows"):
        read_examples(Preference)


def test_signals_label_rows_in_memory():
    rows = [{"prompt": f"{i}?", "completion": "a", "up": i} for i in range(3)]
    records, report = read_source(UnpairedPreference, rows, signals=Signals(up="up"))
    assert [record.label for record in records] == [True, True]
    assert report.omitted["without a signal"] == 1


def test_examples_become_trees_with_counts(byte_level):
    lines = []
    records, _ = read_source(Preference, PAIRS)
    trees, counts = tokenize_examples(
        records, byte_level, "held out", max_completion_length=2, template="never", report=lines.append
    )
    assert len(trees) == 8
    assert counts["held_out/examples"] == 8
    assert counts["held_out/completions_truncated"] > 0
    assert lines[0].startswith("held out: 8 examples, ")
    assert tokenize_examples([], byte_level, "training") == ([], {})
    talks, _ = read_source(Demonstration, [{"prompt": "a?", "completion": "b"}])
    assert len(tokenize_examples(talks, byte_level, "training", loss_on="all")[0][0].prompt) == 1
    assert read_source(Prompt, [{"prompt": "a?"}])[0][0].fields == {"prompt": "a?"}
