"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, capsys):
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), {})
    printed = capsys.readouterr().out
    if number == 1:
        assert re.search(r"40 loss 0\.4\d+, accuracy 1\.00", printed), printed


@pytest.mark.parametrize("name", ["quickstart", "main command", "test command"])
def test_commands_stand_between_markers(name):
    assert re.search(rf"<!-- {name} -->\n```sh\n[^\n]+\n```\n<!-- end -->", README)


def test_the_quickstart_table_is_the_one_that_was_measured():
    shown = re.search(r"<!-- quickstart table -->\n(.*?)<!-- end -->", README, flags=re.DOTALL)
    assert shown is not None
    assert shown[1] == (Path(__file__).parents[1] / "docs/quickstart/table.md").read_text(encoding="utf-8")
