"""A budget of capability stops a run that costs more, keeps the last state within it, and changes no other run."""

import json
import math
import re
import shutil

import jax
import numpy as np
import pytest

from jaxalign import load_model
from jaxalign.cli import main
from jaxalign.recipes.budget import is_beyond
from jaxalign.tracking import read_jsonl
from tests.cli.conftest import pair, same_model


@pytest.fixture(scope="module")
def rejected(tmp_path_factory):
    """What training makes unlikely, as texts whose perplexity is measured."""
    file = tmp_path_factory.mktemp("texts") / "rejected.jsonl"
    rows = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in map(pair, range(8))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def budget(file, allowed, every=2):
    return {
        "budget.max_tax": json.dumps({"texts/perplexity": allowed}),
        "budget.suite.perplexity": json.dumps({"texts": {"path": str(file)}}),
        "budget.every": every,
    }


def figures(run):
    return {
        line["step"]: line["budget/texts/perplexity"]
        for line in read_jsonl(run / "metrics.jsonl")
        if "budget/texts/perplexity" in line
    }


@pytest.mark.thorough
def test_a_run_within_its_budget_is_the_run_without_one(tmp_path, flags, rejected):
    assert main(flags(tmp_path / "plain")) == 0
    assert main(flags(tmp_path / "wide", **budget(rejected, 1e9))) == 0
    assert same_model(tmp_path / "plain" / "model", tmp_path / "wide" / "model")
    values = figures(tmp_path / "wide")
    assert sorted(values) == [0, 2, 4, 5]
    assert values[5] > values[0]


def test_the_last_state_within_the_budget_is_kept(tmp_path, flags, rejected, capsys):
    """The schedule is constant here, so that a run of two steps is the beginning of one of five."""
    constant = {"optim.schedule": "constant"}
    assert main(flags(tmp_path / "wide", **budget(rejected, 1e9, 1), **constant)) == 0
    values = figures(tmp_path / "wide")
    allowed = (values[2] + values[3]) / 2 - values[0]
    assert max(values[1], values[2]) - values[0] < allowed < values[3] - values[0]
    assert main(flags(tmp_path / "tight", **budget(rejected, allowed, 1), **constant)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "after step 3: worse by" in printed
    assert "The model of step 2 is the result." in printed
    assert sorted(figures(tmp_path / "tight")) == [0, 1, 2, 3]
    assert main(flags(tmp_path / "two", **{"train.steps": 2}, **constant)) == 0
    assert same_model(tmp_path / "tight" / "model", tmp_path / "two" / "model")


@pytest.mark.thorough
def test_what_a_killed_run_kept_is_not_the_next_ones(tmp_path, flags, rejected):
    """Killed before its first checkpoint, with another learning rate: the next run has a state of its own."""
    assert main(flags(tmp_path / "run", **budget(rejected, 1e9, 1), **{"optim.learning_rate": 3e-2})) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run" / "model")
    assert main(flags(tmp_path / "run", **budget(rejected, 0.0, 1))) == 0
    assert main(flags(tmp_path / "new", **budget(rejected, 0.0, 1))) == 0
    assert same_model(tmp_path / "run" / "model", tmp_path / "new" / "model")
    assert figures(tmp_path / "run") == figures(tmp_path / "new")


def test_a_resumed_run_uses_the_figures_before_training(tmp_path, flags, rejected):
    assert main(flags(tmp_path / "whole", **budget(rejected, 1e9, 1))) == 0
    assert main(flags(tmp_path / "cut", **budget(rejected, 1e9, 1), **{"train.keep": 5})) == 0
    assert (tmp_path / "cut" / "checkpoints" / "2").exists()
    for step in (4, 5):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step), ignore_errors=True)
    before = (tmp_path / "cut" / "budget.json").read_text()
    assert main(flags(tmp_path / "cut", **budget(rejected, 1e9, 1), **{"train.keep": 5})) == 0
    assert (tmp_path / "cut" / "budget.json").read_text() == before
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    assert same_model(tmp_path / "cut" / "model", tmp_path / "whole" / "model")


