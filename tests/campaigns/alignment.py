"""What the field says of its methods, tried where the gold reward is known: one start a seed, several studies of it.

Every seed pretrains and fine-tunes a model of the testbed. From there:

- as it is: every method on what its annotators say;
- poor pairs: people compare answers of a gold reward of at most 0 only, so that no good answer is covered;
- noisy people: their choices at four times the temperature;
- a judge that likes length;
- strong: PPO at no price of KL and for four times as many iterations;
- near and far: DPO held to the start by β = 3, 1, 0.1 and 0.03 (as it is: 0.3).

The settings were chosen on seed 0, which is not among the seeds.

    PYTHONPATH=. python tests/campaigns/alignment.py --output runs/alignment --seeds 5

A finished (seed, study, method) is a line of results.jsonl, and the same command does what is missing; then claims.md
(each statement, what was found, over seeds) and the figures are written anew from all lines.
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

from jaxalign.compare import arms, figures
from jaxalign.compare.results import across, run_seed, write_table
from jaxalign.compare.start import Setting, Start, begin
from jaxalign.paths import write_whole
from jaxalign.settings import plain_settings
from jaxalign.stats import student
from jaxalign.testbed.annotators import Judge

Line = dict[str, Any]
BASE = "as it is"
BETAS = (3.0, 1.0, 0.3, 0.1, 0.03)
"""From near to far; the one in the middle is that of ``Setting``."""


PRICES = {
    "fact_loss": ("tax, nats a fact", 1),
    "knowledge": ("tax, share of facts no longer known", -1),
    "perplexity": ("unaligned text, nats a token", 1),
}
"""What alignment may cost, by figure. The last is in good part what it is for: that text's style is to change."""


class Study(NamedTuple):
    """What differs from the setting as it is, and the methods looked at."""

    changes: dict[str, Any]
    methods: tuple[str, ...]


def studies(setting: Setting) -> dict[str, Study]:
    """All of them, by name."""
    return {
        BASE: Study({}, tuple(arms.ARMS)),
        "poor pairs": Study({"ceiling": 0.0}, ("ppo", "dpo")),
        "noisy people": Study({"temperature": 4 * setting.temperature}, ("ppo", "dpo")),
        "judge that likes length": Study({"judge": Judge(length=2.0)}, ("rlaif_dpo",)),
        "strong": Study({"iterations": 4 * setting.iterations, "price": 0.0}, ("ppo",)),
        **{f"beta {beta}": Study({"beta": beta}, ("dpo",)) for beta in BETAS if beta != setting.beta},
    }


def study_of(beta: float) -> str:
    """The study in which DPO has this β."""
    return BASE if beta == Setting().beta else f"beta {beta}"


def runs(start: Start, done: set[tuple[str, str]], console: Console) -> Iterator[Line]:
    """The lines of one seed that are missing."""
    began = time.perf_counter()
    for name, study in studies(start.setting).items():
        missing = [method for method in study.methods if (name, method) not in done]
        if missing:
            for line in run_seed(
                start.under(**study.changes), missing, began, lambda line: console.print(line, markup=False)
            ):
                yield {"study": name, **{key: value for key, value in line.items() if key != "samples"}}


def check_settings(lines: Sequence[Line], setting: Setting) -> None:
    """Raise for lines that other settings made."""
    for line in lines:
        study = studies(setting)[line["study"]]
        if line["setting"] != plain_settings(dataclasses.replace(setting, **study.changes)):
            raise SystemExit(f"{line['study']}, seed {line['seed']}: of other settings; give another output")


class Found(NamedTuple):
    """A mean over seeds, its 95 % interval (Student's), and how many of the seeds are above 0."""

    mean: float
    low: float
    high: float
    above: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}], {self.above} of {self.seeds} above 0"

    @property
    def verdict(self) -> str:
        """What the interval says of the sign."""
        return "above 0" if self.low > 0 else "below 0" if self.high < 0 else "not told apart from 0"


