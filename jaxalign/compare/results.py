"""Running methods over seeds, and the table of their figures: what `jaxalign compare` calls."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import stats
from jaxalign.compare import arms, measure
from jaxalign.compare.start import Setting, Start
from jaxalign.errors import UserError
from jaxalign.evals.outcome import figure
from jaxalign.paths import write_whole
from jaxalign.reporting import Report, silent
from jaxalign.settings import plain_settings
from jaxalign.stats import Bootstrap

COLUMNS = (
    ("gold", "gold"),
    ("proxy", "proxy"),
    ("win_rate", "win rate"),
    ("win_rate_lc", "LC win rate"),
    ("kl", "KL, nats"),
    ("knowledge", "knows"),
    ("fact_loss", "fact loss, nats"),
    ("perplexity", "perplexity"),
    ("over_refusal", "over-refuses"),
    ("compliance", "complies"),
    ("words", "words"),
)
"""Figures that the table shows, and what it calls them (LC: length-controlled)."""
FEW = 10
"""Items below which a bootstrap is not believed."""
FORMAT = 1
"""Of a line of results; another one where a figure comes to mean something else."""
SHARES = ("win_rate", "win_rate_lc", "knowledge", "over_refusal", "compliance")
"""Figures that cannot leave 0 to 1, nor can their intervals."""
COSTS = ("tokens", "seconds", "models", "peak memory")


def read_results(path: Path, setting: Setting) -> list[dict[str, Any]]:
    """What is done of this setting.

    Raises:
        UserError: if the file is of another setting, or holds anything else.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        same = all((line["format"], line["setting"]) == (FORMAT, plain_settings(setting)) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} has a line that is no result of compare ({error}): remove it, or the file") from None
    if not same:
        raise UserError(f"{path} holds results of another setting or version: give another output, or remove it")
    return lines


def run_seed(start: Start, methods: Sequence[str], began: float, report: Report = silent) -> Iterator[dict[str, Any]]:
    """A line of results for each method, with one answer to an instruction of each kind."""
    baseline = measure.answer(start, arms.sft_arm(start))
    for name in methods:
        aligned = arms.ARMS[name](start)
        mine = baseline if name == "sft" else measure.answer(start, aligned)
        bootstrap = Bootstrap(seed=start.seed)
        found = {
            each.name: figure(each, bootstrap=bootstrap) for each in measure.outcomes(start, aligned, baseline, mine)
        }
        found["win_rate_lc"] = measure.length_controlled(baseline, mine, bootstrap)
        line: dict[str, Any] = {"format": FORMAT, "seed": start.seed, "method": name}
        line["setting"] = plain_settings(start.setting)
        line["figures"] = {key: each.plain() for key, each in found.items()}
        line |= measure.plain(aligned)
        line["samples"] = measure.samples(mine)
        if name == "best_of_n":
            line["curve"] = measure.best_of_n_curve(start)._asdict()
        report(f"seed {start.seed}: {name}, gold {found['gold'].value:.3f}, {time.perf_counter() - began:.0f} s")
        yield line


def across(lines: Sequence[dict[str, Any]], method: str, name: str) -> tuple[float, float, float]:
    """A figure's mean with its 95 % interval: Student's over seeds; of one seed, the bootstrap's over instructions.

    A bootstrap over fewer than ``FEW`` covers much less than it says, so there is none.
    """
    mine = [line["figures"][name] for line in lines if line["method"] == method and name in line["figures"]]
    if not mine:
        return math.nan, math.nan, math.nan
    values = np.array([each["value"] for each in mine], float)  # null, which the data left open, is NaN
    if len(mine) == 1:
        return float(values[0]), *(mine[0]["ci"] if mine[0]["ci"] and mine[0]["items"] >= FEW else (math.nan, math.nan))
    mean, low, high = stats.student(values)
    return (mean, max(low, 0.0), min(high, 1.0)) if name in SHARES else (mean, low, high)


def costs(lines: Sequence[dict[str, Any]], method: str) -> list[str]:
    """Tokens trained on, seconds, models in memory, and what training needs there: the mean over seeds."""
    mine = [line for line in lines if line["method"] == method]
    keys = ("tokens", "seconds", "models", "peak_bytes")
    tokens, seconds, models, peak = (float(np.mean([line[key] for line in mine])) for key in keys)
    return [f"{tokens / 1000:.0f} k", f"{seconds:.0f}", f"{models:.0f}", f"{peak / 2**20:.0f} MiB"]


def write_table(lines: Sequence[dict[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Every figure with its interval, as Markdown."""
    rows = [["method", *(shown for _, shown in COLUMNS), *COSTS]]
    rows.append(["---"] * len(rows[0]))
    for name in methods:
        values = [across(lines, name, key) for key, _ in COLUMNS]
        rows.append([name, *map(_shown, values)])
        rows[-1] += costs(lines, name)
    write_whole(path, "".join(f"| {' | '.join(row)} |\n" for row in rows))


def _shown(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
