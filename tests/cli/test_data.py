"""``jaxalign data inspect``: the report on a file, and an example with what counts in colour."""

import json

import pytest

from jaxalign.cli import main
from jaxalign.data.inspect import tree_spans
from jaxalign.data.kinds import Demonstration
from jaxalign.data.messages import Message
from jaxalign.data.tokenize import tokenize_completions

from .conftest import byte_tokenizer

PAIRS = [
    {"prompt": "sky?", "chosen": "blue", "rejected": "it is like red"},
    {"prompt": "sky?", "chosen": "blue", "rejected": "it is like red"},
    {"prompt": "sea?", "chosen": "it is deep", "rejected": "red"},
    {"prompt": "sun?", "chosen": "hot"},
]
CHAT = [{"role": "user", "content": "sky?"}, {"role": "assistant", "content": "blue"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def shown(capsys):
    def run(*arguments):
        assert main(["data", "inspect", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_a_report_on_pairs(shown, tmp_path):
    file, other = write(tmp_path / "a.jsonl", PAIRS), write(tmp_path / "b.jsonl", [{"prompt": "SEA?"}])
    text = shown(file, "--data.eval_path", other)
    for line in (
        f"{file}: 3 of 4 rows kept, 1 skipped: 1 missing field rejected (row 4)",
        "read as preference rows of format text",
        "3 records of 2 different prompts",
        "1 records repeat an earlier one",
        "0 records are contradicted by another one",
        "1 records have a prompt that is also in the other split",
        "the chosen answer is longer: 33.3 %",
    ):
        assert line in text.splitlines()
    assert "│ completion │ 3       │ 10" in text
    assert text.count("[1] blue") == 2
    assert "\x1b" not in text  # output to a file has no colour


def test_lengths_and_limits_in_tokens(shown, tmp_path, tiny_model):
    file = write(tmp_path / "a.jsonl", PAIRS[:3])
    text = shown(file, "--tokenizer", str(tiny_model), "--data.max_completion_length", "5", "--examples", "1")
    assert "3 examples, " in text
    assert "3 completions lost their end" in text
    assert "length in tokens" in text
    assert "[2] it is" in text


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"messages": CHAT}, "sft rows of format chat"),
        ({"instruction": "sky?", "output": "blue"}, "sft rows of format instruction"),
        ({"text": "the sky is blue"}, "sft rows of format text"),
        ({"prompt": "sky?", "completion": "blue", "label": True}, "unpaired rows of format text"),
        ({"prompt": "sky?", "completions": ["blue", "red", "green"]}, "ranking rows of format text"),
        ({"prompt": "sky?"}, "prompt rows of format text"),
    ],
)  # fmt: skip
def test_every_kind_can_be_inspected(shown, tmp_path, tiny_model, row, line):
    file = write(tmp_path / "a.jsonl", [row])
    assert f"read as {line}" in shown(file)
    text = shown(file, "--tokenizer", str(tiny_model))
    assert f"read as {line}" in text
    assert "sky" in text


def test_a_file_has_no_splits(tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", [{"prompt": "sky?"}])
    assert main(["data", "inspect", str(file), "--data.eval_split", "test"]) == 2
    assert "is one file and has no splits. Name another file" in " ".join(capsys.readouterr().err.split())


def test_logs_are_read_by_their_signals(shown, tmp_path):
    rows = [{"q": f"{i}?", "a": "b", "ups": i} for i in range(3)]
    file = write(tmp_path / "log.jsonl", rows)
    text = shown(file, "--data.columns", '{"prompt": "q", "completion": "a"}', "--data.signals.up", "ups")
    assert "2 of 3 rows kept (1 without a signal)" in text
    assert "liked: 100.0 %" in text


def test_spans_show_the_mask():
    tokenizer = byte_tokenizer()
    talk = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(["sky?", "blue", "sea?", "deep"])]
    (tree,), _ = tokenize_completions([Demonstration((talk[0],), tuple(talk[1:]), "chat")], tokenizer)
    assert tree_spans(tree, tokenizer) == [
        ("<|user|>sky?<|end|><|assistant|>", "prompt"),
        ("blue<|end|>", "target"),
        ("<|user|>sea?<|end|><|assistant|>", "context"),
        ("deep<|end|>", "target"),
    ]


def test_what_counts_is_in_colour(tmp_path, tiny_model, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = write(tmp_path / "a.jsonl", [{"messages": [*CHAT, {"role": "user", "content": "sea?"}, CHAT[1]]}])
    assert main(["data", "inspect", file, "--tokenizer", str(tiny_model)]) == 0
    text = capsys.readouterr().out
    assert "\x1b[1;32mblue<|end|>\x1b[0m" in text
    assert "\x1b[33m<|user|>sea?<|end|><|assistant|>\x1b[0m" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data"], "Run: jaxalign data inspect FILE"),
        (["data", "show", "a.jsonl"], "Run: jaxalign data inspect FILE"),
        (["data", "inspect"], "data.path must be set"),
        (["data", "inspect", "no.jsonl"], "no.jsonl: the file does not exist"),
        (["data", "inspect", "no.jsonl", "--data.kinds", "sft"], "Did you mean data.kind?"),
        (["data", "inspect", "no.jsonl", "--examples", "-1"], "examples is -1."),
    ],
)
def test_mistakes_are_reported(error_of, arguments, words):
    assert words in error_of(arguments)
