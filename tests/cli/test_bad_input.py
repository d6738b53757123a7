"""Every mistake people make ends as one sentence that says where and what to do, exit code 2, and leaves no trace."""

import dataclasses
import gzip
import json
import shutil
import sys
from pathlib import Path

import jax
import pytest

import jaxalign
from jaxalign.cli import main
from jaxalign.models.model import Model

GOOD = {"prompt": "what is it?", "chosen": "blue", "rejected": "it is like blue"}
DATA = {  # what stands in row 2 of the file: what the sentence says
    "a row without rejected": ({"prompt": "x", "chosen": "y"}, "field 'rejected' is missing"),
    "a row without chosen": ({"prompt": "x", "rejected": "y"}, "field 'chosen' is missing"),
    "a field that is not a string": ({**GOOD, "chosen": 7}, "field 'chosen' is of type int. Give a string"),
    "a prompt that is not a string": ({**GOOD, "prompt": 7}, "field 'prompt' is of type int. Give a string"),
    "an empty completion": ({**GOOD, "rejected": " "}, "field 'rejected' is empty"),
    "a row that is not an object": ([1], "is a JSON list"),
    "chat messages among texts": ({"prompt": "x", "chosen": [], "rejected": []}, "has the format 'chat'"),
}


@pytest.fixture
def refused(error_of, flags, tmp_path):
    """The sentence of a run with these changes, after checking that it left nothing behind."""
    output = tmp_path / "new" / "run"

    def run(**changes) -> str:
        before = sorted(tmp_path.rglob("*"))
        line = error_of(flags(output, **changes))
        assert sorted(tmp_path.rglob("*")) == before
        assert "\n" not in line, "one line"
        return line

    return run


@pytest.mark.parametrize("what", DATA)
def test_a_bad_row_is_named_with_its_file(refused, tmp_path, what):
    row, words = DATA[what]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (GOOD, row, GOOD)))
    line = refused(data__path=file)
    assert line.startswith(f"{file}, row 2: ")
    assert words in line
    assert "data.on_error=skip" in line


def test_bad_rows_may_be_skipped_counted_and_reported(flags, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    rows = [{**GOOD, "prompt": str(i)} for i in range(6)]
    rows[2:2] = [row for row, _ in DATA.values()]
    file.write_text("".join(json.dumps(line) + "\n" for line in rows))
    assert main(flags(tmp_path / "run", data__path=file, data__on_error="skip", train__steps=1, data__holdout=2)) == 0
    shown = capsys.readouterr().out
    assert "6 of 13 rows kept, 7 skipped: " in shown
    assert "1 empty completion (row 7)" in shown


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pairs.jsonl", b"", "the file is empty"),
        ("pairs.jsonl", b"prompt,chosen\n", "row 1: the row is not JSON"),
        ("pairs.jsonl", b"\xff\xfe\x00", "row 1: the row is not UTF-8"),
        ("pairs.txt", b"hello", "unknown kind of file. Its name must end in .jsonl, .json, .csv, .parquet"),
        ("pairs.json", b'[{"prompt": ', "the file is not JSON (Expecting value, line 1)"),
        ("pairs.parquet", b"PAR1 and so on", "Parquet file ("),
        ("pairs.jsonl.gz", b"not gzip", "not a sound gzip file"),
        ("pairs.jsonl.gz", gzip.compress(json.dumps(GOOD).encode(), mtime=0)[:-9], "the gzip file ends early"),
    ],
)
def test_a_file_of_the_wrong_kind_is_named(refused, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content)
    line = refused(data__path=file)
    assert line.startswith(str(file))
    assert words in line


def test_files_that_are_not_there_are_named(refused, tmp_path):
    assert f"{tmp_path}/no.jsonl: the file does not exist" in refused(data__path=tmp_path / "no.jsonl")
    assert f"{tmp_path}/no.jsonl: the file does not exist" in refused(data__eval_path=tmp_path / "no.jsonl")
    assert f"{tmp_path}/model: no such model" in refused(model__path=tmp_path / "model")
    assert "the package 'no_such' is not installed" in refused(model__path="no_such:model.gguf")


def test_limits_that_leave_nothing_are_reported(refused, pairs_file):
    assert "max_length is 1, which leaves no completion token" in refused(data__max_length=1)
    assert "max_completion_length is 0, which leaves no completion token" in refused(data__max_completion_length=0)
    assert "leaves nothing to train on" in refused(data__holdout=20)
    assert "data.limit is 0." in refused(data__limit=0)


