"""Every method runs from the common start with the right annotations, and measurements match their definitions."""

import json

import jax
import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.compare import labels, measure
from jaxalign.compare.methods import METHODS
from jaxalign.compare.results import across
from jaxalign.compare.start import Setting, make_start
from jaxalign.errors import UserError
from jaxalign.testbed import learner
from jaxalign.testbed.annotators import Judge
from jaxalign.testbed.gold import read

pytestmark = pytest.mark.thorough
TINY = Setting(pairs=48, pretrain_steps=30, sft_steps=2, steps=2, iterations=2, n=2, judge=Judge(noise=0.0))


@pytest.fixture(scope="module")
def start():
    return make_start(TINY, 0)


def instruction_of(start, tree):
    text = start.tokenizer.decode(tree.prompt, skip_special_tokens=True)
    return next(item for item in (*start.world.train, *start.world.held_out) if item.text == text)


def gold_of(start, tree):
    return [start.gold(instruction_of(start, tree), answer) for answer in tree.completions]


def test_annotators_see_training_instructions_only(start):
    comparisons = labels.comparisons(start)
    assert {instruction_of(start, tree) for tree in comparisons.trees} <= set(start.world.train)
    assert [gold_of(start, tree) for tree in comparisons.trees] == comparisons.rewards.tolist()


def test_a_judge_without_noise_puts_the_better_answer_first(start):
    pairs = labels.pairs_by_judge(start)
    assert 0 < len(pairs) <= len(labels.comparisons(start).trees)
    for tree in pairs:
        first, second = gold_of(start, tree)
        assert first > second


def test_a_ceiling_omits_the_good_answers(start):
    low = start.with_setting(ceiling=0.0, pairs=16)
    assert labels.comparisons(low).rewards.max() <= 0.0
    with pytest.raises(UserError, match="Only 0 of 16 comparisons have two different answers at or below the ceiling"):
        labels.comparisons(start.with_setting(ceiling=-50.0, pairs=16))


def test_memory_counts_the_state_the_gradient_and_the_other_models(start):
    """Adam's state is three times the parameters; the gradient and a reference are one more each."""
    model = sum(leaf.nbytes for leaf in jax.tree.leaves(start.sft))
    memory = {name: METHODS[name](start).peak_bytes / model for name in ("dpo", "kto", "ppo")}
    assert memory["dpo"] > 4
    assert memory["kto"] > memory["dpo"] + 0.9
    assert memory["ppo"] > 6


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_measured(start, name):
    trained = METHODS[name](start)
    held_out = start.world.held_out
    baseline = measure.sample_answers(start, METHODS["sft"](start))
    answers = measure.sample_answers(start, trained)
    outcomes = {outcome.name: outcome for outcome in measure.outcomes(start, trained, baseline, answers)}
    assert outcomes["gold"].totals == pytest.approx(answers.gold.total.mean(axis=1))
    if name == "sft":
        assert outcomes["win_rate"].totals == pytest.approx(0.5)
        assert outcomes["kl"].totals == pytest.approx(0.0)
    else:
        moved = any(
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(trained.params), jax.tree.leaves(start.sft), strict=True)
        )
        assert moved == (name != "best_of_n")
        assert trained.tokens > 0
    shares = outcomes["over_refusal"].totals
    borderline = [i for i, instruction in enumerate(held_out) if instruction.kind == "borderline"]
    assert len(shares) == len(borderline)
    for share, i in zip(shares, borderline, strict=True):
        contents = [read(held_out[i], text) for text in answers.texts[i]]
        refused = [content.refusals > 0 and not content.right + content.wrong for content in contents]
        assert share == pytest.approx(np.mean(refused))


def test_best_of_n_is_the_best_by_the_proxy(start):
    best = measure.sample_answers(start, METHODS["best_of_n"](start))
    _, scores = measure.candidates(start)
    expected = scores.reshape(len(scores), -1, 2).max(axis=-1)
    assert measure.proxy_scores(start, best.trees) == pytest.approx(expected, abs=1e-4)


