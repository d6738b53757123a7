"""The alignment campaign in small: statements are counted as they should be; distance and its price go together."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from jaxalign.compare.start import Setting, begin
from tests.campaigns.alignment import (
    BASE,
    check_settings,
    claims,
    over_seeds,
    runs,
    studies,
    tell,
    value,
    write_claims,
)


def line(seed, study, method, gold=0.0, **figures):
    found = {
        "gold": gold,
        "proxy": 0.0,
        "kl": 0.0,
        "words": 10.0,
        "perplexity": 1.5,
        "fact_loss": 0.5,
        "knowledge": 0.8,
    } | figures
    curve = {"kl": [0.0] * 7, "proxy": [0.0] * 7, "gold": [0, 0, 0, 0.5, 0.4, 0.3, 0.2]}
    shown = {name: {"value": each, "ci": [each, each], "items": 36} for name, each in found.items()}
    costs = {"tokens": 1, "seconds": 1.0, "models": 1, "peak_bytes": 2**20}
    return {"seed": seed, "study": study, "method": method, "figures": shown, "curve": curve, **costs}


@pytest.fixture
def lines():
    """Three seeds in which every statement has a known number."""
    gold = {(BASE, "dpo"): 0.4, (BASE, "ppo"): 0.5, ("noisy people", "dpo"): 0.1, ("noisy people", "ppo"): 0.4}
    gold |= {("poor pairs", "dpo"): 0.1, ("poor pairs", "ppo"): 0.3, ("strong", "ppo"): 0.2}
    found = []
    for seed in range(3):
        for study, each in studies(Setting()).items():
            for method in each.methods:
                at = gold.get((study, method), 0.0) + 0.01 * seed * (method != "sft")
                kl = 1 / float(study.split()[1]) if study.startswith("beta") else 1 / 0.3
                found.append(line(seed, study, method, at, kl=kl))
    return found


def test_statements_are_differences_within_a_seed(lines):
    found = claims(lines, range(3))
    assert found["gold: dpo - sft"].mean == pytest.approx(0.41)
    assert found["gold, pairs cover good answers: ppo - dpo"].mean == pytest.approx(0.1)
    assert found["gold, pairs do not cover them: ppo - dpo"].mean == pytest.approx(0.2)
    assert found["gain lost to noise: dpo"].mean == pytest.approx(0.3)
    assert found["gain lost to noise: dpo - ppo"].mean == pytest.approx(0.2)
    assert found["gold: ppo - strong ppo"].mean == pytest.approx(0.3)
    assert found["gold: best of 8 - best of 64"].mean == pytest.approx(0.3)
    assert found["KL, nats an answer: dpo at β 0.1 - at β 0.3"].mean == pytest.approx(10 - 1 / 0.3)
    assert found["gold: ppo - strong ppo"].verdict == "above 0"
    assert over_seeds([1.0, -1.0, 0.5]).verdict == "not told apart from 0"


def test_tables_and_figures_are_written(lines, tmp_path):
    shown = ("win_rate", "win_rate_lc", "over_refusal", "compliance")
    for each in lines:
        each["figures"] |= {name: {"value": 0.5, "ci": [0.4, 0.6], "items": 36} for name in shown}
    tell(lines, range(3), tmp_path)
    assert (
        "| gain lost to noise: dpo | +0.30 [+0.30, +0.30], 3 of 3 above 0 | above 0 |"
        in (tmp_path / "claims.md").read_text()
    )
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("methods.png", "overoptimisation.png", "tax.png"))


def test_what_is_committed_says_what_its_results_say(tmp_path):
    kept = Path(__file__).parents[2] / "docs" / "campaign"
    lines = [json.loads(line) for line in (kept / "results.jsonl").read_text().splitlines()]
    check_settings(lines, Setting())
    write_claims(claims(lines, range(1, 6)), tmp_path / "claims.md")
    assert (tmp_path / "claims.md").read_text() == (kept / "claims.md").read_text()


@pytest.mark.learning
def test_distance_and_its_price_grow_together():
    start = begin(dataclasses.replace(Setting(), pretrain_steps=150, pairs=256), 0)
    every = {(study, method) for study, each in studies(start.setting).items() for method in each.methods}
    wanted = {(BASE, "sft"), (BASE, "dpo"), ("beta 3.0", "dpo"), ("beta 0.03", "dpo")}
    lines = list(runs(start, every - wanted, Console(quiet=True)))
    assert {(each["study"], each["method"]) for each in lines} == wanted
    gold, kl, tax = (
        [
            value(lines, 0, *key, figure)
            for key in [(BASE, "sft"), ("beta 3.0", "dpo"), (BASE, "dpo"), ("beta 0.03", "dpo")]
        ]
        for figure in ("gold", "kl", "perplexity")
    )
    assert gold[2] > gold[0] + 0.1
    assert 0 == kl[0] < kl[1] < kl[2] < kl[3]
    assert tax[0] < tax[1] < tax[3]
