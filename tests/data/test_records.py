"""Reading preferences: every shape and container, and one clear sentence for every mistake."""

import csv
import gzip
import json

import pytest

from jaxalign.data.kinds import Preference
from jaxalign.data.messages import Message, transcript_messages
from jaxalign.data.records import read_records, split_by_prompt
from jaxalign.errors import UserError
from jaxalign.paths import resolve_path

TEXT = {"prompt": "Why is the sky blue?", "chosen": " Scattering.", "rejected": " A lie."}
TRANSCRIPT = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: The sky is\n\nAssistant: blue.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: The sky is\n\nAssistant: black.",
}
USER = {"role": "user", "content": "The sky is"}
BLUE, BLACK = ({"role": "assistant", "content": text} for text in ("blue.", "black."))
CHAT = {"prompt": [USER], "chosen": [BLUE], "rejected": [BLACK]}
IMPLICIT_CHAT = {"chosen": [USER, BLUE], "rejected": [USER, BLACK]}


def lines(path, *rows):
    """Write rows (objects, or raw bytes) as lines; .gz is compressed."""
    content = b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "list.json", "a.csv", "a.csv.gz", "a.parquet"])
def test_containers(tmp_path, name):
    path = tmp_path / name
    rows = [TEXT, {**TEXT, "prompt": 'Commas, "quotes"\nand 🙂 lines'}]
    if ".csv" in name:
        with gzip.open(path, "wt", newline="") if name.endswith(".gz") else path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(TEXT))
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".parquet"):
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    elif name == "list.json":
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    else:
        lines(path, *rows)
    records, report = read_records(Preference, path)
    assert [record.prompt for record in records] == [row["prompt"] for row in rows]
    assert [record.chosen for record in records] == [" Scattering."] * 2
    assert str(report) == "2 of 2 rows kept"
    first = 2 if ".csv" in name else 1  # the header is a line of its own
    assert [record.row for record in records] == [first, first + 1]


def test_folders_have_splits(tmp_path):
    lines(tmp_path / "train.jsonl.gz", TEXT)
    lines(tmp_path / "test.jsonl.gz", {**TEXT, "prompt": "held out"})
    assert [record.prompt for record in read_records(Preference, tmp_path)[0]] == [TEXT["prompt"]]
    assert [record.prompt for record in read_records(Preference, tmp_path, split="test")[0]] == ["held out"]
    with pytest.raises(UserError, match=r"files of split 'dev' do not exist\. Set split to train or test"):
        read_records(Preference, tmp_path, split="dev")


def test_a_saved_data_set_is_a_folder_too(tmp_path):
    import datasets

    datasets.Dataset.from_list([IMPLICIT_CHAT, IMPLICIT_CHAT]).save_to_disk(tmp_path / "saved")
    records, _ = read_records(Preference, tmp_path / "saved")
    assert [(record.format, record.row) for record in records] == [("chat", 1), ("chat", 2)]


def test_a_data_set_on_the_hub(monkeypatch):
    import datasets

    asked = {}

    def load_dataset(identifier, **options):
        asked.update(options, identifier=identifier)
        return datasets.Dataset.from_list([TRANSCRIPT])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    records, _ = read_records(Preference, "Anthropic/hh-rlhf", data_dir="harmless-base", split="test")
    options = {"data_dir": "harmless-base", "split": "test", "name": None, "streaming": False}
    assert asked == {"identifier": "Anthropic/hh-rlhf", **options}
    assert records[0].place == "Anthropic/hh-rlhf/harmless-base, row 1"


def test_a_file_inside_an_installed_package():
    assert resolve_path("jaxalign:errors.py").is_file()
    assert str(resolve_path("C:/data/a.jsonl")).startswith("C:")
    with pytest.raises(UserError, match="the package 'no_such_package' is not installed"):
        read_records(Preference, "no_such_package:data.jsonl")


@pytest.mark.parametrize(
    ("row", "format", "prompt", "chosen"),
    [
        (TEXT, "text", "Why is the sky blue?", " Scattering."),
        ({**TEXT, "prompt": ""}, "text", "", " Scattering."),
        (TRANSCRIPT, "transcript", TRANSCRIPT["chosen"].removesuffix(" blue."), " blue."),
        (CHAT, "chat", (Message("user", "The sky is"),), "blue."),
        (IMPLICIT_CHAT, "chat", (Message("user", "The sky is"),), "blue."),
        ({**IMPLICIT_CHAT, "prompt": "The sky is"}, "chat", (Message("user", "The sky is"),), "blue."),
        ({**CHAT, "prompt": "The sky is"}, "chat", (Message("user", "The sky is"),), "blue."),
    ],
)
def test_formats_are_recognised(tmp_path, row, format, prompt, chosen):
    path = lines(tmp_path / "a.jsonl", {**row, "score": 3, "unused": None})
    for named in ("auto", format):
        (record,), _ = read_records(Preference, path, format=named)
        assert record == Preference(prompt, chosen, record.rejected, format, str(path), 1)


