"""``jaxalign kto``: labels, pairs, logs and OpenAssistant's trees in; a trained model out; resume and LoRA."""

import json

import numpy as np
import pytest

from jaxalign import loop
from jaxalign.cli import main
from jaxalign.stats import separation
from jaxalign.tracking import read_jsonl
from tests.cli.conftest import names, pair, same_model


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """The output of a run of five steps on pairs, which it takes apart."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert main(flags(output, "kto", optim__learning_rate=3e-2)) == 0
    return output


def test_pairs_are_split_and_the_run_separates_liked_from_other_answers(finished):
    lines = read_jsonl(finished / "metrics.jsonl")
    training, evaluations = [x for x in lines if "loss" in x], [x for x in lines if "eval/loss" in x]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in evaluations] == [0, 2, 4, 5]
    # Policy and reference agree at first: every term is half its weight, and the weights are 1 (as many of each kind).
    assert training[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert evaluations[0]["eval/loss"] == pytest.approx(0.5, abs=1e-6)
    assert evaluations[-1]["eval/loss"] < 0.45
    assert evaluations[0]["eval/rewards/margins"] == 0 < evaluations[-1]["eval/rewards/margins"]
    assert {"kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "num_tokens", "grad_norm"} <= set(training[0])
    content = json.loads((finished / "separation.json").read_text())
    assert (content["liked"], content["others"], content["prompts"]) == (2, 2, 2), "pairs keep together in the split"
    assert content["auc"] == 1
    left = "base checkpoints config.yaml inputs.json metrics.jsonl model samples.json separation.json timings.jsonl"
    assert names(finished) == left.split()


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="kto"),
        pytest.param({"method__loss": "bco", "method__reference": "cached"}, id="bco", marks=pytest.mark.thorough),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(flags, finished, tmp_path, monkeypatch, changes):
    fold = loop.run

    def cut_short(*arguments, **options):
        for step, yielded in enumerate(fold(*arguments, **options), start=1):
            if step == 3:
                raise Stopped
            yield yielded

    changes = {"optim__learning_rate": 3e-2, "train__checkpoint_every": 1, **changes}
    whole = finished
    if "method__loss" in changes:
        whole = tmp_path / "whole"
        assert main(flags(whole, "kto", **changes)) == 0
        assert read_jsonl(whole / "metrics.jsonl")[-1]["eval/delta"] != 0
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", cut_short)
        with pytest.raises(Stopped):
            main(flags(cut, "kto", **changes))
    assert main(flags(cut, "kto", **changes)) == 0
    for name in ("metrics.jsonl", "samples.json", "separation.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert same_model(whole / "model", cut / "model")


def test_a_product_log_is_read_through_its_signals(flags, tmp_path, capsys, error_of):
    """12 short answers voted up, 4 long ones voted down, one row without votes, one with as many of each."""
    rows = []
    for i in range(16):
        answer = pair(i)["rejected" if i % 4 == 0 else "chosen"]
        rows.append({"question": pair(i)["prompt"], "reply": answer, "up": int(i % 4 > 0), "down": 2 * int(i % 4 == 0)})
    rows += [{**rows[0], "question": "what else?", "up": n, "down": n} for n in (0, 3)]
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = {"data__path": file, "data__columns": '{"prompt": "question", "completion": "reply"}'}
    votes = {"data__signals__up": "up", "data__signals__down": "down"}
    assert main(flags(tmp_path / "run", "kto", train__steps=2, **log, **votes)) == 0
    shown = capsys.readouterr().out
    assert "16 of 18 rows kept (2 without a signal)" in shown
    liked, others = (sum(w) for w in zip(*[(r["up"] > 0, r["down"] > 0) for r in rows[:16]], strict=True))
    assert (liked, others) == (12, 4)
    # 12 are trained on. The smaller kind is weighted up to the upper end of the bound.
    assert "a ratio of 1.33 (1 to 1.33 is advised)" in shown
    assert "need completion and label" in error_of(flags(tmp_path / "r", "kto", **log))
    assert "field 'likes' of signals does not occur in any row" in error_of(
        flags(tmp_path / "r", "kto", **log, data__signals__up="likes")
    )


def test_votes_of_openassistant_trees(flags, tmp_path, capsys):
    def answer(text, up, down):
        return {"text": text, "role": "assistant", "emojis": {"+1": up, "-1": down}}

    trees = [
        {
            "prompt": {
                "text": f"why {i}?",
                "role": "prompter",
                "replies": [answer("so", 2, 0), answer("or not so", 0, 1)],
            }
        }
        for i in range(8)
    ]
    file = tmp_path / "trees.jsonl"
    file.write_text("".join(json.dumps(tree) + "\n" for tree in trees))
    run = tmp_path / "run"
    assert (
        main(flags(run, "kto", data__path=file, data__limit=16, train__steps=1, method__loss="apo_zero_unpaired")) == 0
    )
    assert "12 examples" in capsys.readouterr().out
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(0.5, abs=1e-6)


def test_what_was_cut_and_a_kind_that_is_not_there_are_metrics(flags, tmp_path, capsys):
    file = tmp_path / "thumbs.jsonl"
    rows = [{"prompt": f"why {i}?", "completion": "so " * 30, "label": i < 6} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    run = tmp_path / "run"
    settings = {"data__path": file, "data__eval_path": held, "data__max_length": 40, "train__steps": 1}
    assert main(flags(run, "kto", **settings)) == 0
    lines = read_jsonl(run / "metrics.jsonl")
    (counts,) = (line for line in lines if "data/training/examples" in line)
    assert (counts["step"], counts["data/training/examples"], counts["data/held_out/examples"]) == (0, 8, 3)
    assert (counts["data/training/completions_truncated"], counts["data/held_out/completions_truncated"]) == (8, 3)
    evaluations = [line for line in lines if "eval/loss" in line]
    assert all(line["eval/rewards/rejected"] is line["eval/rewards/margins"] is None for line in evaluations)
    assert all(line["eval/rewards/chosen"] is not None for line in evaluations)
    assert "held-out answers: all 3 are liked, so the AUC is undefined" in capsys.readouterr().out
    assert not (run / "separation.json").exists()


def test_adapters_are_held_to_their_base(flags, tmp_path):
    run = tmp_path / "run"
    assert main(flags(run, "kto", lora__rank=4, optim__learning_rate=0.1)) == 0
    assert "adapter" in names(run)
    lines = [x for x in read_jsonl(run / "metrics.jsonl") if "eval/loss" in x]
    assert lines[0]["eval/loss"] == pytest.approx(0.5, abs=1e-6)
    assert lines[-1]["eval/rewards/margins"] > 0


def test_data_that_cannot_be_learned_from_are_refused(flags, tmp_path, error_of):
    file = tmp_path / "liked.jsonl"
    rows = [{"prompt": f"why {i}?", "completion": "so", "label": True} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "All 4 training examples are liked. Give answers of both kinds" in error_of(
        flags(tmp_path / "r", "kto", data__path=file)
    )
    rows = [{"prompt": "why?", "completion": f"so {i}", "label": i % 2 == 0} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = {"data__path": file, "data__holdout": 0}
    assert "All training examples share one prompt" in error_of(flags(tmp_path / "r", "kto", **alone))
    assert "is set. Set both, or neither" in error_of(flags(tmp_path / "r", "kto", method__desirable_weight=1))
    assert "eval/kl" in error_of(flags(tmp_path / "r", "kto", train__best="eval/rewards/accuracies"))
    assert not (tmp_path / "r" / "model").exists()


def test_area_under_the_curve_is_that_of_all_pairs():
    random = np.random.default_rng(0)
    scores = np.round(random.normal(size=60), 1)  # with ties
    liked = random.random(60) < 0.3
    prompts = [int(i) for i in random.integers(0, 25, 60)]
    up, down = scores[liked][:, None], scores[~liked][None]
    want = np.mean((up > down) + 0.5 * (up == down))
    result = separation(scores.tolist(), liked.tolist(), prompts)
    assert result.auc == pytest.approx(want, abs=1e-12)
    assert result.auc_ci[0] < want < result.auc_ci[1]
    assert (result.liked, result.others, result.prompts) == (liked.sum(), (~liked).sum(), len(set(prompts)))
    assert np.isnan(separation([1.0, 2.0], [True, True], [0, 1]).auc)


@pytest.mark.thorough
def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Liked N(1, 1) against N(0, 1): Φ(1/√2) = 0.760. 200 data sets; 95% of them ± 3 standard errors."""
    random = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        liked = np.arange(80) % 2 == 0
        result = separation((random.normal(size=80) + liked).tolist(), liked.tolist(), list(range(80)), seed)
        covered += result.auc_ci[0] <= 0.76025 <= result.auc_ci[1]
    assert 0.90 <= covered / 200 <= 0.995