def test_mistakes_are_refused_before_training(tmp_path, flags, rejected, error_of):
    assert "unknown figure texts/magic. Choose among texts/perplexity." in error_of(
        flags(tmp_path / "a", **{**budget(rejected, 1.0), "budget.max_tax": '{"texts/magic": 1.0}'})
    )
    assert "unknown figure other/accuracy." in error_of(
        flags(tmp_path / "b", **{**budget(rejected, 1.0), "budget.max_tax": '{"other/accuracy": 1.0}'})
    )
    assert "Give a finite number, 0 or more" in error_of(flags(tmp_path / "c", **budget(rejected, -1.0)))
    assert "budget.every is 0" in error_of(flags(tmp_path / "d", **budget(rejected, 1.0, 0)))
    unlimited = budget(rejected, 1.0) | {"budget.max_tax": "{}"}
    assert "budget.suite is given, but no figure is limited" in error_of(flags(tmp_path / "e", **unlimited))


def test_what_is_reported_and_exported_is_the_state_within_the_budget(tmp_path, flags, rejected):
    """A run that stops at its third step, with an evaluation and a checkpoint at every one."""
    settings = {"train.checkpoint_every": 1, "train.eval_every": 1, "train.keep": 5, "optim.learning_rate": 3e-2}
    assert main(flags(tmp_path / "run", **budget(rejected, 0.0, 3), **settings)) == 0
    losses = [
        (line["step"], line["eval/loss"]) for line in read_jsonl(tmp_path / "run/metrics.jsonl") if "eval/loss" in line
    ]
    assert losses[-1] == losses[0] == (0, pytest.approx(math.log(2)))
    assert [step for step, _ in losses] == [0, 1, 2, 0]
    for name in ("best", "latest"):
        out = tmp_path / name
        assert main(["export", "--run", str(tmp_path / "run"), "--output", str(out), "--checkpoint", name]) == 0
        assert same_model(out, tmp_path / "run/model")
    out = tmp_path / "two"
    assert main(["export", "--run", str(tmp_path / "run"), "--output", str(out), "--checkpoint", "2"]) == 0
    assert not same_model(out, tmp_path / "run/model")


def test_parameters_that_are_not_finite_are_beyond_any_budget(tmp_path, flags, rejected, capsys):
    diverging = {"optim.learning_rate": 1e20, "train.eval_every": 0}
    assert main(flags(tmp_path / "run", **budget(rejected, 1e300, 1), **diverging)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "has no finite value" in printed
    assert re.search(r"The model of step \d is the result", printed)
    _, params = load_model(tmp_path / "run/model")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("right", "of", "allowed"), [(8, 400, 0.02), (4, 400, 0.01), (1, 100, 0.01)])
def test_exactly_what_is_allowed_is_allowed(right, of, allowed):
    for before in range(right, of + 1):
        old, new = before / of, (before - right) / of
        assert not is_beyond(old, new, "more", allowed)
        assert not is_beyond(new, old, "less", allowed)
        assert is_beyond(old, new - 1 / of, "more", allowed)
    assert is_beyond(1.0, math.nan, "more", 1.0)


def test_a_run_with_a_model_is_not_written_over(tmp_path, flags, rejected, error_of):
    """One that its budget stops at its first step has no checkpoint."""
    early = {"train.checkpoint_every": 10, "train.eval_every": 0, "optim.learning_rate": 3e-2}
    assert main(flags(tmp_path / "run", **budget(rejected, 0.0, 1), **early)) == 0
    assert "already contains a run" in error_of(flags(tmp_path / "run", **early, **{"train.resume": "never"}))
    assert "contains a run with other settings" in error_of(flags(tmp_path / "run", **early))


def test_a_suite_file_that_changed_is_reported(tmp_path, flags, rejected, error_of):
    file = tmp_path / "texts.jsonl"
    shutil.copy(rejected, file)
    given = flags(tmp_path / "cut", **budget(file, 1e9, 1), **{"train.keep": 5})
    assert main(given) == 0
    for step in (4, 5):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step), ignore_errors=True)
    file.write_text(json.dumps({"prompt": "x", "completion": "zzzz qqqq"}) + "\n")
    assert "texts.jsonl changed since the run in" in error_of(given)
