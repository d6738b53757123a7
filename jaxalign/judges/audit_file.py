"""An audit of a file of verdicts: the run of `jaxalign judge`, or verdicts of any other origin."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.checkpoint import check_writable
from jaxalign.data.files import located, read_rows
from jaxalign.data.formats import missing, number
from jaxalign.data.messages import shown
from jaxalign.errors import UserError
from jaxalign.judges.aggregate import vote_on, weighted_mean
from jaxalign.judges.audit import TrustReport, Verdicts, audit
from jaxalign.judges.items import FIELDS as ITEM_FIELDS
from jaxalign.judges.items import SIDES, check_fields
from jaxalign.judges.journal import VERDICTS
from jaxalign.judges.pairwise import OPPOSITE, VERDICTS_BY_NAME, Verdict, combine_orders
from jaxalign.judges.plot import plot_audit
from jaxalign.packages import import_package
from jaxalign.paths import write_whole
from jaxalign.reporting import Report, silent
from jaxalign.settings import check_ranges
from jaxalign.stats import Bootstrap

REPORT, PICTURE = "audit.json", "audit.png"
FIELDS = {"first_order", "second_order", "judge", "key", "principle", "weight", "probability", "orders", "answers"}
FIELDS |= {"winner"} | ITEM_FIELDS - {"instruction", "input", "completions", "answer", "completion"}
COLUMNS = ("first_order", "second_order", "combined", "twice", "human", "own", "probabilities", "keys")
# The name of the panel's verdicts in a report.
PANEL = "panel (vote)"
LABELS: dict[str, Verdict | None] = {**VERDICTS_BY_NAME, "c": "tie", "": None, "none": None, "null": None}


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Measure whether to believe a judge: jaxalign judge audit RUN, or a FILE with verdicts.

    Args:
        path: the output directory of `jaxalign judge`, its verdicts.jsonl, or any file with a row for each pair: with
            first_order, second_order, and optionally human, answer_a, answer_b, probability and judge
        columns: what fields are called in the file, as {first_order: gpt4, human: label}
        second_names: what a verdict in the second order names, the position shown or the response
        annotators: fields with the labels of single humans, for the human ceiling
        group: field to look for blind spots by
        family: each judge's own family, as {gpt-4: openai}, as the rows' field by (or answer_a_by, answer_b_by) spells
            it, to look for self-preference
        policy: which of several judges is the policy itself, for a warning of circularity
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


def audit_file(config: AuditConfig, report: Report = silent) -> TrustReport:
    """Audits each judge of a file, and the panel that they make. Writes audit.json and audit.png.

    Args:
        config: Which file, and how to read it.
        report: Receives a line about each file that is written.

    Returns:
        The audit of each judge.

    Raises:
        UserError: If a setting or a row cannot be used. Nothing is written then.
    """
    check_ranges(config, {"confidence": (0.5, 0.999), "resamples": (100, 10**6), "seed": (0, 2**31 - 1)})
    if config.picture:
        import_package("matplotlib", "plots", "The picture", "or set picture=false")
    path, output = locate_verdicts(config.path, config.output)
    check_writable(output)
    columns = read_verdicts(path, config)
    bootstrap = Bootstrap(config.confidence, config.resamples, config.seed)
    judges = {name: verdicts for name, verdicts in columns.items() if name != PANEL}
    result = audit(judges, policy=config.policy, bootstrap=bootstrap)
    if PANEL in columns:  # the panel consists of the judges, so it is not compared with them
        vote = audit({PANEL: columns[PANEL]}, bootstrap=bootstrap)
        result = dataclasses.replace(result, judges={**result.judges, **vote.judges})
    write_whole(output / REPORT, json.dumps(result.plain(), indent=2, ensure_ascii=False) + "\n")
    report(f"The report is in {output / REPORT}.")
    if config.picture:
        plot_audit(result, columns, output / PICTURE, confidence=config.confidence)
        report(f"Its picture is in {output / PICTURE}.")
    return result


def locate_verdicts(path: str, output: str | None) -> tuple[Path | str, Path]:
    """Returns the file of verdicts that ``path`` names, and the directory for what is computed from them."""
    given = Path(path).expanduser()
    file = given / VERDICTS if given.is_dir() and (given / VERDICTS).exists() else path
    return file, Path(output).expanduser() if output else (given if given.is_dir() else given.parent)


def read_verdicts(path: str | Path, config: AuditConfig) -> dict[str, Verdicts]:
    """Reads each judge's verdicts, one for each pair. Several principles of a judge vote by their weights.

    Args:
        path: The file.
        config: How to read it.

    Returns:
        The verdicts by judge. Of several judges also the vote on the pairs that all of them judged, as ``PANEL``.

    Raises:
        UserError: If the file or a row cannot be used. The message names the row.
    """
    check_fields("columns", config.columns, FIELDS)
    judges: dict[str, dict[Any, list[dict[str, Any]]]] = {}
    others = 0
    for place, row in enumerate(read_rows(path)):
        with located(row.place):
            line = _parse(row.checked, config, row.place)
        if line is None:
            others += 1
            continue
        pairs = judges.setdefault(line["judge"], {})
        pair = pairs.setdefault(place if line["keys"] is None else line["keys"], [])
        pair[:] = [other for other in pair if other["principle"] != line["principle"]] + [line]  # the last one counts
    if not judges:
        why = f"its {others} rows are not of two answers each" if others else "the file has no rows"
        raise UserError(f"{path}: {why}. Give a file with at least one judged pair.")
    if unknown := sorted(set(config.family) - set(judges)):
        raise UserError(f"family names {unknown[0]!r}, and the judges are {', '.join(judges)}. Name one of them.")
    tables = {
        name: {key: _combine_principles(lines) | {"keys": key} for key, lines in pairs.items()}
        for name, pairs in judges.items()
    }
    columns = {name: _columns(name, list(table.values()), config) for name, table in tables.items()}
    if len(tables) > 1 and PANEL not in columns:
        common = set.intersection(*(set(table) for table in tables.values()))
        keys = [key for key in next(iter(tables.values())) if key in common]
        if keys:
            votes = [_vote([table[key] for table in tables.values()]) for key in keys]
            columns[PANEL] = _columns(PANEL, votes, config)
    return columns


def _parse(row: Mapping[str, Any], config: AuditConfig, where: str) -> dict[str, Any] | None:
    """Returns a row's verdicts on a pair under our names; None for a row of more or fewer than two answers."""
    value = _rename(row, config)
    answers = value["answers"] if isinstance(value.get("answers"), list) else None
    if answers is not None and len(answers) != 2:
        return None
    twice = _number("orders", value, 2) == 2
    for field in ("first_order", *(["second_order"] if twice else [])):
        if field not in value:
            raise missing(field, value, "an audit needs the verdict in both orders")
    names = ("first_order", "second_order", "human")
    verdicts = {name: _verdict(where, name, value.get(name)) for name in names}
    if config.second_names == "response":
        verdicts["second_order"] = OPPOSITE[verdicts["second_order"]]
    labelled = answers is None and value.get("chosen") is not None and value.get("winner") is not None
    flipped = labelled and value["winner"] == "second"
    texts = answers or [value.get(side) for side in SIDES]
    if labelled and value["winner"] in ("first", "second"):
        texts = [value["chosen"], value.get("rejected")][:: -1 if flipped else 1]
    p = _number("probability", value, None)
    if not 0 <= (p or 0) <= 1:
        raise UserError(f"{where}: field 'probability' is {p:g}. Give a number from 0 to 1.")
    for field in ("key", "judge", "principle"):
        if isinstance(value.get(field), list | dict):
            raise UserError(f"{where}: field {field!r} is {shown(value[field])}. Give one text or number.")
    judge = str(value.get("judge") or "judge")
    lengths = [len(text) for text in texts if isinstance(text, str)]
    # Without a key, the content of a pair lines up several judges.
    content = "\0".join((str(value.get("prompt", "")), *texts)) if len(lengths) == 2 else None
    both = combine_orders([verdicts["first_order"]], [verdicts["second_order"]])[0]
    return verdicts | {
        "judge": judge,
        "principle": value.get("principle"),
        "weight": number("weight", value.get("weight", 1.0)),
        "keys": value.get("key") if value.get("key") is not None else content,
        "twice": twice,
        "combined": both if twice else verdicts["first_order"],
        # A labelled row's probability is that of the chosen answer.
        "probabilities": 1 - p if p is not None and flipped else p,
        "length_difference": float(lengths[0] - lengths[1]) if len(lengths) == 2 else None,
        "own": _own_side(where, value, answers, config.family.get(judge)),
        "annotators": {name: _verdict(where, name, value.get(name)) for name in config.annotators},
        "groups": value.get(config.group) if config.group else None,
        "ordered": value.get("how") not in ("score", "pointwise"),
        "labelled_only": labelled,
    }


