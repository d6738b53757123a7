"""Malformed input: every error names file and row and says what to do, and bad rows can be skipped.

Those of preference pairs are in test_records.py, those of logs and OpenAssistant's trees in test_feedback.py.
"""

import gzip
import json

import pytest

from jaxalign.data.kinds import Demonstration, Preference, Prompt, Ranking, UnpairedPreference
from jaxalign.data.records import read_records
from jaxalign.errors import UserError

SYSTEM, USER, BLUE, BLACK = (
    {"role": role, "content": content}
    for role, content in [
        ("system", "Be brief."),
        ("user", "The sky is"),
        ("assistant", "blue."),
        ("assistant", "black."),
    ]
)
# name: (kind, row 2, its kind of problem, what the error says)
ROWS = {
    "nothing to imitate": (Demonstration, {"question": "a"}, "missing field text", "need messages, prompt and"),
    "empty text": (Demonstration, {"text": " "}, "empty text", "'text' is empty"),
    "text that is a number": (Demonstration, {"text": 3}, "not a string", "'text' is of type int"),
    "no output": (Demonstration, {"instruction": "a"}, "missing field output", "'output' is missing"),
    "empty output": (Demonstration, {"instruction": "a", "output": ""}, "empty completion", "'output' is empty"),
    "odd input": (Demonstration, {"instruction": "a", "input": 3, "output": "b"}, "not a string", "'input' is of type"),
    "no question": (Demonstration, {"messages": [BLUE]}, "empty prompt", "the prompt is empty"),
    "no answer": (Demonstration, {"messages": [USER]}, "no assistant turn", "last message of field 'messages' is not"),
    "empty turn": (
        Demonstration,
        {"messages": [USER, {**BLUE, "content": ""}]},
        "empty completion",
        "message 2 .* an empty answer",
    ),
    "null turn": (Demonstration, {"messages": [USER, None]}, "malformed message", "message 2 of field 'messages'"),
    "null content": (
        Demonstration,
        {"messages": [USER, {**BLUE, "content": None}]},
        "malformed message",
        "message 2 of field",
    ),
    "doubled turns": (
        Demonstration,
        {"messages": [USER, USER, BLUE]},
        "roles out of order",
        "Join the two consecutive messages of the user",
    ),
    "late system": (Demonstration, {"messages": [USER, SYSTEM, BLUE]}, "roles out of order", "must come first"),
    "early tool": (
        Demonstration,
        {"messages": [USER, {"role": "tool", "content": "3"}, BLUE]},
        "roles out of order",
        "tool's message must follow",
    ),
    "doubled across fields": (
        Demonstration,
        {"prompt": [USER, BLUE], "completion": [BLACK]},
        "roles out of order",
        "consecutive messages of the assistant",
    ),
    "unknown role": (
        Demonstration,
        {"messages": [{**USER, "role": "Human"}, BLUE]},
        "unknown role",
        "the role 'Human'. Give system",
    ),
    "messages as text": (Demonstration, {"messages": "hi"}, "not a string", "'messages' is of type str"),
    "user completes": (
        Demonstration,
        {"prompt": "a", "completion": [USER, BLUE]},
        "no assistant turn",
        "first message of field 'completion' is not",
    ),
    "no completions": (Ranking, {"prompt": "a"}, "missing field completions", "need completions, the best first"),
    "one completion": (Ranking, {"prompt": "a", "completions": ["b"]}, "no ranking", "two answers or more"),
    "completions as text": (Ranking, {"prompt": "a", "completions": "b c"}, "no ranking", "two answers or more"),
    "null completion": (
        Ranking,
        {"prompt": "a", "completions": ["b", None]},
        r"missing field completions\[1\]",
        r"'completions\[1\]'",
    ),
    "mixed completions": (Ranking, {"prompt": "a", "completions": ["b", "c", [BLUE]]}, "mixed formats", "Write all"),
    "empty completion": (
        Ranking,
        {"prompt": "a", "completions": ["b", ""]},
        "empty completion",
        r"'completions\[1\]' is empty",
    ),
    "no label": (UnpairedPreference, {"prompt": "a", "completion": "b"}, "missing field label", "'label' is missing"),
    "odd label": (
        UnpairedPreference,
        {"prompt": "a", "completion": "b", "label": "good"},
        "not a label",
        "'label' is 'good'. Give true or false",
    ),
    "label 2": (
        UnpairedPreference,
        {"prompt": "a", "completion": "b", "label": 2},
        "not a label",
        "'label' is 2. Give",
    ),
    "label 0.5": (UnpairedPreference, {"prompt": "a", "completion": "b", "label": 0.5}, "not a label", "is 0.5. Give"),
    "only a label": (UnpairedPreference, {"label": True}, "missing field completion", "'completion' is missing"),
    "no prompt": (Prompt, {"answer": "b"}, "missing field prompt", "Name the field that contains the prompt"),
    "blank prompt": (Prompt, {"prompt": "\n"}, "empty prompt", "Add the prompt"),
    "answered prompt": (Prompt, {"prompt": [USER, BLUE]}, "no open turn", "Remove the answer"),
    "prompt 5": (Prompt, {"prompt": 5}, "not a string", "'prompt' is of type int"),
    "margin NaN": (
        Preference,
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")},
        "not a number",
        "is nan",
    ),
    "margin in words": (
        Preference,
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"},
        "not a number",
        "is 'much'. Give a finite number",
    ),
    "margin true": (
        Preference,
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": True},
        "not a number",
        "is True. Give",
    ),
    "10 MB in the wrong field": (
        Demonstration,
        {"text": 3, "note": "x" * 10**7},
        "not a string",
        "'text' is of type int",
    ),
    "10 MB as a label": (
        UnpairedPreference,
        {"prompt": "a", "completion": "b", "label": "x" * 10**7},
        "not a label",
        "'label' is 'xxx",
    ),
    "10 MB as a role": (
        Demonstration,
        {"messages": [{**USER, "role": "x" * 10**7}, BLUE]},
        "unknown role",
        "has the role 'xxx",
    ),
    "many fields": (Demonstration, {f"column {i}": "" for i in range(10000)}, "missing field text", "'column 7', …"),
    "message of a message": (
        Demonstration,
        {"messages": [{"role": "user", "content": USER}, BLUE]},
        "malformed message",
        "message 1 of field",
    ),
    "an image": (
        Demonstration,
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, BLUE]},
        "malformed message",
        "message 1 of field 'messages'",
    ),
    "tool calls": (
        Demonstration,
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "sky"}]}]},
        "tool calls",
        "message 2 of field 'messages' has 'tool_calls'.* Spell the call out",
    ),
    "numbered role": (
        Demonstration,
        {"messages": [{**USER, "role": 1}, BLUE]},
        "malformed message",
        "message 1 of field",
    ),
    "messages of an object": (
        Demonstration,
        {"messages": {"role": "user"}},
        "not a string",
        "'messages' is of type dict",
    ),
    "margin infinite": (
        Preference,
        b'{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e999}',
        "not a number",
        "is inf. Give",
    ),
    "margin null": (
        Preference,
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": None},
        "margin not in all rows",
        "field 'margin' is missing, but set in the rows before",
    ),
    "cut off": (Prompt, b'{"prompt": "a', "not JSON", "is not JSON .*column"),
    "two objects": (Prompt, b'{"prompt": "a"} {"prompt": "b"}', "not JSON", "Extra data, column 17"),
    "single quotes": (Prompt, b"{'prompt': 'a'}", "not JSON", "is not JSON"),
    "a string": (Prompt, b'"a"', "not an object", "is a JSON str"),
    "null": (Prompt, b"null", "not an object", "is a JSON NoneType"),
    "a list": (Prompt, b'[{"prompt": "a"}]', "not an object", "is a JSON list"),
    "doubled field": (
        Prompt,
        b'{"prompt": "a", "prompt": "b"}',
        "doubled field",
        "has the field 'prompt' more than once",
    ),
    "deep nesting": (Prompt, b'{"prompt": ' + b"[" * 10**5, "not JSON", "is nested too deeply"),
    "a number without end": (Prompt, b'{"prompt": ' + b"1" * 5000 + b"}", "not JSON", "is not JSON"),
    "Latin-1": (Prompt, '{"prompt": "naïve"}'.encode("latin-1"), "bad UTF-8", "is not UTF-8 .byte 15 of the line"),
    "half an emoji": (Prompt, b'{"prompt": "\\ud83d"}', "half a character", "half a surrogate pair"),
    "half an emoji, nested": (
        Demonstration,
        b'{"messages": [{"role": "user", "content": "\\uD83D!"}]}',
        "half a character",
        "surrogate pair",
    ),
    "binary": (Prompt, bytes(range(128, 256)), "bad UTF-8", "is not UTF-8 .byte 1 of"),
}
GOOD = {
    Demonstration: {"messages": [USER, BLUE]},
    Preference: {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1},
    Ranking: {"prompt": "a", "completions": ["b", "c"]},
    UnpairedPreference: {"prompt": "a", "completion": "b", "label": True},
    Prompt: {"prompt": "a"},
}


