"""Results of methods over seeds: running a seed, reading stored results, and the table of figures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign import stats
from jaxalign.compare import measure
from jaxalign.compare.methods import METHODS, run_sft
from jaxalign.compare.start import Setting, Start
from jaxalign.errors import UserError
from jaxalign.evals.outcome import figure
from jaxalign.paths import write_whole
from jaxalign.reporting import Report, silent
from jaxalign.settings import plain_settings
from jaxalign.stats import Bootstrap

# Figures of the table and their headings (LC: length-controlled).
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
# A bootstrap over fewer items gives no interval.
FEW = 10
# Version of a line of results. It changes when the meaning of a figure changes.
FORMAT = 1
# Figures that lie in 0 to 1, as do their intervals.
SHARES = ("win_rate", "win_rate_lc", "knowledge", "over_refusal", "compliance")
COSTS = ("tokens", "seconds", "models", "peak memory")


def read_results(path: Path, setting: Setting) -> list[dict[str, Any]]:
    """Returns the stored results of a setting.

    Raises:
        UserError: If the file contains results of another setting, or anything else.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        same = all((line["format"], line["setting"]) == (FORMAT, plain_settings(setting)) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} has a line that is not a result of compare ({error}). Remove the line or the file."
        ) from None
    if not same:
        raise UserError(
            f"{path} contains results of another setting or version. Give another output, or remove the file."
        )
    return lines


def run_seed(start: Start, methods: Sequence[str], began: float, report: Report = silent) -> Iterator[dict[str, Any]]:
    """Trains each method on one start, and yields its line of results.

    Args:
        start: The pretrained and fine-tuned model of a seed.
        methods: Names of the methods.
        began: The time, by ``time.perf_counter``, from which reported seconds count.
        report: Receives a line for each method.

    Yields:
        Figures with their intervals, costs, and one answer to an instruction of each kind.
    """
    baseline = measure.sample_answers(start, run_sft(start))
    for name in methods:
        trained = METHODS[name](start)
        answers = baseline if name == "sft" else measure.sample_answers(start, trained)
        bootstrap = Bootstrap(seed=start.seed)
        figures = {
            outcome.name: figure(outcome, bootstrap=bootstrap)
            for outcome in measure.outcomes(start, trained, baseline, answers)
        }
        figures["win_rate_lc"] = measure.length_controlled(baseline, answers, bootstrap)
        line: dict[str, Any] = {"format": FORMAT, "seed": start.seed, "method": name}
        line["setting"] = plain_settings(start.setting)
        line["figures"] = {name: value.plain() for name, value in figures.items()}
        line |= {key: value for key, value in vars(trained).items() if key != "params"}
        curve = measure.best_of_n_curve(start) if name == "best_of_n" else trained.curve
        line["curve"] = None if curve is None else curve._asdict()
        line["samples"] = measure.examples(answers)
        report(f"seed {start.seed}: {name}, gold {figures['gold'].value:.3f}, {time.perf_counter() - began:.0f} s")
        yield line


def across(lines: Sequence[dict[str, Any]], method: str, name: str) -> tuple[float, float, float]:
    """Returns a figure's mean and the ends of its 95 % interval; NaN for what is unknown.

    The interval is Student's over seeds. For one seed it is the bootstrap's over instructions, and NaN if they are
    fewer than ``FEW``: such a bootstrap covers much less than 95 %.
    """
    figures = [line["figures"][name] for line in lines if line["method"] == method and name in line["figures"]]
    if not figures:
        return math.nan, math.nan, math.nan
    values = np.array([entry["value"] for entry in figures], float)  # null becomes NaN
    if len(figures) == 1:
        (only,) = figures
        return float(values[0]), *(only["ci"] if only["ci"] and only["items"] >= FEW else (math.nan, math.nan))
    mean, low, high = stats.student(values)
    return (mean, max(low, 0.0), min(high, 1.0)) if name in SHARES else (mean, low, high)


def costs(lines: Sequence[dict[str, Any]], method: str) -> list[str]:
    """Returns tokens trained on, seconds, models in memory and peak memory of training, as means over seeds."""
    own = [line for line in lines if line["method"] == method]
    keys = ("tokens", "seconds", "models", "peak_bytes")
    tokens, seconds, models, peak = (float(np.mean([line[key] for line in own])) for key in keys)
    return [f"{tokens / 1000:.0f} k", f"{seconds:.0f}", f"{models:.0f}", f"{peak / 2**20:.0f} MiB"]


def write_table(lines: Sequence[dict[str, Any]], methods: Sequence[str], path: Path) -> None:
    """Writes every figure with its interval, as a Markdown table."""
    rows = [["method", *(heading for _, heading in COLUMNS), *COSTS]]
    rows.append(["---"] * len(rows[0]))
    for name in methods:
        values = [across(lines, name, key) for key, _ in COLUMNS]
        rows.append([name, *map(_shown, values)])
        rows[-1] += costs(lines, name)
    write_whole(path, "".join(f"| {' | '.join(row)} |\n" for row in rows))


def _shown(interval: tuple[float, float, float]) -> str:
    value, low, high = interval
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
