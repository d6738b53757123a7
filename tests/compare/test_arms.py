"""Every method runs from one start, on the annotations that it should have; measurements are what they say."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxalign.cli import main
from jaxalign.compare import arms, labels, measure
from jaxalign.compare.results import across
from jaxalign.compare.start import Setting, begin
from jaxalign.errors import UserError
from jaxalign.testbed import learner
from jaxalign.testbed.annotators import Judge
from jaxalign.testbed.gold import read

pytestmark = pytest.mark.thorough
TINY = Setting(pairs=48, pretrain_steps=30, sft_steps=2, steps=2, iterations=2, n=2, judge=Judge(noise=0.0))


@pytest.fixture(scope="module")
def start():
    return begin(TINY, 0)


def words_of(start, ids):
    return start.tokenizer.decode(ids, skip_special_tokens=True)


def test_annotators_see_training_instructions_only(start):
    asked = {words_of(start, tree.prompt) for tree in labels.comparisons(start).trees}
    assert asked <= {each.text for each in start.world.train}
    assert not asked & {each.text for each in start.world.held_out}
    for each, tree, rewards in zip(*labels.comparisons(start), strict=True):
        assert [start.gold(each, answer) for answer in tree.completions] == list(rewards)


def test_a_judge_without_noise_puts_the_better_answer_first(start):
    by_text = {each.text: each for each in start.world.train}
    pairs = labels.judges_pairs(start)
    assert 0 < len(pairs) <= len(labels.comparisons(start).trees)
    for tree in pairs:
        first, second = (start.gold(by_text[words_of(start, tree.prompt)], answer) for answer in tree.completions)
        assert first > second


def test_a_ceiling_leaves_out_the_good_answers(start):
    low = dataclasses.replace(start, setting=dataclasses.replace(TINY, ceiling=0.0, pairs=16))
    assert labels.comparisons(low).rewards.max() <= 0.0
    none = dataclasses.replace(start, setting=dataclasses.replace(TINY, ceiling=-50.0, pairs=16))
    with pytest.raises(UserError, match="only 0 of 16 comparisons could be drawn under a ceiling"):
        labels.comparisons(none)


def test_memory_counts_the_state_the_gradient_and_what_else_is_held(start):
    """Adam's state is three times the parameters; the gradient and a reference are one more each."""
    model = sum(leaf.nbytes for leaf in jax.tree.leaves(start.sft))
    found = {name: arms.ARMS[name](start).peak_bytes / model for name in ("dpo", "kto", "ppo")}
    assert found["dpo"] > 4
    assert found["kto"] > found["dpo"] + 0.9
    assert found["ppo"] > 6


@pytest.mark.parametrize("name", arms.ARMS)
def test_every_arm_is_measured(start, name):
    aligned = arms.ARMS[name](start)
    held = start.world.held_out
    baseline = measure.answer(start, arms.sft_arm(start))
    mine = measure.answer(start, aligned)
    found = {each.name: each for each in measure.outcomes(start, aligned, baseline, mine)}
    assert found["gold"].totals == pytest.approx(mine.total.mean(axis=1))
    if name == "sft":
        assert found["win_rate"].totals == pytest.approx(0.5)
        assert found["kl"].totals == pytest.approx(0.0)
    else:
        moved = any(
            not np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(aligned.params), jax.tree.leaves(start.sft), strict=True)
        )
        assert moved == (name != "best_of_n")
        assert aligned.tokens > 0
    shares = found["over_refusal"].totals
    chosen = [i for i, each in enumerate(held) if each.kind == "borderline"]
    assert len(shares) == len(chosen)
    for share, i in zip(shares, chosen, strict=True):
        refused = [
            read(held[i], t).refusals and not read(held[i], t).right + read(held[i], t).wrong for t in mine.texts[i]
        ]
        assert share == pytest.approx(np.mean([bool(each) for each in refused]))


def test_best_of_n_is_the_best_by_the_proxy(start):
    aligned = arms.best_of_n_arm(start)
    best = measure.answer(start, aligned)
    _, scores = measure.sampled(start)
    assert measure.proxy(start, best.trees) == pytest.approx(scores.reshape(len(scores), -1, 2).max(axis=-1), abs=1e-4)


def test_knowledge_is_of_the_plain_right_answer(start):
    facts = [each for each in start.world.held_out if each.kind == "fact"]
    known, nats = measure.knowledge(start, arms.sft_arm(start), facts)
    assert 0 < known.sum() < len(facts)
    for each, is_known, loss in zip(facts[:4], known, nats, strict=False):
        logps = []
        for text in (each.right, *each.wrong):
            ids = [*start.prompt(each), *learner.encode_answer(start.tokenizer, text)]
            logits = start.model.logits(start.sft, np.array([ids]))[0]
            at = np.asarray(jax.nn.log_softmax(logits))
            logps.append(sum(at[i - 1, ids[i]] for i in range(len(start.prompt(each)), len(ids))))
        assert (np.argmax(logps) == 0) == bool(is_known)
        assert loss == pytest.approx(-np.log(np.exp(logps[0]) / np.sum(np.exp(logps))), abs=1e-4)


def command(output, *more):
    sizes = {"pairs": 32, "pretrain_steps": 4, "sft_steps": 2, "steps": 2, "iterations": 2, "n": 2}
    flags = [part for name, size in sizes.items() for part in (f"--setting.{name}", str(size))]
    return main(["compare", "--output", str(output), "--seeds", "1", *flags, *more])


def test_compare_writes_a_table_and_figures_and_goes_on(tmp_path, capsys):
    assert command(tmp_path, "--methods", "[dpo]") == 0
    assert (tmp_path / "table.md").read_text().splitlines()[2].startswith("| sft |")
    assert (tmp_path / "methods.png").stat().st_size > 1000
    assert command(tmp_path, "--methods", "[dpo, best_of_n, ppo]") == 0
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["sft", "dpo", "best_of_n", "ppo"]
    assert len(lines[3]["curve"]["kl"]) == 3
    assert lines[3]["curve"]["kl"][0] == 0
    said = capsys.readouterr().out
    assert "on held-out instructions" in said
    assert command(tmp_path, "--methods", "[magic]") == 2
    assert "'magic' is none; those are sft, best_of_n, ppo, dpo, kto, rlaif_dpo" in capsys.readouterr().err
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
    """Student's of 0.9, 1, 1 reaches 1.11; NaN stays what it is."""
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