def _rename(value: Mapping[str, Any], config: AuditConfig) -> dict[str, Any]:
    renamed = dict(value)
    for field, column in config.columns.items():
        if column not in value:
            raise missing(column, value, f"columns say that it contains the {field}")
        renamed[field] = value[column]
    for field in (*config.annotators, *([config.group] if config.group else [])):
        if field not in renamed:
            raise missing(field, renamed, "the settings name it")
    return renamed


def _number(field: str, value: Mapping[str, Any], default: float | None) -> float | None:
    return default if value.get(field) in (None, "") else number(field, value[field])


def _verdict(where: str, name: str, value: Any) -> Verdict | None:
    word = "" if value is None else str(value).strip().lower()
    if word not in LABELS:
        raise UserError(f"{where}: field {name!r} is {shown(value)}. Give first, second, tie, or leave it empty.")
    return LABELS[word]


def _own_side(where: str, value: Mapping[str, Any], answers: Any, family: str | None) -> Verdict | None:
    """Returns which response is of a family: "tie" for both, None for neither or for an unknown family."""
    by = value.get("by") or ([] if answers else [value.get(f"{side}_by") or side for side in SIDES])
    if not isinstance(by, list):
        raise UserError(f"{where}: field 'by' is {shown(by)}. Give a list of two names.")
    if family is None or len(by) != 2:
        return None
    sides: dict[tuple[bool, ...], Verdict] = {(True, False): "first", (False, True): "second", (True, True): "tie"}
    return sides.get(tuple(str(name) == family for name in by))


