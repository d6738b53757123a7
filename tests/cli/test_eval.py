"""jaxalign eval and eval tax: every task on tiny models, the files that they write, and mistakes."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest
import yaml

import jaxalign
from jaxalign import evals
from jaxalign.cli import main
from jaxalign.data.trees import Tree
from jaxalign.evals import Subject, TaskAnswers
from jaxalign.evals import suite as suite_module
from jaxalign.evals.config import AnswerTask, SuiteSection
from jaxalign.evals.suite import sample_answers
from jaxalign.evals.suite_tax import compare_answers, wins_over
from jaxalign.methods.scoring import tree_logps, tree_scores
from jaxalign.models.weights import save_model
from tests.cli.conftest import pair


@pytest.fixture(scope="module")
def other_model(tiny_model, tmp_path_factory):
    """The tiny model with its parameters moved a little."""
    model, params = jaxalign.load_model(tiny_model)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    directory = tmp_path_factory.mktemp("other")
    save_model(directory, model, tree.unflatten(moved), jaxalign.load_tokenizer(tiny_model))
    return directory


@pytest.fixture(scope="module")
def reward_model(flags, tmp_path_factory):
    run = tmp_path_factory.mktemp("reward")
    away = {"samples.prompts": None, "samples.max_new_tokens": None}
    assert main(flags(run, "reward", **away, **{"train.steps": 1})) == 0
    return run / "model"


@pytest.fixture(scope="module")
def suite(tmp_path_factory, reward_model):
    """A suite of every kind of task on small files."""
    folder = tmp_path_factory.mktemp("suite")
    rows = [pair(i) for i in range(9)]

    def write(name, lines):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(folder / name)

    with (folder / "xstest.csv").open("w") as file:
        writer = csv.DictWriter(file, ["prompt", "label"])
        writer.writeheader()
        writer.writerows({"prompt": row["prompt"], "label": ("safe", "unsafe")[i % 2]} for i, row in enumerate(rows))
    (folder / "labels.lst").write_text("0\n1\n" * 5)
    settings = {
        "suite": {
            "perplexity": {
                "text": {"path": write("text.jsonl", [{"text": "the sky is " + r["chosen"]} for r in rows])}
            },
            "choices": {
                "piqa": {
                    "path": write(
                        "piqa.jsonl", [{"goal": "colour?", "sol1": "blue", "sol2": f"no {i}"} for i in range(9)]
                    ),
                    "labels": str(folder / "labels.lst"),
                    "limit": 8,
                },
                "blimp": {"path": write("blimp.jsonl", [{"sentence_good": "It is.", "sentence_bad": "It are."}] * 3)},
            },
            "answers": {
                "xstest": {"path": str(folder / "xstest.csv"), "safe": "label", "max_new_tokens": 4},
                "sums": {
                    "path": write("sums.jsonl", [{"question": "1 + 1?", "answer": "2"}] * 3),
                    "score": "number_match",
                    "max_new_tokens": 3,
                    "temperature": 0.0,
                },
                "pairs": {"path": write("pairs.jsonl", rows), "max_new_tokens": 5, "reward": str(reward_model)},
            },
            "capabilities": ["piqa/accuracy", "text/perplexity"],
            "gains": ["pairs/reward", "pairs/kl"],
        }
    }
    file = folder / "suite.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


FIGURES = {
    *("text/perplexity", "piqa/accuracy", "piqa/accuracy_per_byte", "blimp/accuracy", "blimp/accuracy_per_byte"),
    *("piqa/brier", "blimp/brier", "xstest/entropy_per_token", "pairs/entropy_per_token"),
    *("xstest/words", "xstest/distinct_2", "xstest/over_refusal", "xstest/unsafe_answered"),
    *("sums/words", "sums/distinct_2", "sums/score", "pairs/words", "pairs/distinct_2", "pairs/reward"),
}
OF_TWO = {"xstest/kl", "xstest/kl_per_token", "pairs/kl", "pairs/kl_per_token", "pairs/win_rate"}


def test_eval_writes_every_figure(tiny_model, suite, tmp_path, capsys):
    run = ["eval", "--config", str(suite), "--model.path", str(tiny_model), "--output", str(tmp_path / "out")]
    assert main([*run, "--resamples", "200"]) == 0
    figures = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert set(figures) == FIGURES
    assert figures["piqa/accuracy"]["items"] == 8
    assert figures["xstest/over_refusal"]["items"] == 5
    for estimate in figures.values():
        assert estimate["ci"][0] <= estimate["value"] <= estimate["ci"][1]
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 9 + 3 + 9
    assert ["answer_reward" in row for row in rows] == [row["task"] == "pairs" for row in rows]
    assert "piqa/accuracy_per_byte" in capsys.readouterr().out


def test_tax_of_a_model_and_another(tiny_model, other_model, suite, tmp_path, capsys):
    run = ["eval", "tax", "--config", str(suite), "--before", str(tiny_model), "--after", str(other_model)]
    assert main([*run, "--output", str(tmp_path), "--resamples", "200"]) == 0
    report = json.loads((tmp_path / "tax.json").read_text())
    assert set(report["differences"]) == FIGURES | OF_TWO
    kl = report["differences"]["pairs/kl"]
    assert kl["before"] == 0 < kl["after"]
    controlled = report["length_controlled_win_rate"]["pairs"]
    assert 0 <= controlled["ci"][0] <= controlled["value"] <= controlled["ci"][1] <= 1
    assert len(report["exchange"]) == 4
    assert (tmp_path / "tax.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    (judged, *_) = [row for row in rows if row["task"] == "pairs"]
    assert {"task", "prompt", "before", "after", "before_reward", "after_reward"} == set(judged)
    assert "after minus before" in capsys.readouterr().out


def test_a_model_has_no_tax_from_itself(tiny_model, suite, tmp_path):
    run = ["eval", "tax", "--config", str(suite), "--before", str(tiny_model), "--after", str(tiny_model)]
    assert main([*run, "--output", str(tmp_path), "--resamples", "200", "--picture", "false"]) == 0
    report = json.loads((tmp_path / "tax.json").read_text())
    for change in report["differences"].values():
        assert (change["change"], change["significant"]) == (0, False)
    assert report["differences"]["pairs/win_rate"]["after"] == 0.5
    assert report["length_controlled_win_rate"]["pairs"]["value"] == 0.5
    assert [exchange["rate"] for exchange in report["exchange"]] == [None] * 4
    assert not (tmp_path / "tax.png").exists()


def test_kl_is_that_of_the_tokens_sampled(tiny_model, other_model):
    """The estimate over 400 short answers against the sum over all of them that are possible, of two tokens."""
    subjects = []
    for path in (tiny_model, other_model):
        model, params = jaxalign.load_model(path)
        subjects.append(Subject(model, params, jaxalign.load_tokenizer(path)))
    before, after = subjects
    task = AnswerTask("-", max_new_tokens=1)
    prompts = [[5, 9, 7]] * 400
    trees = sample_answers(after, prompts, task, seed=0)
    logps = np.concatenate(tree_logps(after.model, after.params, trees))
    answers = {"x": TaskAnswers(trees, [""] * 400, logps=logps)}
    suite = SuiteSection(answers={"x": task})
    _, outcomes = compare_answers(suite, before, answers, answers)
    logits = [np.asarray(s.model.logits(s.params, np.array([[5, 9, 7]])))[0, -1] for s in (after, before)]
    p, q = (x - np.logaddexp.reduce(x) for x in logits)
    estimate = evals.figure(outcomes[0])
    exact = float(np.sum(np.exp(p) * (p - q)))
    assert estimate.ci[0] - 0.01 < exact < estimate.ci[1] + 0.01
    assert exact > 0.01


def test_answers_are_those_of_each_prompt_at_its_place(tiny_model, monkeypatch):
    """Whatever the batch and whichever prompts are in it: of 9 prompts of other lengths, 4 at a time or all at once."""
    model, params = jaxalign.load_model(tiny_model)
    subject = Subject(model, params, jaxalign.load_tokenizer(tiny_model))
    random = np.random.default_rng(0)
    prompts = [random.integers(3, 200, 3 + 7 * i % 20).tolist() for i in range(9)]
    task = AnswerTask("-", max_new_tokens=6)
    whole = sample_answers(subject, prompts, task, seed=3)
    monkeypatch.setattr(suite_module, "BATCH", 4)
    parts = sample_answers(subject, prompts, task, seed=3)
    assert [tree.prompt.tolist() for tree in whole] == prompts
    for one, other in zip(whole, parts, strict=True):
        assert one.completions[0].tolist() == other.completions[0].tolist()
    assert len({tuple(tree.completions[0].tolist()) for tree in whole}) > 1


def test_scores_are_those_of_each_tree_alone(tiny_model, reward_model):
    """Trees of one, two and three completions, in any order: the values are those of separate passes."""
    random = np.random.default_rng(0)
    text = lambda: random.integers(3, 200, random.integers(1, 9))  # noqa: E731
    trees = [Tree.of(text(), [text() for _ in range(1 + i % 3)]) for i in range(7)]
    model, params = jaxalign.load_model(tiny_model)
    scorer, weights = jaxalign.load_model(reward_model)
    logps, scores = tree_logps(model, params, trees), tree_scores(scorer, weights, trees)
    for tree, logp, score in zip(trees, logps, scores, strict=True):
        for k, completion in enumerate(tree.completions):
            alone = Tree.of(tree.prompt, [completion])
            assert tree_scores(scorer, weights, [alone])[0][0] == pytest.approx(score[k], abs=1e-4)
            length = len(tree.prompt) + len(completion)
            tokens = np.zeros((1, 24), np.int32)
            tokens[0, :length] = np.concatenate([tree.prompt, completion])
            logits = np.asarray(model.logits(params, tokens, np.arange(24)[None] < length), np.float64)[0]
            table = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
            at = np.arange(len(tree.prompt), length)
            assert logp[k] == pytest.approx(table[at - 1, tokens[0, at]].sum(), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choices": {}, "perplexity": {}, "answers": {}, "capabilities": [], "gains": []}, "The suite has no tasks"),
        ({"gains": ["joy/reward"]}, "unknown figure joy/reward. Choose among text/perplexity, blimp/accuracy"),
        ({"gains": ["sums/kl"]}, "unknown figure sums/kl"),  # not sampled at temperature 1
        ({"choices": {"piqa": {"path": "PAIRS", "limit": 0}}}, "suite.choices.piqa.limit is 0. Give"),
        ({"answers": {"x": {"path": "PAIRS", "temperature": -1}}, "gains": []}, "suite.answers.x.temperature is -1"),
        (
            {"choices": {"piqa": {"path": "BLIMP", "template": "Q:"}}, "answers": {}, "gains": []},
            "template 'Q:' does not contain {prompt}",
        ),
        (
            {"perplexity": {"text": {"path": "PAIRS", "max_length": 4096}}, "answers": {}, "gains": [], "choices": {}}
            | {"capabilities": []},
            "suite.perplexity.text.max_length is 4096, and the model was made for",
        ),
        ({"choices": {"text": {"path": "x"}}}, "text names two tasks"),
        ({"choices": {"piqa": {"path": "missing.jsonl"}}, "answers": {}, "gains": []}, "missing.jsonl"),
        ({"answers": {"x": {"path": "PAIRS", "safe": "label"}}, "gains": []}, "row 1: field 'label' is None"),
        ({"answers": {"x": {"path": "PAIRS", "reward": "MODEL"}}, "gains": []}, "is not a reward model"),
        ({"answers": {"x": {"path": "PAIRS", "score": "beauty"}}, "gains": []}, "'beauty' is not number_match"),
        (
            {"choices": {"c": {"path": "PAIRS"}}, "answers": {}, "gains": [], "capabilities": []},
            "row 1: it has no choices",
        ),
        ({"answers": {"x": {"pth": "PAIRS"}}}, "pth"),
        ({"answers": {"x": {"path": "PAIRS", "max_new_tokens": 5000}}, "gains": []}, "row 1 needs "),
        ({"answers": {"x": {"path": "PAIRS", "score": "number_match"}}, "gains": []}, "field 'answer' is missing"),
        (
            {"choices": {"c": {"path": "BLIMP", "labels": "LABELS"}}, "answers": {}, "gains": [], "capabilities": []},
            "has 10 labels for 3 rows",
        ),
    ],
)
def test_mistakes_are_refused(suite, tiny_model, pairs_file, tmp_path, error_of, change, words):
    settings = yaml.safe_load(suite.read_text())
    settings["suite"] |= change
    blimp = str(suite.parent / "blimp.jsonl")
    text = yaml.safe_dump(settings).replace("PAIRS", str(pairs_file)).replace("MODEL", str(tiny_model))
    text = text.replace("BLIMP", blimp).replace("LABELS", str(suite.parent / "labels.lst"))
    (tmp_path / "suite.yaml").write_text(text)
    assert words in error_of(["eval", "--config", str(tmp_path / "suite.yaml"), "--model.path", str(tiny_model)])


def test_a_reward_model_of_another_tokenizer_is_refused(reward_model, tiny_model, suite, tmp_path, error_of):
    """It would be given ids that mean something else to it."""
    other = tmp_path / "other"
    shutil.copytree(reward_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, second = sorted(words)[-2:]
    words[first], words[second] = words[second], words[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = yaml.safe_load(suite.read_text())
    settings["suite"]["answers"]["pairs"]["reward"] = str(other)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(settings["suite"]))
    printed = error_of(["eval", "--suite", str(tmp_path / "suite.yaml"), "--model.path", str(tiny_model)])
    assert "other and the model that it scores have different tokenizers" in printed


def test_equal_answers_tie_whatever_their_neighbours():
    """Their scores differ by rounding because other answers share their rows."""
    one, two, three = (Tree.of([5, 6], [[7, last]]) for last in (8, 9, 10))
    old = TaskAnswers([one, one, two], ["a", "a", "b"], np.array([1.0, 1.0, 0.0]))
    new = TaskAnswers([one, three, three], ["a", "c", "c"], np.array([1.0 + 1e-6, 2.0, -1.0]))
    assert wins_over(old, new).tolist() == [0.5, 1.0, 0.0]
    assert wins_over(old, new._replace(rewards=None)) is None


def test_models_with_different_chat_templates_are_not_compared(tiny_model, suite, tmp_path, error_of):
    """They would be asked different texts: the same parameters would have a tax."""
    model, params = jaxalign.load_model(tiny_model)
    tokenizer = jaxalign.load_tokenizer(tiny_model)
    tokenizer.chat_template = None
    save_model(tmp_path / "base", model, params, tokenizer)
    run = ["eval", "tax", "--config", str(suite), "--before", str(tmp_path / "base"), "--after", str(tiny_model)]
    assert "have different chat templates" in error_of([*run, "--output", str(tmp_path / "out")])


def test_names_are_shown_as_they_are_written(tiny_model, suite, tmp_path, capsys):
    blimp = str(suite.parent / "blimp.jsonl")
    given = {"choices": {"blimp[val]": {"path": blimp}, "blimp[/x]": {"path": blimp}}}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(given))
    assert main(["eval", "--suite", str(tmp_path / "suite.yaml"), "--model.path", str(tiny_model)]) == 0
    printed = capsys.readouterr().out
    assert "blimp[val]/accuracy" in printed
    assert "blimp[/x]/accuracy" in printed


def test_wins_of_a_file_are_of_both_orders_and_of_the_side_asked_for(tmp_path, capsys, error_of):
    rows = [
        {"first_order": "second", "second_order": "first"},  # answer_b, in both orders
        {"first_order": "second", "second_order": "first"},
        {"first_order": "first", "second_order": "second"},  # answer_a
        {"first_order": "first", "second_order": "first"},  # the order decided
        {"first_order": None, "second_order": "first"},
    ]
    texts = ["be", "bigger", "b", "biggest", "me"]  # answer_a has three letters
    rows = [{**row, "judge": "j", "answer_a": "axe", "answer_b": text} for row, text in zip(rows, texts, strict=True)]
    file = tmp_path / "verdicts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def wins(*more):
        assert main(["eval", "wins", str(tmp_path), "--resamples", "200", *more]) == 0
        return json.loads((tmp_path / "wins.json").read_text())["judges"]["j"]

    rates = wins()
    assert rates["win_rate"]["value"] == (1 + 1 + 0 + 0.5 + 0.5) / 5
    assert rates["win_rate"]["items"] == 5
    assert "j: win rate of answer_b 0.600 [" in capsys.readouterr().out
    assert wins("--of", "answer_a")["win_rate"]["value"] == pytest.approx(0.4)
    one, other = rates["length_controlled_win_rate"], wins("--of", "answer_a")["length_controlled_win_rate"]
    assert one["value"] == pytest.approx(1 - other["value"])
    responses = wins("--second_names", "response")
    assert responses["win_rate"]["value"] == (0.5 + 0.5 + 0.5 + 0 + 0.5) / 5
    printed = error_of(["eval", "wins", str(tmp_path), "--of", "nobody"])
    assert "5 of 5 pairs of j do not have exactly one answer by 'nobody'" in printed

    assert "columns has the unknown field 'answer_c'" in error_of(
        ["eval", "wins", str(tmp_path), "--columns", '{"answer_c": "x"}']
    )
