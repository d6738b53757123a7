"""Recipes as library calls: model, rows, loss, metrics and rewards in memory; the same run as the command line's."""

import json

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign import losses
from jaxalign.cli import main
from jaxalign.errors import UserError
from jaxalign.losses.metrics import sum_count
from jaxalign.recipes import dpo, grpo, kto, online_dpo, ppo, reward, sft
from jaxalign.recipes.config import SamplesSection
from tests.cli.conftest import *  # noqa: F403  # the tiny model and its files
from tests.cli.conftest import pair

RUN = {
    "data.holdout": 4,
    "train.batch_size": 4,
    "train.steps": 3,
    "train.row_lengths": [64],
    "optim.learning_rate": 1e-2,
    "optim.warmup_ratio": 0,
    "samples.prompts": 1,
    "samples.max_new_tokens": 4,
}
ROLLOUT = {"train.batch_size": 4, "train.iterations": 2, "rollout.max_new_tokens": 5, "samples.prompts": 0}
ROWS = [pair(i) for i in range(20)]


@pytest.fixture
def loaded(tiny_model):
    """The keyword arguments of a tiny model in memory."""
    return {"model": jaxalign.load_model(tiny_model), "tokenizer": jaxalign.load_tokenizer(tiny_model)}


def test_a_run_in_memory_is_the_run_of_the_command_line(loaded, flags, tmp_path):
    changes = {name: json.dumps(value) for name, value in RUN.items()} | {"train.eval_every": 0}
    assert main(flags(tmp_path / "run", **changes)) == 0
    before = jax.tree.map(np.array, loaded["model"][1])
    result = dpo.train(dpo.load_config(overrides=RUN), rows=ROWS, **loaded)
    _, params = jaxalign.load_model(tmp_path / "run" / "model")
    jax.tree.map(np.testing.assert_array_equal, params, result.params)
    jax.tree.map(np.testing.assert_array_equal, loaded["model"][1], before)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result.history == [line for line in lines if "loss" in line]
    assert result.before["eval/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert result.after["eval/loss"] < result.before["eval/loss"]
    low, high = result.after["eval/rewards/accuracies_ci"]
    assert low <= result.after["eval/rewards/accuracies"] <= high
    assert [set(sample) for sample in result.samples] == [{"prompt", "before", "after"}]
    assert result.directory is None


def test_nothing_is_written_and_nothing_is_printed_without_an_output(loaded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sft.train(
        sft.load_config(overrides=RUN),
        rows=[{"prompt": r["prompt"], "completion": r["chosen"]} for r in ROWS],
        **loaded,
    )
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("reference", ["cached", pytest.param("live", marks=pytest.mark.thorough)])
def test_a_loss_and_a_metric_of_ones_own(loaded, reference):
    def loss(pc, pr, rc, rr):
        return losses.hinge(pc, pr, rc, rr, beta=0.1)

    def margin(arrays):
        return {"margin": sum_count(arrays["pc"] - arrays["pr"], arrays["mask"])}

    config = dpo.load_config(overrides={**RUN, "method.reference": reference})
    named = dpo.train(
        dpo.load_config(overrides={**RUN, "method.reference": reference, "method.loss": "hinge"}), rows=ROWS, **loaded
    )
    own = dpo.train(config, rows=ROWS, loss=loss, metrics=margin, **loaded)
    assert own.history[-1]["loss"] == pytest.approx(named.history[-1]["loss"], rel=1e-5)
    chosen, rejected = (own.history[0][f"logps/{side}"] for side in ("chosen", "rejected"))
    assert own.history[0]["margin"] == pytest.approx(chosen - rejected, abs=1e-3)
    assert "eval/margin" in own.after


def test_steps_are_called_and_lines_are_reported(loaded):
    steps, lines = [], []
    config = kto.load_config(overrides=RUN)
    kto.train(config, rows=ROWS, on_step=lambda step, state, metrics: steps.append(step), report=lines.append, **loaded)
    assert steps == [1, 2, 3]
    assert any(line.startswith("step 3/3  loss") for line in lines)


def test_a_reward_of_ones_own(loaded):
    def brevity(prompts, completions, rows):
        assert all(row["prompt"] for row in rows)
        return [-float(len(text)) for text in completions]

    before = jax.tree.map(np.array, loaded["model"][1])
    prompts = [{"prompt": row["prompt"]} for row in ROWS]
    config = grpo.load_config(overrides={**ROLLOUT, "method.samples": 2})
    result = grpo.train(config, rows=prompts, rewards={"brevity": brevity}, **loaded)
    assert [line["step"] for line in result.history] == [1, 2]
    assert result.history[0]["objective/scores"] == pytest.approx(result.history[0]["rewards/brevity"], rel=1e-6)
    jax.tree.map(np.testing.assert_array_equal, loaded["model"][1], before)


def test_a_reward_model_reports_calibration(loaded):
    result = reward.train(
        reward.load_config(overrides={k: v for k, v in RUN.items() if "samples" not in k}), rows=ROWS, **loaded
    )
    assert result.model.config.num_scores == 1
    assert 0 <= result.after["eval/ece"] <= 1
    assert len(result.after["eval/ece_ci"]) == 2


def test_defaults_are_complete_when_model_tokenizer_and_rows_are_given(loaded):
    for recipe in (sft, dpo, kto):
        assert recipe.Config(output=None).output is None
    dpo.train(dpo.Config(output=None, samples=SamplesSection(prompts=0)), rows=ROWS, **loaded)


@pytest.mark.parametrize(
    ("recipe", "arguments", "words"),
    [
        (dpo, {"rewards": {}}, "does not use the argument rewards"),
        (sft, {"loss": losses.dpo}, "does not use the argument loss"),
        (reward, {"loss": losses.dpo}, "does not use the argument loss"),
        (ppo, {"eval_rows": []}, "does not use the argument eval_rows"),
        (online_dpo, {"loss": losses.dpo}, "does not use the argument loss"),
    ],
)
def test_arguments_that_do_not_apply_are_refused_by_name(recipe, arguments, words):
    with pytest.raises(UserError, match=words):
        recipe.train(recipe.Config(), **arguments)


def test_what_is_missing_is_named(loaded):
    with pytest.raises(UserError, match="tokenizer is missing"):
        dpo.train(dpo.Config(), model=loaded["model"], rows=ROWS)
    with pytest.raises(UserError, match="Give a path or rows"):
        dpo.train(dpo.Config(), **loaded)
    with pytest.raises(UserError, match="Nothing is rewarded"):
        grpo.train(grpo.Config(), rows=ROWS, **loaded)
    with pytest.raises(UserError, match=r"rows, row 2: .*rejected"):
        dpo.train(dpo.Config(), rows=[ROWS[0], {"prompt": "a", "chosen": "b"}], **loaded)
    with pytest.raises(UserError, match=r"Unknown setting train.batch_sise. Did you mean train.batch_size\?"):
        dpo.load_config(overrides={"train.batch_sise": 3})