def test_the_prompt_is_never_the_longest_common_beginning(tmp_path):
    row = {"chosen": "\n\nHuman: The\n\nAssistant: sky is", "rejected": "\n\nHuman: The\n\nAssistant: sky is blue"}
    (record,), _ = read_records(Preference, lines(tmp_path / "a.jsonl", row))
    assert (record.prompt, record.chosen, record.rejected) == (
        "\n\nHuman: The\n\nAssistant:",
        " sky is",
        " sky is blue",
    )


def test_the_turns_of_a_transcript():
    turns = transcript_messages(TRANSCRIPT["chosen"])
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert transcript_messages("\n\nHuman: a Human: b\nAssistant: c\n\nAssistant:") == [
        Message("user", "a Human: b\nAssistant: c")
    ]


BAD_ROWS = {
    "no rejected": (
        {"prompt": "a", "chosen": "b"},
        "missing field rejected",
        "'rejected' is missing .*'prompt', 'chosen'",
    ),
    "null rejected": ({**TEXT, "rejected": None}, "missing field rejected", "'rejected' is null"),
    "other columns": ({"question": "a", "good": "b", "bad": "c"}, "missing field chosen", "'question', 'good', 'bad'"),
    "number": ({**TEXT, "chosen": 5}, "not a string", "'chosen' is of type int"),
    "number as prompt": ({**TEXT, "prompt": 5}, "not a string", "'prompt' is of type int"),
    "empty completion": ({**TEXT, "rejected": " \n"}, "empty completion", "'rejected' is empty"),
    "empty last turn": (
        {**TRANSCRIPT, "chosen": TRANSCRIPT["chosen"].removesuffix(" blue.")},
        "empty completion",
        "'chosen' is empty",
    ),
    "no prompt": ({"chosen": "The sky is", "rejected": "The sky is blue"}, "no prompt", "Add the prompt as a field"),
    "unequal prompts": (
        {**TRANSCRIPT, "chosen": "\n\nHuman: Who?\n\nAssistant: me"},
        "unequal prompts",
        "differ before their last turn",
    ),
    "human last": (
        {key: text + "\n\nHuman: thanks" for key, text in TRANSCRIPT.items()},
        "ends with a human turn",
        "End it with an Assistant turn",
    ),
    "one side chat": ({**TEXT, "chosen": [BLUE]}, "mixed formats", "Write both alike"),
    "chat, no content": (
        {**CHAT, "chosen": [{"role": "assistant"}]},
        "malformed message",
        "message 1 of field 'chosen'",
    ),
    "chat, null turn": ({**CHAT, "prompt": [None]}, "malformed message", "message 1 of field 'prompt'"),
    "chat, user last": ({**CHAT, "chosen": [USER]}, "no assistant turn", "'chosen' is not the assistant's"),
    "chat, empty list": ({**CHAT, "chosen": []}, "empty conversation", "'chosen' is an empty list"),
    "chat, other openings": (
        {**IMPLICIT_CHAT, "chosen": [{**USER, "content": "Who?"}, BLUE]},
        "unequal prompts",
        "answers to one prompt",
    ),
    "chat, only answers": ({"chosen": [BLUE], "rejected": [BLACK]}, "empty prompt", "Add the prompt"),
    "chat, long answers": (
        {**CHAT, "chosen": [USER, BLUE], "rejected": [USER, BLACK]},
        "several turns",
        "have several messages next to a field",
    ),
    "not JSON": (b'{"prompt": "a", ', "not JSON", "is not JSON"),
    "a list": (b'["a", "b"]', "not an object", "is a JSON list"),
    "bad UTF-8": (b'{"prompt": "\xff"}', "bad UTF-8", "is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_bad_row_stops_with_its_sentence_or_is_skipped_and_counted(tmp_path, name, ending):
    bad, kind, text = BAD_ROWS[name]
    whole_conversations = ("no prompt", "unequal prompts", "human last", "empty last turn")
    good = CHAT if name.startswith("chat") else TRANSCRIPT if name in whole_conversations else TEXT
    path = lines(tmp_path / f"a.{ending}", good, b"", bad, good)  # an empty line has a number, but is not a row
    with pytest.raises(UserError, match=f"a.{ending}, row 3: .*{text}.*on_error='skip'") as error:
        read_records(Preference, path)
    assert "\n" not in str(error.value)
    records, report = read_records(Preference, path, on_error="skip")
    assert [record.row for record in records] == [1, 4]
    assert report.counts == {kind: 1}
    assert f"1 {kind} (row 3)" in str(report)


def test_mixed_formats_are_an_error_of_the_later_row(tmp_path):
    path = lines(tmp_path / "a.jsonl", TEXT, CHAT)
    with pytest.raises(UserError, match=r"row 2: .*'chat' where 'text' is expected"):
        read_records(Preference, path)
    with pytest.raises(UserError, match=r"row 1: .*'text' where 'chat' is expected"):
        read_records(Preference, path, format="chat")


def test_broken_files(tmp_path):
    cut = lines(tmp_path / "cut.jsonl.gz", *[{**TEXT, "prompt": f"{i} " * 50} for i in range(50)])
    cut.write_bytes(cut.read_bytes()[:-60])
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "plain.jsonl.gz").write_bytes(json.dumps(TEXT).encode())
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "list.json").write_text('[{"prompt": 1}')
    (tmp_path / "header.csv").write_text("prompt,chosen,chosen\na,b,c\n")
    (tmp_path / "narrow.csv").write_text("prompt,chosen,rejected\na,b\n")
    (tmp_path / "quote.csv").write_text('prompt,chosen,rejected\n"a"b,b,c\n')
    (tmp_path / "latin.csv").write_bytes(b"prompt,chosen,rejected\n\xe9,b,c\n")
    (tmp_path / "a.parquet").write_text("no parquet")
    (tmp_path / "damaged.parquet").write_text("PAR1 and no more")
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "folder").mkdir()
    lines(tmp_path / "all.jsonl", {"prompt": 1}, {"prompt": 2})
    sentences = {
        "missing.jsonl": "the file does not exist",
        "empty.jsonl": "the file is empty",
        "blank.jsonl": "has no rows",
        "cut.jsonl.gz": "truncated",
        "plain.jsonl.gz": "not a sound gzip file",
        "list.json": "not JSON",
        "header.csv": "'chosen' appears more than once",
        "narrow.csv": "row 2: the row has 2 cells and the header has 3",
        "quote.csv": "row 2: the row is not CSV",
        "latin.csv": "row 2: the row is not UTF-8",
        "a.parquet": "not a sound Parquet file",
        "damaged.parquet": "not a sound Parquet file",
        "a.xlsx": r"must end in \.jsonl",
        "folder": "without readable data files",
    }
    for name, sentence in sentences.items():
        with pytest.raises(UserError, match=f"{name}.*{sentence}") as error:
            read_records(Preference, tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"no row of 2 can be used\. .*all\.jsonl, row 1"):
        read_records(Preference, tmp_path / "all.jsonl", on_error="skip")
    with pytest.raises(UserError, match=r"on_error is 'ignore'"):
        read_records(Preference, tmp_path / "all.jsonl", on_error="ignore")
    with pytest.raises(UserError, match="nobody/nothing: neither a local file nor a data set on the hub"):
        read_records(Preference, "nobody/nothing")  # the tests run with HF_HUB_OFFLINE=1


@pytest.mark.parametrize("holdout", [20, 0.4])
def test_no_prompt_is_on_both_sides(holdout):
    records = [Preference(f"prompt {i % 17}", f" a{i}", " b", "text", row=i) for i in range(50)]
    train, held = split_by_prompt(records, holdout=holdout, seed=3)
    assert not {r.prompt for r in train} & {r.prompt for r in held}
    assert sorted(train + held, key=lambda r: r.row) == records
    assert 20 <= len(held) < 24  # the last prompt taken has three pairs at most
    again = split_by_prompt(records[::-1], holdout=holdout, seed=3)
    assert {r.row for r in again[1]} == {r.row for r in held}  # the order of the file changes nothing
    assert {r.row for r in split_by_prompt(records, holdout=holdout, seed=4)[1]} != {r.row for r in held}


def test_a_split_must_leave_something_to_train_on():
    records = [Preference("one prompt", " a", " b", "text", row=i) for i in range(5)]
    for holdout in (5, 1.0, 2, -1):
        with pytest.raises(UserError, match="nothing to train on"):
            split_by_prompt(records, holdout=holdout)
