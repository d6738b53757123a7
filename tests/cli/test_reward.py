"""``jaxalign reward`` from files to files: pairs and rankings, one head and several, with adapters, trained further."""

import json
import shutil

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import jaxalign
from jaxalign import loop
from jaxalign.cli import main
from jaxalign.models import lora
from jaxalign.models.params import union
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
        "base", "calibration.json", "checkpoints", "config.yaml", "inputs.json", "metrics.jsonl", "model",
        "timings.jsonl",
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
    content = json.loads((run / "calibration.json").read_text())
    assert sum(entry["size"] for entry in content["bins"]) == 4
    assert 0 <= content["brier"] < 0.25
    shown = capsys.readouterr().out
    for words in (
        "predicted probability, observed frequency",
        "expected calibration error",
        "Brier score",
        str(run / "model"),
    ):
        assert words in shown


@pytest.mark.parametrize("learn", ["pairs", pytest.param("rankings", marks=pytest.mark.thorough)])
def test_an_ensemble_with_adapters_is_exported_as_it_was_saved(reward, rankings_file, tiny_model, tmp_path, learn):
    run, target = tmp_path / "run", tmp_path / "exported"
    changes = {"method.learn": learn, "method.heads": 3, "lora.rank": 2}
    changes |= {"data__path": rankings_file, "train__row_lengths": "[128]"} if learn == "rankings" else {}
    assert main(reward(run, **changes)) == 0
    line = read_jsonl(run / "metrics.jsonl")[-1]
    assert line["eval/rewards/uncertainty"] > 0
    assert main(["export", "--run", str(run), "--output", str(target), "--checkpoint", "latest"]) == 0
    assert same_model(target, run / "model")
    model, params = jaxalign.load_model(target)
    assert params["score"]["kernel"].shape == (16, 3)
    base, trunk = jaxalign.load_model(tiny_model)
    adapted, adapters = lora.load(run / "adapter", base)
    assert adapted.config.num_scores == 3
    merged, merged_params = lora.merge(adapted, union(adapters, trunk))
    assert merged.config.num_scores == model.config.num_scores
    jax.tree.map(np.testing.assert_array_equal, merged_params, params)


@pytest.mark.thorough
@pytest.mark.parametrize("heads", [1, 3])
def test_resumed_is_bitwise(reward, tmp_path, monkeypatch, heads):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = {"method.heads": heads, "train__checkpoint_every": 1}
    assert main(reward(whole, **settings)) == 0
    fold = loop.run

    def cut_short(*arguments, **options):
        for step, yielded in enumerate(fold(*arguments, **options), start=1):
            if step == 3:
                raise KeyboardInterrupt
            yield yielded

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", cut_short)
        assert main(reward(cut, **settings)) == 130
    assert main(reward(cut, **settings)) == 0
    assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
    assert same_model(whole / "model", cut / "model")


def test_a_tokenizer_without_padding_is_refused_before_training(reward, tiny_model, error_of, tmp_path):
    """One whose only special token ends the text, as GPT-2's."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = jaxalign.load_tokenizer(str(model))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] == "<|end|>"]
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|end|>")
    bare.save_pretrained(model)
    (model / "chat_template.jinja").unlink()
    run = tmp_path / "run"
    assert "The tokenizer has only its end token to pad with" in error_of(reward(run, **{"model.path": model}))
    assert not run.exists()


def test_a_reward_model_is_trained_further(reward, error_of, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(reward(first)) == 0
    assert main(reward(second, **{"model.path": first / "model"})) == 0
    before, after = (read_jsonl(run / "metrics.jsonl") for run in (first, second))
    ends, starts = before[-1]["eval/loss"], after[0]["eval/loss"]
    np.testing.assert_allclose(starts, ends, rtol=1e-6)
    words = error_of(reward(tmp_path / "third", **{"model.path": first / "model", "method.heads": 2}))
    assert words == "method.heads is 2, but the reward model has 1."


def test_mistakes(reward, error_of, tmp_path):
    run = tmp_path / "run"
    assert "method.heads is 0" in error_of(reward(run, **{"method.heads": 0}))
    assert "method.centering is for pairs" in error_of(
        reward(run, **{"method.learn": "rankings", "method.centering": 0.1})
    )
    assert "Give one of eval/loss, eval/rewards/mean" in error_of(
        reward(run, **{"method.learn": "rankings", "train.best": "eval/rewards/margins"})
    )
    assert "field 'completions' is missing" in error_of(reward(run, **{"method.learn": "rankings"}))
    assert not run.exists()
