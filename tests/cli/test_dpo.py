"""``jaxalign dpo`` from files to files, stopped and resumed; then ``export`` and ``generate`` on what it made."""

import json
import shutil
import signal

import numpy as np
import pytest

import jaxalign
from jaxalign import loop
from jaxalign.cli import main
from jaxalign.tracking import read_jsonl
from tests.cli.conftest import names, same_model


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The output of a run of five steps."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main(flags(output)) == 0
    return output


def check_learned(run):
    lines = read_jsonl(run / "metrics.jsonl")
    training, evaluations = [x for x in lines if "loss" in x], [x for x in lines if "eval/loss" in x]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in evaluations] == [0, 2, 4, 5]
    assert training[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert evaluations[0]["eval/loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert evaluations[-1]["eval/loss"] < 0.5
    assert evaluations[-1]["eval/rewards/accuracies"] == 1
    assert {"rewards/margins", "logps/chosen", "num_tokens", "learning_rate", "grad_norm"} <= set(training[0])


def test_a_run_learns_the_preference_and_leaves_its_files(finished):
    check_learned(finished)
    left = "base checkpoints config.yaml inputs.json metrics.jsonl model reference.npz samples.json timings.jsonl"
    assert names(finished) == left.split()
    assert "5" in names(finished / "checkpoints")
    answered = json.loads((finished / "samples.json").read_text())
    assert {name: len(texts) for name, texts in answered.items()} == {"prompt": 1, "before": 1, "after": 1}
    assert answered["prompt"][0].startswith("what is the ")


def test_a_live_reference_learns_the_same(flags, finished, tmp_path, capsys):
    assert main(flags(tmp_path / "run", method__reference="live")) == 0
    check_learned(tmp_path / "run")
    live, cached = (read_jsonl(run / "metrics.jsonl")[-1] for run in (tmp_path / "run", finished))
    for name, value in cached.items():
        assert live[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    shown = capsys.readouterr().out
    for words in (
        "20 of 20 rows kept",
        "step 5/5  loss",
        "4 held-out examples",
        "before: ",
        "words an answer: ",
        " s a step (median); peak memory: host ",
        str(tmp_path / "run/model"),
    ):
        assert words in shown


class Stopped(Exception):
    pass


@pytest.mark.parametrize(("stop", "every"), [(2, 1), pytest.param(5, 3, marks=pytest.mark.thorough)])
def test_a_resumed_run_is_the_uninterrupted_one(flags, finished, tmp_path, monkeypatch, capsys, stop, every):
    """Dies in step ``stop``, after its last checkpoint."""
    fold = loop.run

    def cut_short(*arguments, **options):
        for step, yielded in enumerate(fold(*arguments, **options), start=1):
            if step == stop:
                raise Stopped
            yield yielded

    cut = tmp_path / "cut"
    arguments = flags(cut, train__checkpoint_every=every)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", cut_short)
        with pytest.raises(Stopped):
            main(arguments)
    assert not (cut / "model").exists()
    capsys.readouterr()
    assert main(arguments) == 0
    assert f"resuming after step {stop - 1}" in capsys.readouterr().out
    for name in ("metrics.jsonl", "samples.json"):
        assert (finished / name).read_bytes() == (cut / name).read_bytes()
    assert same_model(finished / "model", cut / "model")


def test_ctrl_c_ends_the_step_and_the_same_command_resumes(flags, finished, tmp_path, monkeypatch, capsys):
    """With the default settings: no checkpoint would be due yet."""
    fold = loop.run

    def with_ctrl_c(*arguments, **options):
        for step, yielded in enumerate(fold(*arguments, **options), start=1):
            if step == 3:
                signal.raise_signal(signal.SIGINT)
            yield yielded

    before = signal.getsignal(signal.SIGINT)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", with_ctrl_c)
        assert main(flags(run)) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err == "jaxalign: interrupted; rerun to resume after step 3.\n"
    assert main(flags(run)) == 0
    for name in ("metrics.jsonl", "samples.json"):
        assert (finished / name).read_bytes() == (run / name).read_bytes()
    assert same_model(finished / "model", run / "model")


def test_ctrl_c_before_the_first_step_promises_nothing(flags, tmp_path, monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "run", stop)
    assert main(flags(tmp_path / "run")) == 130
    assert capsys.readouterr().err == "jaxalign: interrupted.\n"


@pytest.fixture
def stopped(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and so on"])
def test_a_lost_reference_is_computed_again(flags, finished, stopped, content, capsys):
    before = np.load(finished / "reference.npz")
    (stopped / "reference.npz").unlink()
    if content is not None:
        (stopped / "reference.npz").write_bytes(content)
    (stopped / "samples.json").write_text("{")
    assert main(flags(stopped)) == 0
    assert "reference.npz is missing or damaged. It is computed again." in capsys.readouterr().out
    with np.load(stopped / "reference.npz") as after:
        assert all(np.array_equal(before[name], after[name]) for name in ("train", "held"))
    assert (stopped / "samples.json").read_bytes() == (finished / "samples.json").read_bytes()


def test_a_run_does_not_resume_with_other_data_or_samples(flags, stopped, tmp_path, pairs_file, error_of):
    file = tmp_path / "pairs.jsonl"
    shutil.copy(pairs_file, file)
    run = tmp_path / "new"
    assert main(flags(run, data__path=file, train__steps=1)) == 0
    file.write_text(file.read_text().replace("blue", "azure"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "the examples (the data or the tokenizer) changed since it began" in error_of(
        flags(run, data__path=file, train__steps=1)
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert "other settings: samples.prompts (was 1, now 2)" in error_of(flags(stopped, samples__prompts=2))


def test_a_finished_run_stays_as_it_is_and_other_settings_are_refused(flags, finished, error_of, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = (run / "metrics.jsonl").read_bytes()
    assert main(flags(run, log__every=2)) == 0
    assert (run / "metrics.jsonl").read_bytes() == before
    message = error_of(flags(run, optim__learning_rate=0.1))
    assert "contains a run with other settings: optim.learning_rate (was 0.01, now 0.1)." in message
    assert "already contains a run" in error_of(flags(run, train__resume="never"))
    assert (run / "metrics.jsonl").read_bytes() == before


def test_export_writes_the_best_the_latest_or_a_given_checkpoint(flags, error_of, tmp_path, capsys):
    # Rejected answers become ever less likely: the best checkpoint by this measure is the first.
    run = tmp_path / "run"
    best_by = {"train__best": "eval/logps/rejected", "train__best_mode": "max", "train__eval_every": 1}
    assert main(flags(run, **best_by)) == 0
    scores = {line["step"]: line.get("eval/logps/rejected", -np.inf) for line in read_jsonl(run / "metrics.jsonl")}
    best = max(range(1, 6), key=scores.__getitem__)
    assert best < 5
    assert names(run / "checkpoints") == [str(best), "5"]
    for which, step in (("best", best), ("latest", 5), (str(best), best)):
        target = tmp_path / f"export-{which}"
        assert main(["export", "--run", str(run), "--output", str(target), "--checkpoint", which]) == 0
        assert f"step {step}, eval/logps/rejected {scores[step]:.4f}" in capsys.readouterr().out
        assert same_model(target, run / "model") == (step == 5)
        assert jaxalign.load_tokenizer(target).chat_template
    assert "contains no checkpoint of step 77" in error_of(
        ["export", "--run", str(run), "--output", "x", "--checkpoint", "77"]
    )
    assert "does not contain a run" in error_of(["export", "--run", str(tmp_path), "--output", "x"])


def test_generate_answers_a_prompt_or_a_file(tiny_model, pairs_file, error_of, tmp_path, capsys):
    few = ["generate", "--model.path", str(tiny_model), "--max_new_tokens", "5"]
    once, again = [], []
    for shown in (once, again):
        assert main([*few, "--prompt", "what is it?"]) == 0
        shown.append(capsys.readouterr().out)
    assert once == again
    out = tmp_path / "new" / "answers.jsonl"
    assert main([*few, "--prompts", str(pairs_file), "--output", str(out), "--batch_size", "20"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 20
    assert rows[3]["prompt"] == "what is the sky 3?"
    assert len({row["completion"] for row in rows}) > 1
    capsys.readouterr()
    assert error_of(few) == "Give either --prompt TEXT or --prompts FILE."
    for given, read in {"-1": "-1.0", ".inf": "inf", ".nan": "nan"}.items():
        words = f"temperature must be a finite number, 0 or more, it is {read}."
        assert error_of([*few, "--prompt", "x", "--temperature", given]) == words
    assert "output is the directory" in error_of([*few, "--prompt", "x", "--output", str(tmp_path)])


@pytest.mark.parametrize("unset", ["data.holdout", "samples.prompts"])
def test_evaluation_and_samples_can_be_left_out(flags, tmp_path, unset):
    assert main(flags(tmp_path / "run", **{unset: 0})) == 0
    assert (tmp_path / "run" / "model" / "config.json").exists()
