"""``jaxalign judge audit RUN``: whether to believe a judge, as text, JSON and a picture."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxalign.checkpoint import check_writable
from jaxalign.cli import judge as labelling
from jaxalign.cli.judge_items import HUMAN
from jaxalign.data.files import Problem, Row, read_rows
from jaxalign.data.formats import missing, number
from jaxalign.data.messages import shown
from jaxalign.errors import UserError
from jaxalign.judges.audit import JudgeAudit, TrustReport, Verdicts, audit
from jaxalign.judges.pairwise import Verdict, combine_orders
from jaxalign.judges.panel import OPPOSITE
from jaxalign.judges.votes import panel_vote
from jaxalign.paths import write_whole
from jaxalign.settings import check_ranges
from jaxalign.stats import Bootstrap, Interval

REPORT, PICTURE = "audit.json", "audit.png"
FIELDS = {"first_order", "second_order", "human", "judge", "key", "principle", "weight", "probability", "orders"}
FIELDS |= {
    "prompt",
    "answer_a",
    "answer_b",
    "answer_a_by",
    "answer_b_by",
    "answers",
    "by",
    "chosen",
    "rejected",
    "winner",
}
PANEL = "panel (vote)"
LABELS: dict[str, Verdict | None] = {**HUMAN, "c": "tie", "": None, "none": None, "null": None}


@dataclasses.dataclass(frozen=True)
class Config:
    """Measure whether to believe a judge: jaxalign judge audit RUN, or a FILE with verdicts.

    Args:
        path: the output directory of `jaxalign judge`, its verdicts.jsonl, or any file whose rows hold first_order and
            second_order (and maybe human, answer_a, answer_b, probability, judge), one row a pair
        columns: what fields are called in the file, as {first_order: gpt4, human: label}
        second_names: what a verdict in the second order names, the position shown or the response
        annotators: fields with the labels of single humans, for the human ceiling
        group: field to look for blind spots by
        family: each judge's own family, as {gpt-4: openai}, as the rows' field by (or answer_a_by, answer_b_by) spells
            it, to look for self-preference
        policy: which of several judges is the policy itself, to be warned of circularity
        output: directory of audit.json and audit.png; by default where the verdicts are
        picture: draw audit.png (needs matplotlib)
        confidence: of the intervals
        resamples: of the bootstrap
        seed: of the bootstrap
    """

    path: str
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    second_names: Literal["position", "response"] = "position"
    annotators: tuple[str, ...] = ()
    group: str | None = None
    family: dict[str, str] = dataclasses.field(default_factory=dict)
    policy: str | None = None
    output: str | None = None
    picture: bool = True
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0


def flags(arguments: Sequence[str]) -> list[str]:
    """``audit RUN`` as flags.

    >>> flags(["run", "--picture", "false"])
    ['--path', 'run', '--picture', 'false']
    """
    words = list(arguments)
    return ["--path", *words] if words and not words[0].startswith("-") else words


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise for a name that is no field of verdicts."""
    if unknown := sorted(set(columns) - FIELDS):
        raise UserError(f"columns names {unknown[0]!r}, which is no field of ours: give {', '.join(sorted(FIELDS))}.")


def run(config: Config) -> None:
    """The report, in every form."""
    check_columns(config.columns)
    check_ranges(config, {"confidence": (0.5, 0.999), "resamples": (100, 10**6), "seed": (0, 2**31 - 1)})
    if config.picture:
        check_matplotlib()
    given = Path(config.path).expanduser()
    path = given / labelling.VERDICTS if given.is_dir() and (given / labelling.VERDICTS).exists() else config.path
    output = Path(config.output).expanduser() if config.output else (given if given.is_dir() else given.parent)
    check_writable(output)
    columns = read_columns(path, config)
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    judges = {name: mine for name, mine in columns.items() if name != PANEL}
    report = audit(judges, policy=config.policy, bootstrap=bootstrap)
    if PANEL in columns:  # no judge of its own, so beside them and not among those compared
        vote = audit({PANEL: columns[PANEL]}, bootstrap=bootstrap)
        report = dataclasses.replace(report, judges={**report.judges, **vote.judges})
    console = Console(highlight=False, soft_wrap=True)
    tell(report, config.confidence, console)
    write_whole(output / REPORT, json.dumps(report.plain(), indent=2, ensure_ascii=False) + "\n")
    console.print(f"The report is in {output / REPORT}", end="" if config.picture else ".\n", markup=False)
    if config.picture:
        from jaxalign.judges.picture import draw

        draw(report, columns, output / PICTURE, confidence=config.confidence)
        console.print(f", its picture in {output / PICTURE}.", markup=False)


