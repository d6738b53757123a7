"""jaxalign advise: what a file allows, what methods need, and which method is recommended."""

import json

import jax
import pytest

import jaxalign
from jaxalign.advice import METHOD_COSTS, advise, count_parameters, memory_bytes
from jaxalign.cli import main
from jaxalign.loop import init_state
from jaxalign.models.weights import read_config
from jaxalign.optim import OptimConfig, make_optimizer

PAIR = {"prompt": "why?", "chosen": "air", "rejected": "no idea at all"}
FILES = {
    "pairs": ([PAIR], "Start with jaxalign dpo"),
    "thumbs": ([{"prompt": "why?", "completion": "air", "label": True}], "Start with jaxalign kto"),
    "rankings": ([{"prompt": "why?", "completions": ["air", "dust", "no"]}], "Start with jaxalign reward"),
    "sums": ([{"prompt": "1 + 1?", "answer": "it is #### 2"}], "Start with jaxalign grpo"),
    "demonstrations": ([{"prompt": "why?", "completion": "air"}], "Start with jaxalign sft"),
    "prompts": ([{"prompt": "why?"}], "These are prompts only"),
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_the_first_sentence_names_the_method_for_the_data(name, tiny_model, tmp_path, capsys):
    rows, words = FILES[name]
    assert main(["advise", "--data", write(tmp_path / "rows.jsonl", rows), "--model", str(tiny_model)]) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("•"))
    assert words in first


def test_a_judge_makes_prompts_enough(tiny_model, tmp_path, capsys):
    file = write(tmp_path / "rows.jsonl", [{"prompt": "why?"}])
    assert main(["advise", "--data", file, "--model", str(tiny_model), "--judge", "true"]) == 0
    assert "Start with jaxalign judge on sampled answers, then dpo" in capsys.readouterr().out


def test_pairs_are_described(tiny_model, tmp_path, capsys):
    rows = [PAIR | {"chosen": "because of the air up there"}]
    file = write(tmp_path / "rows.jsonl", rows)
    assert main(["advise", "--data", file, "--model", str(tiny_model), "--memory", "0.01"]) == 0
    text = capsys.readouterr().out
    for words in (
        "3 pairs, 1 different prompts",
        "2 records repeat an earlier one",
        "3 examples are few",
        "In 100 % of pairs",
    ):
        assert words in text


def test_advice_is_a_library_call(tiny_model):
    report = advise([PAIR], read_config(tiny_model), memory=1.0)
    assert report.inspection.kind == "preference"
    assert report.sentences[0].startswith("Start with jaxalign dpo")
    assert [need.cost for need in report.needs] == list(METHOD_COSTS)
    assert report.memory == 2**30


def test_bytes_are_those_of_a_run(tiny_model):
    """Parameters, a gradient and Adam's moments of the state that a command makes, and the count of adapters."""
    config = read_config(tiny_model)
    _, params = jaxalign.load_model(tiny_model)
    optimizer, _ = make_optimizer(OptimConfig(learning_rate=1e-3), 10)
    state = init_state(params, optimizer, jax.random.key(0))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)) if leaf.ndim)
    gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    sft = next(cost for cost in METHOD_COSTS if cost.method == "sft")
    assert memory_bytes(sft, count_parameters(config)) == held + gradient
    # Rank 2: every projection [in, out] gets 2 (in + out) numbers more.
    kernels = [leaf.shape[-2:] for path, leaf in jax.tree.leaves_with_path(params["layers"]) if leaf.ndim == 3]
    more = count_parameters(config, 2) - count_parameters(config)
    assert more == sum(2 * sum(shape) for shape in kernels) * config.num_hidden_layers


def test_mistakes_are_reported(tiny_model, tmp_path, error_of):
    file = write(tmp_path / "rows.jsonl", [PAIR])
    assert "missing.jsonl" in error_of(["advise", "--data", "missing.jsonl", "--model", str(tiny_model)])
    assert "nowhere" in error_of(["advise", "--data", file, "--model", "./nowhere"])
    assert "memory is 0" in error_of(["advise", "--data", file, "--model", str(tiny_model), "--memory", "0"])