def _combine_principles(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns one line for a judge's lines on a pair, one for each principle: a vote in each order and overall."""
    if len(lines) == 1:
        return lines[0]
    orders = {order: vote_on(lines, order) for order in ("first_order", "second_order")}
    return _vote(lines) | orders | {"ordered": lines[0]["ordered"]}


def _vote(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the vote of several lines on a pair, as a line without orders of its own."""
    winner = vote_on(lines, "combined")
    known = all(line["probabilities"] is not None for line in lines)
    p = weighted_mean((line["probabilities"], line["weight"]) for line in lines) if known else None
    votes = {"combined": winner, "first_order": winner, "second_order": OPPOSITE[winner], "probabilities": p}
    return {**lines[0], **votes, "twice": True, "own": None, "ordered": False}


def _columns(name: str, lines: Sequence[dict[str, Any]], config: AuditConfig) -> Verdicts:
    columns: dict[str, Any] = {field: [line[field] for line in lines] for field in (*COLUMNS, "length_difference")}
    # A measurement needs one value, or for lengths all values.
    for field in ("human", "own", "probabilities"):
        if all(value is None for value in columns[field]):
            columns[field] = None
    if None in columns["length_difference"]:
        columns["length_difference"] = None
    return Verdicts(
        **columns,
        annotators={name: [line["annotators"][name] for line in lines] for name in config.annotators},
        groups=[line["groups"] for line in lines] if config.group else None,
        ordered=name != PANEL and any(line["ordered"] for line in lines),
        labelled_only=any(line["labelled_only"] for line in lines),
    )