def check_matplotlib(otherwise: str = ", or leave it out with --picture false") -> None:
    """Raise if the picture cannot be drawn; ``otherwise``: what else a user may do."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError(f"the picture needs matplotlib: pip install 'jaxalign[plots]'{otherwise}") from None


def read_columns(path: str | Path, config: Config) -> dict[str, Verdicts]:
    """Each judge's verdicts, one for each pair: a judge that was asked by several principles votes by their weights.

    Raises:
        UserError: if the file cannot be read or a row cannot be used; the sentence names it.
    """
    rows: dict[str, dict[Any, list[dict[str, Any]]]] = {}
    others = 0
    for place, row in enumerate(read_rows(path)):
        value = _parse(row, config)
        if value is None:
            others += 1
            continue
        value["key"] = place if value["key"] is None else value["key"]
        mine = rows.setdefault(value["judge"], {}).setdefault(value["key"], [])
        mine[:] = [line for line in mine if line["principle"] != value["principle"]] + [value]  # the last one counts
    if not rows and others:
        raise UserError(f"{path}: its {others} rows are not of two answers each, and an audit is of pairs: judge pairs")
    if not rows:
        raise UserError(f"{path}: there are no rows: give a file with at least one")
    if unknown := sorted(set(config.family) - set(rows)):
        raise UserError(f"family names {unknown[0]!r}, and the judges are {', '.join(rows)}: name one of them")
    voted = {name: [_voted(lines) for lines in mine.values()] for name, mine in rows.items()}
    found = {name: _columns(name, lines, config) for name, lines in voted.items()}
    if len(voted) > 1 and PANEL not in found:
        tables = [{line["key"]: line for line in lines} for lines in voted.values()]
        common = [key for key in tables[0] if all(key in table for table in tables)]
        if common:
            found[PANEL] = _columns(PANEL, [_vote([table[key] for table in tables]) for key in common], config)
    return found


def _parse(row: Row, config: Config) -> dict[str, Any] | None:
    where = f"{row.file}, row {row.number}"
    if isinstance(row.value, Problem):
        raise UserError(f"{where}: {row.value.text}")
    value: dict[str, Any] = dict(row.value)
    for field, theirs in config.columns.items():
        if theirs not in value:
            raise UserError(f"{where}: {missing(theirs, value, f'columns says that it holds the {field}').text}")
        value[field] = value[theirs]
    for field in (*config.annotators, *([config.group] if config.group else [])):
        if field not in value:
            raise UserError(f"{where}: {missing(field, value, 'the settings name it').text}")
    if isinstance(value.get("answers"), list) and len(value["answers"]) != 2:
        return None
    orders = number("orders", 2 if value.get("orders") in (None, "") else value["orders"])
    if isinstance(orders, Problem):
        raise UserError(f"{where}: {orders.text}")
    twice = orders == 2
    for field in ("first_order", *(["second_order"] if twice else [])):
        if field not in value:
            raise UserError(f"{where}: {missing(field, value, 'an audit needs the verdict in both orders').text}")
    labels = ("first_order", "second_order", "human", *config.annotators)
    found: dict[str, Any] = {name: _label(where, name, value.get(name)) for name in labels}
    if config.second_names == "response":
        found["second_order"] = OPPOSITE[found["second_order"]]
    answers = value.get("answers") if isinstance(value.get("answers"), list) else None
    sides = [value.get("answer_a"), value.get("answer_b")]
    if answers is None and value.get("chosen") is not None and value.get("winner") in ("first", "second"):
        sides = [value["chosen"], value.get("rejected")][:: 1 if value["winner"] == "first" else -1]
    texts = answers if answers is not None and len(answers) == 2 else sides
    lengths = [len(text) if isinstance(text, str) else None for text in texts]
    named = [None, None] if texts is answers else [value.get(f"{side}_by") or side for side in ("answer_a", "answer_b")]
    by = value.get("by") or named
    if not isinstance(by, list):
        raise UserError(f"{where}: field 'by' is {shown(by)} where a list of two names is needed")
    for field in ("key", "judge", "principle"):
        if isinstance(value.get(field), (list, dict)):
            raise UserError(f"{where}: field {field!r} is {shown(value[field])} where one text or number is needed")
    family = config.family.get(str(value.get("judge") or "judge"))
    weight = number("weight", value.get("weight", 1.0))
    if isinstance(weight, Problem):
        raise UserError(f"{where}: {weight.text}")
    p = None if value.get("probability") in (None, "") else number("probability", value["probability"])
    if isinstance(p, Problem) or not 0 <= (p or 0) <= 1:
        p = value["probability"]
        raise UserError(f"{where}: field 'probability' is {shown(p)} where a number from 0 to 1 is needed")
    if p is not None and texts is sides and value.get("chosen") is not None and value.get("winner") == "second":
        p = 1 - p  # of the chosen answer, there
    return found | {
        "twice": twice,
        "difference": None if None in lengths else float(lengths[0] or 0) - float(lengths[1] or 0),
        "own": _own([str(name) == family for name in by]) if family is not None and len(by) == 2 else None,
        "probability": p,
        "group": value.get(config.group) if config.group else None,
        "judge": str(value.get("judge") or "judge"),
        "principle": value.get("principle"),
        "weight": weight,
        "key": value.get("key") if value.get("key") is not None else _content(value, texts),
        "ordered": value.get("how") not in ("score", "pointwise"),
        "labelled": texts is sides and value.get("chosen") is not None and value.get("winner") is not None,
    }


def _content(value: Mapping[str, Any], texts: Sequence[Any]) -> str | None:
    """What a pair without a key goes by, to line up several judges."""
    known = all(isinstance(text, str) for text in texts)
    return "\0".join((str(value.get("prompt", "")), *texts)) if known else None


def _label(where: str, name: str, value: Any) -> Verdict | None:
    word = "" if value is None else str(value).strip().lower()
    if word not in LABELS:
        raise UserError(f"{where}: field {name!r} is {shown(value)} where first, second or tie (or nothing) is needed")
    return LABELS[word]


def _own(sides: list[bool]) -> Verdict | None:
    return {(True, False): "first", (False, True): "second", (True, True): "tie"}.get((sides[0], sides[1]))  # type: ignore[return-value]


def _voted(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """One line for a pair, of those for its principles: of each order, and as the labels were made, of all."""
    if len(lines) == 1:
        return {**lines[0], "combined": _winner(lines[0])}
    found = _vote([{**line, "combined": _winner(line)} for line in lines])
    weights = {str(i): line["weight"] for i, line in enumerate(lines)}
    for order in ("first_order", "second_order"):
        found[order] = panel_vote({str(i): [line[order]] for i, line in enumerate(lines)}, weights)[0]
    return found | {"ordered": lines[0]["ordered"]}


def _winner(line: Mapping[str, Any]) -> Verdict | None:
    both = combine_orders([line["first_order"]], [line["second_order"]])[0]
    return both if line["twice"] else line["first_order"]


def _vote(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several lines for a pair, the vote over what each comes to."""
    weights = {str(i): line["weight"] for i, line in enumerate(lines)}
    won = panel_vote({str(i): [line["combined"]] for i, line in enumerate(lines)}, weights)[0]
    known = [(line["probability"], line["weight"]) for line in lines if line["probability"] is not None]
    total = sum(weight for _, weight in known)
    p = sum(p * weight for p, weight in known) / total if len(known) == len(lines) else None
    votes = {"combined": won, "first_order": won, "second_order": OPPOSITE[won], "probability": p}
    return {**lines[0], **votes, "twice": True, "own": None, "ordered": False}