def encode(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_stops_with_its_sentence_or_is_skipped_and_counted(tmp_path, name):
    kind, bad, counted, sentence = ROWS[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(map(encode, (GOOD[kind], bad, GOOD[kind]))))
    with pytest.raises(UserError, match=rf"a\.jsonl, row 2: .*{sentence}.*on_error='skip'") as error:
        read_records(kind, path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    records, report = read_records(kind, path, on_error="skip")
    assert [record.row for record in records] == [1, 3]
    assert report.counts == {counted.replace("\\", ""): 1}
    assert "1 skipped: 1 " in str(report)


TABLE_ROWS = {
    "too few cells": (b"a", "wrong number of cells", "has 1 cells and the header has 2"),
    "too many cells": (b"a,b,c", "wrong number of cells", "has 3 cells and the header has 2"),
    "odd quotes": (b'"a"b,c', "not CSV", r"not CSV \(.*Quote cells that contain commas"),
    "Latin-1": ("naïve,b".encode("latin-1"), "bad UTF-8", "not UTF-8. Save"),
    "empty completion": (b"a,", "empty completion", "'completion' is empty"),
}


@pytest.mark.parametrize("name", TABLE_ROWS)
@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_a_bad_row_of_a_table_too(tmp_path, name, ending):
    bad, counted, sentence = TABLE_ROWS[name]
    path = tmp_path / f"a.{ending}"
    content = b"prompt,completion\nx,y\n" + bad + b"\nx,y\n"
    path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    with pytest.raises(UserError, match=rf"a\.{ending}, row 3: .*{sentence}.*on_error='skip'"):
        read_records(Demonstration, path)
    records, report = read_records(Demonstration, path, on_error="skip")
    assert [record.row for record in records] == [2, 4]
    assert report.counts == {counted: 1}


GOOD_LINE = b'{"text": "a"}\n'
FILES = {  # files that are broken as a whole: skipping rows does not help
    "empty.jsonl": (b"", "the file is empty"),
    "empty.parquet": (b"", "the file is empty"),
    "blank.jsonl": (b"\n \n", "has no rows"),
    "nothing.jsonl.gz": (gzip.compress(b""), "has no rows"),
    "nothing.json": (b"[]", "has no rows"),
    "header.csv": (b"text\n", "has no rows"),
    "doubled.csv": (b"text,text\na,b\n", "column 'text' appears more than once"),
    "latin.csv": ("naïf\na\n".encode("latin-1"), "row 1: the row is not UTF-8"),
    "utf16.csv": ("text\na\n".encode("utf-16"), "row 1: the row is not UTF-8"),
    "cut.jsonl.gz": (gzip.compress(GOOD_LINE * 99)[:-9], "ends early"),
    "plain.jsonl.gz": (GOOD_LINE, "not a sound gzip file"),
    "flipped.jsonl.gz": (gzip.compress(GOOD_LINE)[:-8] + b"\0" * 8, "not a sound gzip file"),
    "cut.json": (b'[{"text": "a"}', r"not JSON \(.*, line 1\)"),
    "latin.json": ('[{"text": "naïf"}]'.encode("latin-1"), r"not UTF-8 \(byte"),
    "deep.json": (b"[" * 10**5, "not JSON"),
    "odd.parquet": (GOOD_LINE, "not a sound Parquet file"),
    "cut.parquet": (b"PAR1 and no more", "not a sound Parquet file"),
    "table.xlsx": (b"PK", "unknown kind of file"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_broken_file_is_named(tmp_path, name, on_error):
    content, sentence = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*{sentence}") as error:
        read_records(Demonstration, tmp_path / name, on_error=on_error)
    assert "\n" not in str(error.value)


def test_half_a_character_in_a_list_is_one_bad_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"text": "a"}, {"text": "\\ud83d"}]')
    with pytest.raises(UserError, match=r"a\.json, row 2: the row has half a surrogate pair"):
        read_records(Demonstration, path)
    assert read_records(Demonstration, path, on_error="skip")[1].counts == {"half a character": 1}


def test_parquet_without_rows_or_with_a_column_twice_is_called_that(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="has no rows"):
        read_records(Demonstration, tmp_path / "none.parquet")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match="column 'text' appears more than once"):
        read_records(Demonstration, tmp_path / "twice.parquet")


def test_a_row_of_10_mb_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 10**7}))
    (record,), _ = read_records(Demonstration, path)
    assert len(record.completion) == 10**7
