"""The literature's claims about alignment methods, tested where the gold reward is known.

Every seed pretrains and fine-tunes one model of the testbed. All studies start from it:

- as it is: every method, on its annotators' labels;
- poor pairs: people compare only answers of a gold reward of at most 0, so no pair covers a good answer;
- noisy people: people choose at four times the temperature;
- judge that likes length: the AI judge has a length bias;
- strong: PPO without a KL penalty, for four times as many iterations;
- beta: DPO with β = 3, 1, 0.1 and 0.03 (as it is: 0.3).

The settings were chosen on seed 0, which is not one of the seeds.

    PYTHONPATH=. python tests/campaigns/alignment.py --output runs/alignment --seeds 5

Every finished (seed, study, method) is a line of results.jsonl. Rerun the same command to resume. At the end it writes
claims.md (each claim with its effect over seeds), table.md and the figures from all lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from jaxalign.compare.figures import COLOURS, draw_methods, draw_overoptimisation
from jaxalign.compare.methods import METHODS
from jaxalign.compare.results import run_seed, write_table
from jaxalign.compare.start import Setting, Start, make_start
from jaxalign.paths import write_whole
from jaxalign.settings import plain_settings
from jaxalign.stats import student
from jaxalign.testbed.annotators import Judge

Line = dict[str, Any]
# Measures a figure of a study and method, for one seed.
Measure = Callable[..., float]
BASE = "as it is"
# β of DPO, from close to the start to far from it; 0.3 is the default of ``Setting``.
BETAS = (3.0, 1.0, 0.3, 0.1, 0.03)
TRAINED = [method for method in METHODS if method not in ("sft", "best_of_n")]
# Possible costs of alignment by figure: name, and the sign that makes a cost positive. A higher perplexity of
# unaligned text is partly intended, because alignment changes the style.
PRICES = {
    "fact_loss": ("tax, nats a fact", 1),
    "knowledge": ("tax, share of facts no longer known", -1),
    "perplexity": ("unaligned text, nats a token", 1),
}


class Study(NamedTuple):
    """Changes of the default setting, and the methods to run."""

    changes: dict[str, Any]
    methods: tuple[str, ...]


def studies(setting: Setting) -> dict[str, Study]:
    """Returns all studies by name."""
    return {
        BASE: Study({}, tuple(METHODS)),
        "poor pairs": Study({"ceiling": 0.0}, ("ppo", "dpo")),
        "noisy people": Study({"temperature": 4 * setting.temperature}, ("ppo", "dpo")),
        "judge that likes length": Study({"judge": Judge(length=2.0)}, ("rlaif_dpo",)),
        "strong": Study({"iterations": 4 * setting.iterations, "price": 0.0}, ("ppo",)),
        **{f"beta {beta}": Study({"beta": beta}, ("dpo",)) for beta in BETAS if beta != setting.beta},
    }


def study_of(beta: float) -> str:
    """Returns the name of the study whose DPO has this β."""
    return BASE if beta == Setting().beta else f"beta {beta}"


def run_studies(start: Start, done: set[tuple[str, str]], console: Console) -> Iterator[Line]:
    """Yields the results of one seed that are not done yet."""
    began = time.perf_counter()
    for name, study in studies(start.setting).items():
        missing = [method for method in study.methods if (name, method) not in done]
        if missing:
            for line in run_seed(
                start.with_setting(**study.changes), missing, began, lambda text: console.print(text, markup=False)
            ):
                yield {"study": name, **{key: value for key, value in line.items() if key != "samples"}}


def check_settings(lines: Sequence[Line], setting: Setting) -> None:
    """Exits if other settings made one of the lines."""
    for line in lines:
        study = studies(setting)[line["study"]]
        if line["setting"] != plain_settings(dataclasses.replace(setting, **study.changes)):
            raise SystemExit(
                f"{line['study']}, seed {line['seed']}: the results have other settings. Give another output."
            )


class Effect(NamedTuple):
    """A mean over seeds, its 95% interval (Student's), and how many of the seeds are above 0."""

    mean: float
    low: float
    high: float
    above: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], {self.above} of {self.seeds} above 0"

    @property
    def verdict(self) -> str:
        """Where the interval lies."""
        return "above 0" if self.low > 0 else "below 0" if self.high < 0 else "not distinguishable from 0"


