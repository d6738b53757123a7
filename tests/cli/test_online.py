"""``jaxalign ppo``, ``grpo`` and ``online_dpo`` from files to files, with rewards of both kinds; stopped, resumed."""

import json
import sys

import jax
import pytest

import jaxalign
from jaxalign.cli import main
from jaxalign.recipes.online_config import ScoreSection
from jaxalign.recipes.scorers import shared_reward_model, size_of
from jaxalign.tracking import read_jsonl
from tests.cli.conftest import names, same_model

REWARDS = """
import os, signal
asked = 0
stop_at = None

def brief(prompts, completions, rows):
    global asked
    asked += 1
    if asked == stop_at:
        os.kill(os.getpid(), signal.SIGINT)
    assert all(row["prompt"] for row in rows)
    return [1 - len(text) / 6 + sum(text.encode()) % 7 / 100 for text in completions]

def broken(prompts, completions, rows):
    return [float("nan")] * len(completions)
"""


@pytest.fixture
def online(flags, tmp_path, monkeypatch):
    (tmp_path / "brief_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "brief_rewards", raising=False)

    def build(output, command, **changes):
        gone = dict.fromkeys(("data.holdout", "train.steps", "train.row_lengths", "train.eval_every"))
        settings = {
            "train.batch_size": 4,
            "train.iterations": 3,
            "train.checkpoint_every": 1,
            "rollout.max_new_tokens": 5,
            "reward.functions": '{"brief_rewards:brief": 1.0}',
            "optim.learning_rate": 3e-3,
        }
        return flags(output, command, **(gone | settings | changes))

    return build


RUNS = [
    ("ppo", {"kl.target": 1.0, "reward.normalise": "standardise", "train.epochs": 2, "train.minibatches": 2}),
    ("ppo", {"method.value": "trunk", "lora.rank": 2, "rollout.chunk": 2}),
    ("grpo", {"method.samples": 3, "reference.hold": "host", "reward.missing_eos_penalty": 0.5}),
    ("grpo", {"method.samples": 2, "method.algorithm": "dapo", "rollout.rounds": 2}),
    ("online_dpo", {"reference.refresh": "average"}),
]


@pytest.mark.parametrize(
    ("command", "changes"),
    [pytest.param(*case, marks=() if number == 0 else pytest.mark.thorough) for number, case in enumerate(RUNS)],
)
def test_a_run_and_the_same_stopped_and_resumed(online, tmp_path, capsys, command, changes):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main(online(whole, command, **changes)) == 0
    shown = capsys.readouterr().out
    for words in ("MiB in memory", "optimiser", "an iteration, by phase (median): generate", str(whole / "model")):
        assert words in shown
    lines = read_jsonl(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"loss", "objective/scores", "completions/truncated", "num_tokens", "learning_rate"} <= set(lines[0])
    assert {"generate", "score", "prepare", "update"} <= set(read_jsonl(whole / "phases.jsonl")[0])
    jaxalign.load_model(whole / "model")

    import brief_rewards

    brief_rewards.asked, brief_rewards.stop_at = 0, 1
    assert main(online(halves, command, **changes)) == 130
    assert [line["step"] for line in read_jsonl(halves / "metrics.jsonl")] == [1]
    brief_rewards.stop_at = None
    assert main(online(halves, command, **changes)) == 0
    assert "resuming after iteration 1" in capsys.readouterr().out
    assert read_jsonl(halves / "metrics.jsonl") == lines
    assert same_model(whole / "model", halves / "model")
    assert main(["export", "--run", str(halves), "--output", str(tmp_path / "exported")]) == 0
    assert same_model(tmp_path / "exported", halves / "model")
    assert (whole / "samples.json").read_text() == (halves / "samples.json").read_text()


def test_a_reward_model_and_a_function_weighted(flags, online, tmp_path):
    scorer = tmp_path / "scorer"
    made = flags(scorer, "reward", **{"samples.prompts": None, "samples.max_new_tokens": None, "train.steps": 1})
    assert main(made) == 0
    changes = {"reward.path": scorer / "model", "reward.weight": 0.25, "reward.hold": "host", "train.iterations": 1}
    assert main(online(tmp_path / "run", "ppo", **changes)) == 0
    (line,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    mixed = 0.25 * line["rewards/model"] + line["rewards/brief_rewards:brief"]
    assert line["objective/scores"] == pytest.approx(mixed, rel=1e-5)


@pytest.mark.thorough
def test_a_reward_model_on_the_policys_base(flags, online, tiny_model, tmp_path):
    """Adapters and heads on the base give the scores of the model that they were merged into, with fewer bytes."""
    scorer = tmp_path / "scorer"
    away = {"samples.prompts": None, "samples.max_new_tokens": None}
    assert main(flags(scorer, "reward", **away, **{"train.steps": 2, "lora.rank": 2})) == 0
    lines = {}
    for name, where in {"path": scorer / "model", "adapter": scorer / "adapter"}.items():
        changes = {f"reward.{name}": where, "reward.functions": None, "lora.rank": 2, "train.iterations": 2}
        assert main(online(tmp_path / name, "ppo", **changes)) == 0
        lines[name] = read_jsonl(tmp_path / name / "metrics.jsonl")
    assert lines["adapter"][0]["objective/scores"] == pytest.approx(lines["path"][0]["objective/scores"], rel=1e-4)
    assert lines["adapter"][1]["objective/scores"] == pytest.approx(lines["path"][1]["objective/scores"], rel=1e-2)
    base, params = jaxalign.load_model(tiny_model)
    _, whole, own = shared_reward_model(ScoreSection(adapter=str(scorer / "adapter")), base, params)
    shared = {id(leaf) for leaf in jax.tree.leaves(params)}
    own_leaves = [leaf for leaf in jax.tree.leaves(whole) if id(leaf) not in shared]
    assert sum(leaf.nbytes for leaf in own_leaves) == size_of(own) < size_of(params) / 4


def test_mistakes(online, error_of, tmp_path, tiny_model):
    run = tmp_path / "run"
    assert "Nothing is rewarded" in error_of(online(run, "ppo", **{"reward.functions": None}))
    assert "is not a reward model" in error_of(online(run, "ppo", **{"reward.path": tiny_model}))
    assert "Set lora.rank" in error_of(online(run, "ppo", **{"reward.adapter": tmp_path}))
    assert "adapter_model.safetensors cannot be read" in error_of(
        online(run, "ppo", **{"reward.adapter": tmp_path, "lora.rank": 2})
    )
    assert "method.samples is 1" in error_of(online(run, "grpo", **{"method.samples": 1}))
    assert "'no_such' is not number_match" in error_of(online(run, "ppo", **{"reward.functions": '{"no_such": 1.0}'}))
    assert "small steps" in error_of(
        online(run, "ppo", **{"reference.refresh": "average", "reference.hold": "bfloat16"})
    )
    assert "row 1" in error_of(online(run, "grpo", **{"reward.functions": '{"brief_rewards:broken": 1.0}'}))
    words = error_of(online(tmp_path / "far", "grpo", **{"train.stop_entropy": 100.0}))
    assert "less than 100: it has collapsed" in words
    assert json.loads((tmp_path / "far" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
    assert "checkpoints" in names(tmp_path / "far")


@pytest.mark.thorough
@pytest.mark.parametrize("command", ["ppo", "grpo"])
def test_a_budget_of_capability_keeps_the_last_iteration_within_it(online, tmp_path, capsys, command):
    """Steps so large that a text gets unlikely in the end."""
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "the sky is blue"}) + "\n")
    settings = {
        "optim.learning_rate": 3e-1,
        "optim.schedule": "constant",
        "train.stop_entropy": 0,
        "train.stop_kl": 1e6,
    }
    suite = json.dumps({"texts": {"path": "texts.jsonl"}})

    def run(name, allowed, **changes):
        limits = {"budget.max_tax": json.dumps({"texts/perplexity": allowed}), "budget.suite.perplexity": suite}
        assert main(online(tmp_path / name, command, **settings, **limits, **{"budget.every": 1}, **changes)) == 0
        lines = read_jsonl(tmp_path / name / "metrics.jsonl")
        return [line["budget/texts/perplexity"] for line in lines if "budget/texts/perplexity" in line]

    assert main(online(tmp_path / "plain", command, **settings)) == 0
    figures = run("wide", 1e9)
    assert same_model(tmp_path / "plain" / "model", tmp_path / "wide" / "model")
    assert len(figures) == 4
    assert max(figures[:3]) < figures[3]
    assert run("tight", (max(figures[:3]) + figures[3]) / 2 - figures[0]) == figures
    output = " ".join(capsys.readouterr().out.split())
    assert "after iteration 3: worse by" in output
    assert "The model of iteration 2 is the result." in output
    assert run("two", 1e9, **{"train.iterations": 2}) == figures[:3]
    assert same_model(tmp_path / "tight" / "model", tmp_path / "two" / "model")
