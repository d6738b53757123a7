"""The alignment campaign in small: claims are computed correctly, and costs grow with the distance from the start."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from jaxalign.compare.start import Setting, make_start
from tests.campaigns.alignment import (
    BASE,
    check_settings,
    claims,
    over_seeds,
    run_studies,
    studies,
    value,
    write_claims,
    write_report,
)


def line(seed, study, method, gold=0.0, **figures):
    values = {
        "gold": gold,
        "proxy": 0.0,
        "kl": 0.0,
        "words": 10.0,
        "perplexity": 1.5,
        "fact_loss": 0.5,
        "knowledge": 0.8,
    } | figures
    curve = {"kl": [0.0] * 7, "proxy": [0.0] * 7, "gold": [0, 0, 0, 0.5, 0.4, 0.3, 0.2]}
    entries = {name: {"value": number, "ci": [number, number], "items": 36} for name, number in values.items()}
    costs = {"tokens": 1, "seconds": 1.0, "models": 1, "peak_bytes": 2**20}
    return {"seed": seed, "study": study, "method": method, "figures": entries, "curve": curve, **costs}


@pytest.fixture
def lines():
    """Results of three seeds in which every claim has a known effect."""
    gold = {(BASE, "dpo"): 0.4, (BASE, "ppo"): 0.5, ("noisy people", "dpo"): 0.1, ("noisy people", "ppo"): 0.4}
    gold |= {("poor pairs", "dpo"): 0.1, ("poor pairs", "ppo"): 0.3, ("strong", "ppo"): 0.2}
    results = []
    for seed in range(3):
        for name, study in studies(Setting()).items():
            for method in study.methods:
                at = gold.get((name, method), 0.0) + 0.01 * seed * (method != "sft")
                kl = 1 / float(name.split()[1]) if name.startswith("beta") else 1 / 0.3
                results.append(line(seed, name, method, at, kl=kl))
    return results


def test_claims_are_differences_within_a_seed(lines):
    effects = claims(lines, range(3))
    assert effects["gold: dpo - sft"].mean == pytest.approx(0.41)
    assert effects["gold, pairs cover good answers: ppo - dpo"].mean == pytest.approx(0.1)
    assert effects["gold, pairs do not cover them: ppo - dpo"].mean == pytest.approx(0.2)
    assert effects["gain lost to noise: dpo"].mean == pytest.approx(0.3)
    assert effects["gain lost to noise: dpo - ppo"].mean == pytest.approx(0.2)
    assert effects["gold: ppo - strong ppo"].mean == pytest.approx(0.3)
    assert effects["gold: best of 8 - best of 64"].mean == pytest.approx(0.3)
    assert effects["KL, nats an answer: dpo at β 0.1 - at β 0.3"].mean == pytest.approx(10 - 1 / 0.3)
    assert effects["gold: ppo - strong ppo"].verdict == "above 0"
    assert over_seeds([1.0, -1.0, 0.5]).verdict == "not distinguishable from 0"


def test_tables_and_figures_are_written(lines, tmp_path):
    names = ("win_rate", "win_rate_lc", "over_refusal", "compliance")
    for result in lines:
        result["figures"] |= {name: {"value": 0.5, "ci": [0.4, 0.6], "items": 36} for name in names}
    write_report(lines, range(3), tmp_path)
    assert (
        "| gain lost to noise: dpo | +0.30 [+0.30, +0.30], 3 of 3 above 0 | above 0 |"
        in (tmp_path / "claims.md").read_text()
    )
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("methods.png", "overoptimisation.png", "tax.png"))


def test_the_committed_claims_follow_from_the_committed_results(tmp_path):
    committed = Path(__file__).parents[2] / "docs" / "campaign"
    lines = [json.loads(line) for line in (committed / "results.jsonl").read_text().splitlines()]
    check_settings(lines, Setting())
    write_claims(claims(lines, range(1, 6)), tmp_path / "claims.md")
    assert (tmp_path / "claims.md").read_text() == (committed / "claims.md").read_text()


@pytest.mark.learning
def test_costs_grow_with_distance():
    start = make_start(Setting(pretrain_steps=150, pairs=256), 0)
    planned = {(name, method) for name, study in studies(start.setting).items() for method in study.methods}
    selected = {(BASE, "sft"), (BASE, "dpo"), ("beta 3.0", "dpo"), ("beta 0.03", "dpo")}
    lines = list(run_studies(start, planned - selected, Console(quiet=True)))
    assert {(result["study"], result["method"]) for result in lines} == selected
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