def over_seeds(values: Sequence[float]) -> Effect:
    """Computes the effect from one value per seed.

    >>> print(over_seeds([1.0, 2.0, 3.0]))
    +2.00 [-0.48, +4.48], 3 of 3 above 0
    """
    array = np.asarray(values, float)
    return Effect(*student(array), int((array > 0).sum()), len(array))


def value(lines: Sequence[Line], seed: int, study: str, method: str, figure: str = "gold") -> float:
    """Returns a figure of one run. Perplexity is returned as its logarithm, in nats per token."""
    (line,) = (line for line in lines if (line["seed"], line["study"], line["method"]) == (seed, study, method))
    number = float(line["figures"][figure]["value"])
    return float(np.log(number)) if figure == "perplexity" else number


def claims(lines: Sequence[Line], seeds: Sequence[int]) -> dict[str, Effect]:
    """Computes the effect of every claim: a difference that the claim says is positive, or that is only reported."""

    def effect(of: Callable[[Measure], float]) -> Effect:
        return over_seeds([of(lambda *key, seed=seed: value(lines, seed, *key)) for seed in seeds])

    def gain(v: Measure, study: str, method: str) -> float:
        return v(study, method) - v(BASE, "sft")

    def lost_to_noise(v: Measure, method: str) -> float:
        return gain(v, BASE, method) - gain(v, "noisy people", method)

    biased = "judge that likes length"
    effects = {f"gold: {m} - sft": effect(lambda v, m=m: gain(v, BASE, m)) for m in METHODS if m != "sft"}
    effects["gold, pairs cover good answers: ppo - dpo"] = effect(lambda v: v(BASE, "ppo") - v(BASE, "dpo"))
    effects["gold, pairs do not cover them: ppo - dpo"] = effect(
        lambda v: v("poor pairs", "ppo") - v("poor pairs", "dpo")
    )
    effects["gain lost to noise: dpo"] = effect(lambda v: lost_to_noise(v, "dpo"))
    effects["gain lost to noise: ppo"] = effect(lambda v: lost_to_noise(v, "ppo"))
    effects["gain lost to noise: dpo - ppo"] = effect(lambda v: lost_to_noise(v, "dpo") - lost_to_noise(v, "ppo"))
    effects["gold: kto - dpo"] = effect(lambda v: v(BASE, "kto") - v(BASE, "dpo"))
    effects["words, labels of the judge that likes length - of the other"] = effect(
        lambda v: v(biased, "rlaif_dpo", "words") - v(BASE, "rlaif_dpo", "words")
    )
    effects["gold, labels of the other - of the judge that likes length"] = effect(
        lambda v: v(BASE, "rlaif_dpo") - v(biased, "rlaif_dpo")
    )
    effects["proxy: strong ppo - ppo"] = effect(lambda v: v("strong", "ppo", "proxy") - v(BASE, "ppo", "proxy"))
    effects["gold: ppo - strong ppo"] = effect(lambda v: v(BASE, "ppo") - v("strong", "ppo"))
    best = {line["seed"]: line["curve"]["gold"] for line in lines if line["method"] == "best_of_n"}
    effects["gold: best of 8 - best of 64"] = over_seeds([best[seed][3] - best[seed][6] for seed in seeds])
    for figure, (name, sign) in PRICES.items():
        for method in TRAINED:
            effects[f"{name}: {method} - sft"] = effect(
                lambda v, m=method, f=figure, s=sign: s * (v(BASE, m, f) - v(BASE, "sft", f))
            )
    for figure, (name, sign) in {"kl": ("KL, nats an answer", 1), **PRICES}.items():
        effects[f"{name}: strong ppo - ppo"] = effect(
            lambda v, f=figure, s=sign: s * (v("strong", "ppo", f) - v(BASE, "ppo", f))
        )
        for near, far in [*itertools.pairwise(BETAS), (BETAS[0], BETAS[-1])]:
            effects[f"{name}: dpo at β {far} - at β {near}"] = effect(
                lambda v, f=figure, a=near, b=far, s=sign: s * (v(study_of(b), "dpo", f) - v(study_of(a), "dpo", f))
            )
    return effects