def _columns(name: str, lines: list[dict[str, Any]], config: Config) -> Verdicts:
    def column(name: str) -> list[Any] | None:
        values = [line[name] for line in lines]
        return values if any(value is not None for value in values) else None

    differences = [line["difference"] for line in lines]
    return Verdicts(
        [line["first_order"] for line in lines],
        [line["second_order"] for line in lines],
        twice=[line["twice"] for line in lines],
        human=column("human"),
        length_difference=None if None in differences else differences,
        own=column("own"),
        probabilities=column("probability"),
        annotators={name: [line[name] for line in lines] for name in config.annotators},
        groups=[line["group"] for line in lines] if config.group else None,
        keys=[line["key"] for line in lines],
        combined=[line["combined"] for line in lines],
        ordered=name != PANEL and any(line["ordered"] for line in lines),
        labelled_only=any(line["labelled"] for line in lines),
    )


def tell(report: TrustReport, confidence: float, console: Console) -> None:
    """Tables of figures with their intervals, then what they mean."""
    for name, found in report.judges.items():
        how = f"{found.in_both_orders} in both orders" if found.ordered else "one verdict each"
        table = Table(
            title=escape(f"{name}: {found.pairs} pairs, {how}"),
            title_justify="left",
            caption=f"intervals: {100 * confidence:g} %, by bootstrap over the pairs",
            caption_justify="left",
        )
        table.add_column("measure")
        table.add_column("value", justify="right")
        table.add_column("interval", justify="right")
        for label, value, interval, unit in figures(found):
            table.add_row(label, *cells(value, interval, unit))
        console.print(table)
        if found.spots:
            console.print("right by group, the worst first:")
            for group, spot in list(found.spots.items())[:8]:
                share = cells(spot.accuracy, spot.accuracy_ci, "%")
                console.print(f"  {group}: {share[0]} [{share[1]}] of {sum(spot.counts.values())}", markup=False)
        for sentence in found.warnings or ("Nothing to warn of in what was measured.",):
            console.print(f"• {sentence}", style="yellow" if found.warnings else "green", markup=False)
    for title, raters in (("judges", report.between_judges), ("humans", report.between_humans)):
        if raters is not None:
            share = cells(raters.accuracy, raters.accuracy_ci, "%")
            kappa = cells(raters.kappa, raters.kappa_ci, "")
            console.print(f"between {title}: {share[0]} [{share[1]}] the same, κ {kappa[0]} [{kappa[1]}]")