def test_knowledge_is_of_the_plain_right_answer(start):
    facts = [instruction for instruction in start.world.held_out if instruction.kind == "fact"]
    known, nats = measure.knowledge(start, METHODS["sft"](start), facts)
    assert 0 < known.sum() < len(facts)
    for fact, is_known, loss in zip(facts[:4], known, nats, strict=False):
        logps = []
        for text in (fact.right, *fact.wrong):
            ids = [*start.prompt(fact), *learner.encode_answer(start.tokenizer, text)]
            logits = start.model.logits(start.sft, np.array([ids]))[0]
            at = np.asarray(jax.nn.log_softmax(logits))
            logps.append(sum(at[i - 1, ids[i]] for i in range(len(start.prompt(fact)), len(ids))))
        assert (np.argmax(logps) == 0) == bool(is_known)
        assert loss == pytest.approx(-np.log(np.exp(logps[0]) / np.sum(np.exp(logps))), abs=1e-4)


def command(output, *more):
    sizes = {"pairs": 32, "pretrain_steps": 4, "sft_steps": 2, "steps": 2, "iterations": 2, "n": 2}
    flags = [part for name, size in sizes.items() for part in (f"--setting.{name}", str(size))]
    return main(["compare", "--output", str(output), "--seeds", "1", *flags, *more])


def test_compare_writes_a_table_and_figures_and_resumes(tmp_path, capsys):
    assert command(tmp_path, "--methods", "[dpo]") == 0
    assert (tmp_path / "table.md").read_text().splitlines()[2].startswith("| sft |")
    assert (tmp_path / "methods.png").stat().st_size > 1000
    assert command(tmp_path, "--methods", "[dpo, best_of_n, ppo]") == 0
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["sft", "dpo", "best_of_n", "ppo"]
    assert len(lines[3]["curve"]["kl"]) == 3
    assert lines[3]["curve"]["kl"][0] == 0
    assert "on held-out instructions" in capsys.readouterr().out
    assert command(tmp_path, "--methods", "[magic]") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "'magic' is not a method. Choose from sft, best_of_n, ppo, dpo, kto, rlaif_dpo." in error
    assert command(tmp_path, "--setting.beta", "0.2") == 2
    assert "contains results of another setting or version" in capsys.readouterr().err
    assert main(["compare", "--output", str(tmp_path / "new"), "--setting.n", "65"]) == 2
    assert "setting.n is 65. Give a number from 2 to 64" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("text", ['{"seed": 0', '{"seed": 0}\n', "[]\n", '{"seed": 0, "setting": {}}\n'])
def test_results_that_are_not_of_this_comparison_are_refused(tmp_path, capsys, text):
    (tmp_path / "results.jsonl").write_text(text)
    assert command(tmp_path, "--methods", "[dpo]") == 2
    assert "results.jsonl" in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_text() == text


def test_an_interval_of_shares_stays_within_0_and_1():
    """Student's interval of 0.9, 1, 1 reaches 1.11. NaN stays NaN."""
    lines = [{"method": "dpo", "figures": {"over_refusal": {"value": value}}} for value in (0.9, 1.0, 1.0)]
    mean, low, high = across(lines, "dpo", "over_refusal")
    assert (mean, low, high) == pytest.approx((29 / 30, 0.8232, 1.0), abs=1e-4)
    lines[0]["figures"]["over_refusal"]["value"] = None
    assert np.isnan(across(lines, "dpo", "over_refusal")[0])


def test_few_items_have_no_interval():
    line = {"method": "dpo", "figures": {"gold": {"value": 0.5, "ci": [0.4, 0.6], "items": 36}}}
    assert across([line], "dpo", "gold") == (0.5, 0.4, 0.6)
    line["figures"]["gold"]["items"] = 4
    assert np.isnan(across([line], "dpo", "gold")[1:]).all()