def write_claims(effects: dict[str, Effect], path: Path) -> None:
    """Writes the effects as a Markdown table."""
    rows = ["| | mean over seeds [95 %] | the interval is |", "| --- | --- | --- |"]
    rows += [f"| {name} | {effect} | {effect.verdict} |" for name, effect in effects.items()]
    write_whole(path, "\n".join(rows) + "\n")


def draw_tax(lines: Sequence[Line], seeds: Sequence[int], path: Path) -> None:
    """Draws gold gained and its costs over KL: DPO at every β, all methods as they are, and strong PPO."""
    import matplotlib.figure

    picture = matplotlib.figure.Figure(figsize=(11, 3), layout="constrained")
    panels = {"gold": "gold reward gained", "fact_loss": "tax (nats a fact)"}
    panels["perplexity"] = "unaligned text (nats a token)"
    for axis, (figure, label) in zip(picture.subplots(1, 3), panels.items(), strict=True):
        for seed in seeds:
            zero = value(lines, seed, BASE, "sft", figure)
            axis.plot(
                [value(lines, seed, study_of(beta), "dpo", "kl") for beta in BETAS],
                [value(lines, seed, study_of(beta), "dpo", figure) - zero for beta in BETAS],
                "-",
                color="#00639a",
                lw=0.8,
                alpha=0.6,
                label="dpo, β from 3 to 0.03" if seed == seeds[0] else None,
            )
            for study, method, mark in [*((BASE, method, "o") for method in TRAINED), ("strong", "ppo", "s")]:
                axis.plot(
                    value(lines, seed, study, method, "kl"),
                    value(lines, seed, study, method, figure) - zero,
                    mark,
                    ms=4,
                    color=COLOURS[list(METHODS).index(method)],
                    label=("strong " * (mark == "s") + method).replace("_", " ") if seed == seeds[0] else None,
                )
        axis.set(xlabel="KL from SFT (nats an answer)", ylabel=label, xscale="symlog")
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    picture.axes[0].legend(frameon=False, fontsize=7)
    picture.savefig(path, dpi=200)


def write_report(lines: Sequence[Line], seeds: Sequence[int], output: Path) -> None:
    """Writes tables and figures of all seeds, and prints the claims."""
    effects = claims(lines, seeds)
    write_claims(effects, output / "claims.md")
    base = [line for line in lines if line["study"] == BASE]
    write_table(base, list(METHODS), output / "table.md")
    draw_methods(base, list(METHODS), output / "methods.png")
    strong = [line for line in lines if line["study"] == "strong" or line["method"] == "best_of_n"]
    draw_overoptimisation(strong, output / "overoptimisation.png")
    draw_tax(lines, seeds, output / "tax.png")
    for name, effect in effects.items():
        print(f"{name}: {effect} ({effect.verdict})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=1)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    results, console, setting = options.output / "results.jsonl", Console(soft_wrap=True, highlight=False), Setting()
    lines: list[Line] = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    check_settings(lines, setting)
    programs: dict[Any, Any] = {}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    planned = {(name, method) for name, study in studies(setting).items() for method in study.methods}
    for seed in seeds:
        done = {(line["study"], line["method"]) for line in lines if line["seed"] == seed}
        if planned <= done:
            continue
        with results.open("a") as file:
            for line in run_studies(make_start(setting, seed, programs), done, console):
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
    write_report([line for line in lines if line["seed"] in seeds], seeds, options.output)


if __name__ == "__main__":
    main()