def figures(found: JudgeAudit) -> list[tuple[str, float, Interval, str]]:
    """(what, value, interval, unit) of everything that was measured; points have a sign, what is "off" has none."""
    rows: list[tuple[str, Any, Any, str]] = []
    report, agreed = found.report, found.agreement
    if report is not None and found.ordered:
        rows += [
            ("consistency", report.consistency, report.consistency_ci, "%"),
            ("position bias (to the first)", report.position_bias, report.position_bias_ci, "points"),
            ("right, first order", report.accuracy_first, report.accuracy_first_ci, "%"),
            ("right, second order", report.accuracy_second, report.accuracy_second_ci, "%"),
        ]
    if report is not None:
        rows += [("ties", report.ties, report.ties_ci, "%"), ("failures", report.failures, report.failures_ci, "%")]
    if agreed is not None:
        rows += [
            ("agreement with humans", agreed.accuracy, agreed.accuracy_ci, "%"),
            ("Cohen's κ with humans", agreed.kappa, agreed.kappa_ci, ""),
        ]
    if found.by_probability is not None:
        side = found.by_probability
        rows.append(("  of its probabilities", side.accuracy, side.accuracy_ci, "%"))
    for label, favour in (("the longer answer", found.verbosity), ("its own family", found.own)):
        if favour is not None:
            rows.append((f"bias for {label}", favour.bias, favour.bias_ci, "points"))
            rows.append(("  beyond that of humans", favour.excess, favour.excess_ci, "points"))
            if math.isfinite(favour.slope):
                beside = " (human label held)" if favour.excess is not None else ""
                rows.append((f"  log-odds a unit{beside}", favour.slope, favour.slope_ci, "odds"))
    if found.ceiling is not None:
        rows.append(("human ceiling", found.ceiling.human, found.ceiling.human_ci, "%"))
        rows.append(("  gap to it", found.ceiling.gap, found.ceiling.gap_ci, "points"))
    if found.calibration is not None:
        rows.append(("calibration error", found.calibration.ece, found.calibration.ece_ci, "off"))
        rows.append(("Brier score", found.calibration.brier, found.calibration.brier_ci, ""))
    return [row for row in rows if row[1] is not None]


def cells(value: float, interval: Interval, unit: str) -> tuple[str, str]:
    """A figure and its interval as text."""
    if math.isnan(value):
        return "undefined", ""
    low, high = interval
    if unit == "odds":
        return f"{value:+.2g}", f"{low:+.2g} to {high:+.2g}"
    scale, digits = (100, 1) if unit else (1, 3)
    sign = "+" if unit == "points" else ""
    word = {"": "", "off": " points"}.get(unit, f" {unit}")
    value_text = f"{scale * value:{sign}.{digits}f}{word}"
    return value_text, f"{scale * low:{sign}.{digits}f} to {scale * high:{sign}.{digits}f}"