def test_an_unknown_key_is_reported_with_the_nearest_known_one(refused):
    assert "Unknown setting data.max_lenght. Did you mean data.max_length?" in refused(data__max_lenght=3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__batch_size": 0}, "train.batch_size is 0."),
        ({"train__steps": 0}, "train.steps is 0."),
        ({"train__steps": "null", "train__epochs": ".inf"}, "train.epochs is inf."),
        ({"train__steps": "null", "train__epochs": ".nan"}, "train.epochs is nan."),
        ({"train__row_lengths": "[]"}, "train.row_lengths is []."),
        ({"train__row_lengths": "[64,-3]"}, "train.row_lengths is [64, -3]."),
        ({"method__beta": ".inf"}, "method.beta is inf."),
        ({"samples__temperature": ".nan"}, "samples.temperature is nan."),
        ({"data__max_length": 1025}, "data.max_length is 1025, and the model was made for 1024 positions"),
        ({"optim__b1": 1}, "optim.b1 is 1.0. Give a number from 0 to below 1"),
        ({"train__steps": "null", "train__epochs": 0}, "The run has 0 steps."),
        ({"train__row_lengths": "[16]"}, "train.row_lengths is [16], and the longest example has 50 tokens"),
        ({"train__rows_per_microbatch": 3, "mesh__data": 2}, "must be a multiple of the mesh's data × fsdp = 2"),
        ({"mesh__data": 64}, "needs 64 devices, this machine has 8."),
        ({"optim__learning_rate": -1}, "optim.learning_rate is -1.0."),
        ({"log__every": 0}, "log.every is 0."),
        ({"method__beta": 0}, "method.beta is 0.0."),
        ({"method__label_smoothing": 0.7}, "method.label_smoothing is 0.7."),
        ({"train__best": "eval/lost"}, "train.best is eval/lost. Give one of eval/loss, "),
        ({"samples__max_new_tokens": 0}, "samples.max_new_tokens is 0."),
    ],
)
def test_impossible_numbers_are_reported(refused, changes, words):
    assert words in refused(**changes)


def test_a_model_of_another_kind_is_reported(refused, tiny_model, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    line = refused(model__path=model)
    assert "gpt2" in line
    assert "llama" in line
    assert str(model) in line


def test_token_ids_beyond_the_embedding_are_reported(refused, tiny_model, tmp_path, capsys):
    model, _ = jaxalign.load_model(tiny_model)
    small = Model(dataclasses.replace(model.config, vocab_size=90))
    params = small.init(jax.random.key(0))
    jaxalign.save_model(tmp_path / "small", small, params, jaxalign.load_tokenizer(tiny_model))
    words = "and the model's vocab_size is 90."
    assert words in refused(model__path=tmp_path / "small")
    assert main(["generate", "--model.path", str(tmp_path / "small"), "--prompt", "zoo", "--chat", "false"]) == 2
    *_, line = capsys.readouterr().err.splitlines()  # after that about the model
    assert line.startswith("jaxalign: The tokenizer makes token id ")
    assert words in line


@pytest.mark.parametrize("package", ["tensorboardX", "wandb"])
def test_a_missing_dashboard_is_reported_before_the_work(refused, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    changes = {"log__tensorboard": "true"} if package == "tensorboardX" else {"log__wandb": "project"}
    assert f"needs {package}. Install it with pip install" in refused(model__path="no.gguf", **changes)


@pytest.mark.parametrize("setting", ["data.path", "model.path", "output"])
def test_a_place_that_may_not_be_looked_into_is_reported(refused, error_of, flags, monkeypatch, setting):
    """By a stand-in for the system's answer: tests may run as root, who may look everywhere."""
    stat = Path.stat

    def forbidden(self, **options):
        if "/locked" in str(self):
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", forbidden)
    if setting == "output":
        assert "(Permission denied at /locked/place)" in error_of(flags("/locked/place"))
    else:
        line = refused(**{setting: "/locked/place"})
        assert line.startswith("/locked/place: ")  # Python 3.14: does not exist; before: cannot be read


def test_a_name_too_long_is_reported(error_of, flags, tmp_path):
    assert "cannot be written (File name too long" in error_of(flags(tmp_path / ("x" * 300)))


def test_an_output_directory_that_cannot_be_written_is_reported_first(error_of, flags, tmp_path):
    (tmp_path / "file").write_text("text")
    line = error_of(flags(tmp_path / "file" / "run", data__path="no.jsonl", model__path="no.gguf"))
    assert line.startswith(f"The directory {tmp_path}/file/run cannot be written (")
    assert (tmp_path / "file").read_text() == "text"
