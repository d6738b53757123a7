"""Every configuration in configs/ runs as it stands, shrunk: a tiny model, a few examples, two steps."""

import json
from pathlib import Path

import pytest
import yaml

from jaxalign.cli import COMMANDS, main
from tests.cli.conftest import pair

ONLINE = ("ppo", "grpo", "online_dpo")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def command_of(config: Path) -> str:
    """The command that the file's heading gives."""
    heading = config.read_text().replace("\\\n#", " ")
    given = f"--{'suite' if config.stem.startswith('suite') else 'config'} configs/{config.name}"
    (line, *_) = [line for line in heading.splitlines() if given in line]
    words = line.removeprefix("#").split()
    return words[words.index("jaxalign") + 1]


@pytest.fixture(scope="session")
def data_for(tmp_path_factory):
    """A small file in the shape that a configuration's own data have."""
    directory = tmp_path_factory.mktemp("data")

    def write(command: str) -> Path:
        rows = [pair(i) for i in range(12)]
        if command == "sft":
            rows = [{"instruction": r["prompt"], "input": "", "output": r["chosen"]} for r in rows]
        if command == "grpo":
            rows = [{"question": r["prompt"], "answer": f"so it is #### {i}"} for i, r in enumerate(rows)]
        file = directory / f"{command}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


@pytest.fixture(scope="session")
def scorer(flags, tmp_path_factory) -> Path:
    """A tiny reward model."""
    run = tmp_path_factory.mktemp("scorer")
    away = {"samples.prompts": None, "samples.max_new_tokens": None}
    assert main(flags(run, "reward", **away, **{"train.steps": 1})) == 0
    return run / "model"


def shrunk_suite(config: Path, tiny_model, data_for, scorer, output) -> list[str]:
    """The suite on files of its own, of a model against itself."""
    suite = yaml.safe_load(config.read_text())
    folder = output.parent
    (folder / "labels.lst").write_text("0\n" * 12)
    (folder / "xstest.csv").write_text("prompt,label\n" + "why?,safe\nhow?,unsafe\n" * 2)
    rows = "".join(json.dumps({"goal": "go", "sol1": "left", "sol2": "right"}) + "\n" for _ in range(12))
    (folder / "piqa.jsonl").write_text(rows)
    suite["perplexity"]["instructions"]["path"] = str(data_for("sft"))
    suite["choices"]["piqa"] |= {"path": str(folder / "piqa.jsonl"), "labels": str(folder / "labels.lst")}
    suite["answers"]["xstest"] |= {"path": str(folder / "xstest.csv"), "max_new_tokens": 4}
    suite["answers"]["hh"] |= {"path": str(data_for("dpo")), "max_new_tokens": 4, "reward": str(scorer)}
    (folder / config.name).write_text(yaml.safe_dump(suite))
    model, file = str(tiny_model), str(folder / config.name)
    return ["eval", "tax", "--before", model, "--after", model, "--suite", file, "--output", str(output)]


def shrunk(config: Path, command: str, tiny_model, data_for, scorer, output) -> list[str]:
    settings = yaml.safe_load(config.read_text())
    if command == "eval":
        return shrunk_suite(config, tiny_model, data_for, scorer, output)
    changes = {"judge.model" if command == "judge" else "model.path": tiny_model, "output": output}
    if "data" in settings:
        changes |= {"data.path": data_for(command), "data.data_dir": "null", "data.limit": "null"}
    if command in ONLINE:
        changes |= {"train.batch_size": 4, "train.iterations": 1, "rollout.max_new_tokens": 4}
        changes |= {"reward.path": scorer} if settings["reward"].get("path") else {}
        changes |= {"data.name": "null"}
    elif "data" in settings and command != "judge":
        changes |= {"data.holdout": 4, "train.batch_size": 4, "train.steps": 2, "optim.warmup_ratio": 0}
    if "samples" in settings:
        changes |= {"samples.prompts": 1, "samples.max_new_tokens": 4}
    if command == "generate":
        changes |= {"max_new_tokens": 4}
        changes |= {"prompts": data_for("dpo")} if settings.get("prompts") else {}
    flags = [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    return [command, "--config", str(config), *flags]


@pytest.mark.thorough
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shrunk_it_runs(config, tiny_model, data_for, scorer, tmp_path):
    command = command_of(config)
    assert main(shrunk(config, command, tiny_model, data_for, scorer, tmp_path / "run")) == 0
    assert (tmp_path / "run").exists() or command == "generate"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_its_heading_says_how_long_and_what_to_expect(config):
    heading = "".join(line for line in config.read_text().splitlines() if line.startswith("#"))
    assert command_of(config) in COMMANDS
    for word in ("minute", "second", "hour"):
        if word in heading:
            break
    else:
        pytest.fail("no run time")
    assert any(word in heading for word in ("Measured", "Expected"))
