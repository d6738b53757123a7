"""``jaxalign sft`` from files to files: what it learns, resumed bitwise, with adapters, and exported."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

import jaxalign
from jaxalign import loop
from jaxalign.cli import main
from jaxalign.methods.reward import from_language_model
from jaxalign.models import lora
from jaxalign.models.params import union
from jaxalign.tracking import read_jsonl
from tests.cli.conftest import WORDS, names, same_model


@pytest.fixture(scope="session")
def demonstrations(tmp_path_factory):
    """Twenty chats of two turns, which say the colour of a thing."""
    file = tmp_path_factory.mktemp("sft") / "chats.jsonl"
    with file.open("w") as out:
        for i in range(20):
            thing, colour = WORDS[i % 3], WORDS[3 + i % 3]
            texts = [f"what is the {thing} {i}?", colour, "sure?", f"yes {colour}"]
            roles = ["user", "assistant"] * 2
            turns = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            out.write(json.dumps({"messages": turns}) + "\n")
    return file


@pytest.fixture
def sft(flags, demonstrations):
    def build(output, **changes):
        return flags(output, "sft", **{"data__path": demonstrations, "train__row_lengths": "[128]"} | changes)

    return build


LORA = {"lora.rank": 4, "lora.targets": "(q|v|down)_proj"}


def test_it_learns_and_reports(sft, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(sft(run, train__steps=30)) == 0
    assert names(run) == [
        "base", "checkpoints", "config.yaml", "inputs.json", "metrics.jsonl", "model", "samples.json", "timings.jsonl"
    ]  # fmt: skip
    lines = read_jsonl(run / "metrics.jsonl")
    evaluations = [line for line in lines if "eval/loss" in line]
    for line in evaluations:
        assert line["eval/perplexity"] == pytest.approx(math.exp(line["eval/loss"]))
    assert evaluations[-1]["eval/perplexity"] < 0.5 * evaluations[0]["eval/perplexity"]
    shown = capsys.readouterr().out
    for words in ("20 of 20 rows kept", "perplexity", "4 held-out examples", "before: ", str(run / "model")):
        assert words in shown


@pytest.mark.parametrize(
    "settings", [pytest.param({}, id="full", marks=pytest.mark.thorough), pytest.param(LORA, id="lora")]
)
def test_resumed_is_bitwise_and_exported_is_the_model(sft, tmp_path, monkeypatch, settings):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(sft(whole, **settings)) == 0
    fold = loop.run

    def cut_short(*arguments, **options):
        for step, yielded in enumerate(fold(*arguments, **options), start=1):
            if step == 3:
                raise KeyboardInterrupt
            yield yielded

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", cut_short)
        assert main(sft(cut, **settings, train__checkpoint_every=1)) == 130
    assert main(sft(cut, **settings, train__checkpoint_every=1)) == 0
    for name in ("metrics.jsonl", "samples.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert same_model(whole / "model", cut / "model")
    target = tmp_path / "exported"
    assert main(["export", "--run", str(whole), "--output", str(target), "--checkpoint", "latest"]) == 0
    assert same_model(target, whole / "model")


def test_adapters_are_all_that_is_trained_and_saved(sft, tiny_model, tmp_path):
    run = tmp_path / "run"
    assert main(sft(run, **LORA)) == 0
    base, params = jaxalign.load_model(tiny_model)
    model, adapters = lora.load(run / "adapter", base)
    assert model.lora.rank == 4
    _, want = lora.merge(model, union(adapters, params))
    _, saved = jaxalign.load_model(run / "model")
    jax.tree.map(np.testing.assert_array_equal, saved, want)
    changed = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree.leaves_with_path(jax.tree.map(np.array_equal, saved, params))
        if not leaf
    }
    assert changed == {f"layers.{name}.kernel" for name in ("attention.q", "attention.v", "mlp.down")}
    size = lambda directory: sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())  # noqa: E731
    full = tmp_path / "full"
    assert main(sft(full)) == 0
    assert size(run / "checkpoints") < 0.8 * size(full / "checkpoints")


def test_mistakes(sft, tiny_model, error_of, tmp_path):
    run = tmp_path / "run"
    assert "train.best is eval/accuracy. Give one of eval/loss, eval/nll, eval/perplexity." in error_of(
        sft(run, train__best="eval/accuracy")
    )
    assert "lora.targets 'nothing' matches none of" in error_of(sft(run, **{"lora.rank": 2, "lora.targets": "nothing"}))
    assert "lora.rank is -1. Give finite numbers, 0 or more." in error_of(sft(run, **{"lora.rank": -1}))
    assert "lora.targets '(' is not a regular expression" in error_of(sft(run, **{"lora.rank": 2, "lora.targets": "("}))
    scorer = tmp_path / "scorer"
    model, params = jaxalign.load_model(tiny_model)
    model, params = from_language_model(model, params, jax.random.key(0))
    jaxalign.save_model(scorer, model, params, jaxalign.load_tokenizer(str(tiny_model)))
    assert "is a reward model. Give a language model." in error_of(
        sft(run, **{"model.path": scorer, "samples.prompts": 0})
    )
    assert not run.exists()


@pytest.mark.parametrize("settings", [{}, LORA], ids=["full", "lora"])
def test_a_run_resumes_with_its_own_inputs_only(sft, demonstrations, tiny_model, error_of, tmp_path, settings):
    model, data, run = tmp_path / "model", tmp_path / "chats.jsonl", tmp_path / "run"
    shutil.copytree(tiny_model, model)
    shutil.copy(demonstrations, data)
    given = sft(run, **{**settings, "model.path": model, "data__path": data})
    assert main(given) == 0
    text = data.read_text()
    data.write_text(text.replace("sure?", "really?"))
    assert "the examples (the data or the tokenizer) changed since it began" in error_of(given)
    data.write_text(text)
    other, params = jaxalign.load_model(model)
    jaxalign.save_model(model, other, jax.tree.map(lambda leaf: leaf * 1.01, params))
    assert "the model changed since it began" in error_of(given)
    if settings:
        export = ["export", "--run", str(run), "--output", str(tmp_path / "out"), "--checkpoint", "latest"]
        assert f"{model} is not the model that {run} began with. Restore it." in error_of(export)
        assert not (tmp_path / "out").exists()


def test_adapters_are_merged_into_the_model_they_are_given_for(sft, tiny_model, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(sft(run, **LORA)) == 0
    capsys.readouterr()
    answers = []
    for flags in (["--model.path", run / "model"], ["--model.path", tiny_model, "--model.adapter", run / "adapter"]):
        assert main(["generate", *map(str, flags), "--prompt", "what is the sky?", "--max_new_tokens", "8"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_whole_texts_are_learned_without_samples(sft, tmp_path):
    run = tmp_path / "run"
    assert main(sft(run, **{"data.loss_on": "all"})) == 0
    assert json.loads((run / "samples.json").read_text())["prompt"] == []