def over_seeds(values: Sequence[float]) -> Found:
    """Of one value for each seed.

    >>> print(over_seeds([1.0, 2.0, 3.0]))
    +2.00 [-0.48, +4.48], 3 of 3 above 0
    """
    found = np.asarray(values, float)
    return Found(*student(found), int((found > 0).sum()), len(found))


def value(lines: Sequence[Line], seed: int, study: str, method: str, figure: str = "gold") -> float:
    """A figure of one run; perplexity as its logarithm, nats a token."""
    (line,) = (each for each in lines if (each["seed"], each["study"], each["method"]) == (seed, study, method))
    found = float(line["figures"][figure]["value"])
    return float(np.log(found)) if figure == "perplexity" else found


def claims(lines: Sequence[Line], seeds: Sequence[int]) -> dict[str, Found]:
    """Each statement as a number that should be above 0 (or, where it says so, is only reported), over seeds."""

    def each(of: Callable[[Callable[..., float]], float]) -> Found:
        return over_seeds([of(lambda *key, seed=seed: value(lines, seed, *key)) for seed in seeds])

    def gain(v: Callable[..., float], study: str, method: str) -> float:
        return v(study, method) - v(BASE, "sft")

    def far(v: Callable[..., float], beta: float, figure: str) -> float:
        return v(study_of(beta), "dpo", figure)

    found = {
        f"gold: {method} - sft": each(lambda v, m=method: gain(v, BASE, m)) for method in arms.ARMS if method != "sft"
    }
    found["gold, pairs cover good answers: ppo - dpo"] = each(lambda v: v(BASE, "ppo") - v(BASE, "dpo"))
    found["gold, pairs do not cover them: ppo - dpo"] = each(lambda v: v("poor pairs", "ppo") - v("poor pairs", "dpo"))
    for method in ("dpo", "ppo"):
        found[f"gain lost to noise: {method}"] = each(lambda v, m=method: gain(v, BASE, m) - gain(v, "noisy people", m))
    found["gain lost to noise: dpo - ppo"] = each(
        lambda v: (
            gain(v, BASE, "dpo")
            - gain(v, "noisy people", "dpo")
            - gain(v, BASE, "ppo")
            + gain(v, "noisy people", "ppo")
        )
    )
    found["gold: kto - dpo"] = each(lambda v: v(BASE, "kto") - v(BASE, "dpo"))
    biased = "judge that likes length"
    found["words, labels of the judge that likes length - of the other"] = each(
        lambda v: v(biased, "rlaif_dpo", "words") - v(BASE, "rlaif_dpo", "words")
    )
    found["gold, labels of the other - of the judge that likes length"] = each(
        lambda v: v(BASE, "rlaif_dpo") - v(biased, "rlaif_dpo")
    )
    found["proxy: strong ppo - ppo"] = each(lambda v: v("strong", "ppo", "proxy") - v(BASE, "ppo", "proxy"))
    found["gold: ppo - strong ppo"] = each(lambda v: v(BASE, "ppo") - v("strong", "ppo"))
    best = [next(e for e in lines if (e["seed"], e["study"], e["method"]) == (s, BASE, "best_of_n")) for s in seeds]
    found["gold: best of 8 - best of 64"] = over_seeds([e["curve"]["gold"][3] - e["curve"]["gold"][6] for e in best])
    for figure, (called, sign) in PRICES.items():
        for method in arms.ARMS:
            if method not in ("sft", "best_of_n"):
                found[f"{called}: {method} - sft"] = each(
                    lambda v, m=method, f=figure, s=sign: s * (v(BASE, m, f) - v(BASE, "sft", f))
                )
    for figure, (called, sign) in {"kl": ("KL, nats an answer", 1), **PRICES}.items():
        found[f"{called}: strong ppo - ppo"] = each(
            lambda v, f=figure, s=sign: s * (v("strong", "ppo", f) - v(BASE, "ppo", f))
        )
        for near, far_off in [*itertools.pairwise(BETAS), (BETAS[0], BETAS[-1])]:
            found[f"{called}: dpo at β {far_off} - at β {near}"] = each(
                lambda v, f=figure, a=near, b=far_off, s=sign: s * (far(v, b, f) - far(v, a, f))
            )
    return found


