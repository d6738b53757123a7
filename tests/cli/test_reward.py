"""``jaxalign reward`` from files to files: pairs and rankings, one head and several, with adapters, trained further."""

import json

import numpy as np
import pytest

import jaxalign
from jaxalign.cli import main
from jaxalign.tracking import read_jsonl
from tests.cli.conftest import names, pair, same_model


@pytest.fixture
def reward(flags):
    def build(output, **changes):
        return flags(output, "reward", **{"samples.prompts": None, "samples.max_new_tokens": None} | changes)

    return build


@pytest.fixture(scope="session")
def rankings_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("rankings") / "ranked.jsonl"
    rows = []
    for i in range(20):
        row = pair(i)
        answers = [row["chosen"], row["rejected"], row["rejected"] + " and more"][: 2 + i % 2]
        rows.append(json.dumps({"prompt": row["prompt"], "completions": answers}))
    file.write_text("\n".join(rows) + "\n")
    return file


def test_pairs_to_a_reward_model(reward, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(reward(run, train__steps=30)) == 0
    assert names(run) == [
        "base", "calibration.json", "checkpoints", "config.yaml", "metrics.jsonl", "model", "timings.jsonl"
    ]  # fmt: skip
    lines = read_jsonl(run / "metrics.jsonl")
    evaluations = [line for line in lines if "eval/loss" in line]
    assert evaluations[-1]["eval/loss"] < evaluations[0]["eval/loss"]
    assert evaluations[-1]["eval/rewards/accuracies"] == 1
    model, params = jaxalign.load_model(run / "model")
    assert model.config.num_scores == 1
    assert params["score"]["kernel"].shape == (16, 1)
    assert model.config.pad_token_id not in model.config.eos_token_ids
    tokenizer = jaxalign.load_tokenizer(str(run / "model"))
    assert tokenizer.pad_token_id == model.config.pad_token_id
    found = json.loads((run / "calibration.json").read_text())
    assert sum(each["size"] if isinstance(each, dict) else each[2] for each in found["bins"]) == 4
    assert 0 <= found["brier"] < 0.25
    shown = capsys.readouterr().out
    for words in ("probability said, frequency seen", "expected calibration error", "Brier score", str(run / "model")):
        assert words in shown


@pytest.mark.parametrize("learn", ["pairs", "rankings"])
def test_an_ensemble_with_adapters_is_exported_as_it_was_saved(reward, rankings_file, tmp_path, learn):
    run, target = tmp_path / "run", tmp_path / "exported"
    changes = {"method.learn": learn, "method.heads": 3, "lora.rank": 2}
    changes |= {"data__path": rankings_file, "train__row_lengths": "[128]"} if learn == "rankings" else {}
    assert main(reward(run, **changes)) == 0
    assert not (run / "adapter").exists()
    line = read_jsonl(run / "metrics.jsonl")[-1]
    assert line["eval/rewards/uncertainty"] > 0
    assert main(["export", "--run", str(run), "--output", str(target), "--checkpoint", "latest"]) == 0
    assert same_model(target, run / "model")
    _, params = jaxalign.load_model(target)
    assert params["score"]["kernel"].shape == (16, 3)


def test_a_reward_model_is_trained_further(reward, told, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(reward(first)) == 0
    assert main(reward(second, **{"model.path": first / "model"})) == 0
    before, after = (read_jsonl(run / "metrics.jsonl") for run in (first, second))
    ends, starts = before[-1]["eval/loss"], after[0]["eval/loss"]
    np.testing.assert_allclose(starts, ends, rtol=1e-6)
    words = told(reward(tmp_path / "third", **{"model.path": first / "model", "method.heads": 2}))
    assert words == "method.heads is 2, and the reward model has 1."


def test_mistakes(reward, told, tmp_path):
    run = tmp_path / "run"
    assert "method.heads is 0" in told(reward(run, **{"method.heads": 0}))
    assert "method.centering is for pairs" in told(reward(run, **{"method.learn": "rankings", "method.centering": 0.1}))
    assert "give one of eval/loss, eval/rewards/mean" in told(
        reward(run, **{"method.learn": "rankings", "train.best": "eval/rewards/margins"})
    )
    assert "field 'completions' is missing" in told(reward(run, **{"method.learn": "rankings"}))
    assert not run.exists() or names(run) == []
