"""Python examples of the README and of docs/ run as they stand, in a folder with a tiny model and pairs."""

import json
import re
import shutil
from pathlib import Path

import pytest

from jaxalign.cli import main
from tests.cli.conftest import *  # noqa: F403  # the tiny model and its pairs
from tests.cli.conftest import same_model

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
EXAMPLES = [
    (path.relative_to(ROOT).as_posix(), number, code)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for number, code in enumerate(FENCE.findall(path.read_text(encoding="utf-8")))
]


def code_lines(code: str) -> int:
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in code.splitlines())


@pytest.fixture
def folder(tiny_model, pairs_file, tmp_path, monkeypatch) -> Path:
    """A working directory with what the examples name: `my-model` and `pairs.jsonl`."""
    shutil.copytree(tiny_model, tmp_path / "my-model")
    shutil.copy(pairs_file, tmp_path / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("path", "number", "code"), EXAMPLES, ids=[f"{path} {number}" for path, number, _ in EXAMPLES])
def test_example_runs(path, number, code, folder, capsys):
    exec(compile(code, f"{path}, example {number}", "exec"), {})
    assert capsys.readouterr().out


def test_examples_are_short():
    limits = {"README.md": 10, "docs/custom.md": 30}
    lengths = {(path, number): code_lines(code) for path, number, code in EXAMPLES if path in limits}
    assert len(lengths) == 5
    assert {place: length for place, length in lengths.items() if length > limits[place[0]]} == {}


def test_the_readme_run_equals_the_command_line_run_bitwise(folder):
    (code,) = [code for path, _, code in EXAMPLES if path == "README.md"]
    namespace: dict = {}
    exec(compile(code, "README.md", "exec"), namespace)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in namespace["rows"]))
    assert main(["dpo", "--model.path", "my-model", "--data.path", "pairs.jsonl", "--output", "runs/first"]) == 0
    assert same_model(folder / "aligned", folder / "runs/first/model")
    assert not same_model(folder / "my-model", folder / "aligned")