def write_claims(found: dict[str, Found], path: Path) -> None:
    """As Markdown."""
    rows = ["| | mean over seeds [95 %] | the interval is |", "| --- | --- | --- |"]
    rows += [f"| {name} | {each} | {each.verdict} |" for name, each in found.items()]
    write_whole(path, "\n".join(rows) + "\n")


def tax_figure(lines: Sequence[Line], seeds: Sequence[int], path: Path) -> None:
    """Gold gained, and what was paid, against KL: DPO from near to far, every method as it is, PPO when strong."""
    import matplotlib.figure

    whole = matplotlib.figure.Figure(figsize=(11, 3), layout="constrained")
    names = [name for name in arms.ARMS if name not in ("sft", "best_of_n")]
    panels = {"gold": "gold reward gained", "fact_loss": "tax (nats a fact)"}
    panels["perplexity"] = "unaligned text (nats a token)"
    for axis, (figure, label) in zip(whole.subplots(1, 3), panels.items(), strict=True):
        for seed in seeds:
            zero = value(lines, seed, BASE, "sft", figure)
            kl = [value(lines, seed, study_of(beta), "dpo", "kl") for beta in BETAS]
            paid = [value(lines, seed, study_of(beta), "dpo", figure) - zero for beta in BETAS]
            axis.plot(
                kl,
                paid,
                "-",
                color="#00639a",
                lw=0.8,
                alpha=0.6,
                label="dpo, β from 3 to 0.03" if seed == seeds[0] else None,
            )
            for study, name, mark in [*((BASE, name, "o") for name in names), ("strong", "ppo", "s")]:
                axis.plot(
                    value(lines, seed, study, name, "kl"),
                    value(lines, seed, study, name, figure) - zero,
                    mark,
                    ms=4,
                    color=figures.COLOURS[list(arms.ARMS).index(name)],
                    label=("strong " * (mark == "s") + name).replace("_", " ") if seed == seeds[0] else None,
                )
        axis.set(xlabel="KL from SFT (nats an answer)", ylabel=label, xscale="symlog")
        axis.axhline(0, color="0.8", lw=1, zorder=0)
        axis.spines[["top", "right"]].set_visible(False)
    whole.axes[0].legend(frameon=False, fontsize=7)
    whole.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=1)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    results, console, setting = given.output / "results.jsonl", Console(soft_wrap=True, highlight=False), Setting()
    lines: list[Line] = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    check_settings(lines, setting)
    programs: dict[Any, Any] = {}
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    wanted = {(study, method) for study, each in studies(setting).items() for method in each.methods}
    for seed in seeds:
        done = {(line["study"], line["method"]) for line in lines if line["seed"] == seed}
        if wanted <= done:
            continue
        with results.open("a") as file:
            for line in runs(begin(setting, seed, programs), done, console):
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
    tell([line for line in lines if line["seed"] in seeds], seeds, given.output)


def tell(lines: Sequence[Line], seeds: Sequence[int], output: Path) -> None:
    """Tables and figures of all seeds."""
    found = claims(lines, seeds)
    write_claims(found, output / "claims.md")
    base = [line for line in lines if line["study"] == BASE]
    write_table(base, list(arms.ARMS), output / "table.md")
    figures.methods(base, list(arms.ARMS), across, output / "methods.png")
    strong = [line for line in lines if line["study"] == "strong" or line["method"] == "best_of_n"]
    figures.overoptimisation(strong, output / "overoptimisation.png")
    tax_figure(lines, seeds, output / "tax.png")
    for name, each in found.items():
        print(f"{name}: {each} ({each.verdict})")


if __name__ == "__main__":
    main()
