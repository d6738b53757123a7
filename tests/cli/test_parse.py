"""Settings from files and flags: precedence, help, and each mistake in one sentence."""

import subprocess
import sys

import pytest

from jaxalign.cli import COMMANDS, main

REQUIRED = ["--model.path", "m", "--data.path", "d.jsonl", "--output", "o"]


def error_line(capsys, arguments) -> str:
    """Runs main with a mistake: one line on standard error, exit code 2, nothing on standard output."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("jaxalign: ")
    return line.removeprefix("jaxalign: ")


def test_flags_override_the_file_which_overrides_defaults(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("train: {batch_size: 3, seed: 5}\noptim: {learning_rate: 5e-7}\n")
    assert main(["dpo", "--config", str(tmp_path / "run.yaml"), "--train.seed", "7", "--print_config", *REQUIRED]) == 0
    shown = capsys.readouterr().out
    assert "batch_size: 3" in shown
    assert "seed: 7" in shown
    assert "learning_rate: 5.0e-07" in shown
    assert "holdout: 0.1" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_for_each_setting(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--config" in text
    assert "--print_config" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train.batch_sise", "3"], "Unknown setting train.batch_sise. Did you mean train.batch_size?"),
        (["--train.batch_size", "abc"], "train.batch_size: expected int, got abc."),
        (["--train.batch_size"], "train.batch_size: expected one argument."),
        (["--data.holdout", "many"], "data.holdout: expected int or float, got many."),
        (["--model.dtype", "int8"], "model.dtype: expected Literal['float32', 'bfloat16'], got int8."),
        (["surplus"], "Unknown setting surplus."),
    ],
)
def test_a_mistaken_flag_is_reported_in_one_sentence(arguments, words, capsys):
    assert words in error_line(capsys, ["dpo", *REQUIRED, *arguments])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train: {batch_sise: 3}", "Unknown setting train.batch_sise in {file}. Did you mean train.batch_size?"),
        ("modle: {path: m}", "Unknown setting modle.path in {file}. Did you mean model.path?"),
        ("train: {batch_size: abc}", "train.batch_size: expected int, got abc."),
        ("train: [3", "The settings in {file} cannot be read:"),
        ("- 3", "The settings in {file} cannot be read:"),
        ("", "The configuration file {file} is empty."),
        ("# nothing yet", "The configuration file {file} is empty."),
    ],
)
def test_a_mistaken_file_is_reported_in_one_sentence(content, words, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(content)
    assert words.format(file=file) in error_line(capsys, ["dpo", *REQUIRED, "--config", str(file)])


def test_a_file_in_another_encoding_is_reported(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_bytes("output: café".encode("latin-1"))
    assert f"{file} is not UTF-8 (byte 11). Save it as UTF-8." in error_line(
        capsys, ["dpo", *REQUIRED, "--config", str(file)]
    )


def test_what_is_missing_is_named(tmp_path, capsys):
    assert error_line(capsys, ["dpo"]).startswith("model.path, data.path, output must be set.")
    assert "no.yaml does not exist" in error_line(capsys, ["dpo", "--config", str(tmp_path / "no.yaml")])
    assert "'train' is not a command; the commands are quickstart, sft," in error_line(capsys, ["train"])


def test_help_comes_at_once_without_loading_jax():
    program = "import sys; from jaxalign.cli import main; main(['--help']); sys.exit('jax' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert all(command in ended.stdout for command in COMMANDS)
