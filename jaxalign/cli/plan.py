"""``jaxalign plan --data FILE --model ID``: what the data allow, what each method would need, which to start with."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from jaxalign.cli import data as inspecting
from jaxalign.data.feedback import Signals
from jaxalign.data.files import Row, read_rows
from jaxalign.data.inspect import balance, find
from jaxalign.data.kinds import Demonstration, Preference, Ranking, Record, UnpairedPreference
from jaxalign.errors import UserError
from jaxalign.models import lora
from jaxalign.models.config import LoraConfig, ModelConfig
from jaxalign.models.model import Model
from jaxalign.models.paths import resolve
from jaxalign.models.weights import read_config
from jaxalign.rewards import final_number
from jaxalign.settings import check_ranges

FEW = 500
"""Examples below which a warning is due: at 500 the 95 % interval of an accuracy is still ± 4 points wide."""
SKEWED = 0.7
"""Share of pairs whose better answer is the longer one from which on a word about length is due."""
TRAINED = 16
"""Bytes of a trained float32 parameter: itself, its gradient, and Adam's two moments."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Say which method to start with: jaxalign plan --data FILE --model ID.

    Args:
        data: a file of examples, as `jaxalign data inspect` takes it
        model: the model to align: a directory, .gguf file, hub id or package:file; its weights are not read
        judge: whether a judge clearly stronger than the model is at hand
        memory: GiB of the devices together; that of the machine by default
        lora_rank: of the adapters that the second column of memory is for
        columns: what fields are called in this file, as {prompt: question}
        signals: fields of a product's log that say whether an answer was liked
    """

    data: str
    model: str
    judge: bool = False
    memory: float | None = None
    lora_rank: int = 16
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    signals: Signals = dataclasses.field(default_factory=Signals)


class Holding(NamedTuple):
    """What a method keeps in memory, in models of the policy's size, and what it computes.

    Attributes:
        method: its command.
        trained, frozen: how many models.
        passes: forward passes over every token of an example, a backward pass counting as two.
        how: of which these consist.
    """

    method: str
    trained: int
    frozen: int
    passes: float
    how: str


HOLDINGS = (
    Holding("sft", 1, 0, 3, "forward and backward"),
    Holding("reward", 1, 0, 3, "forward and backward"),
    Holding("dpo", 1, 0, 4, "reference once, kept; forward and backward"),
    Holding("kto", 1, 1, 6, "reference; policy and reference on mismatched answers; forward and backward"),
    Holding("grpo", 1, 1, 5, "sampling, reference; forward and backward; times the answers to a prompt"),
    Holding("online_dpo", 1, 2, 6, "sampling, reward, reference; forward and backward"),
    Holding("ppo", 1, 2, 10, "sampling, reward, reference, values; two epochs of forward and backward"),
)


class Found(NamedTuple):
    """What a file holds: records of a kind, of so many prompts; whether rows have a checkable answer beside them."""

    kind: type[Record]
    records: Sequence[Record]
    prompts: int
    verifiable: bool


def run(config: Config) -> None:
    """The plan, as text."""
    check_ranges(config, {"memory": (0.01, math.inf), "lora_rank": (1, 4096)})
    console = Console(highlight=False, soft_wrap=True)
    shape = read_config(resolve(config.model, weights=False))
    found = look(config, console)
    total, adapters = parameters(shape), parameters(shape, config.lora_rank) - parameters(shape)
    memory = (config.memory or machine_memory()) * 2**30
    console.print(f"model: {total / 1e6:.1f}M parameters; memory: {memory / 2**30:.1f} GiB\n")
    console.print(needs(total, adapters, config.lora_rank, memory))
    console.print("Activations come on top; they shrink with train.rows_per_microbatch.\n")
    ppo = next(each for each in HOLDINGS if each.method == "ppo")
    for sentence in advice(found, judge=config.judge, four_fit=in_memory(ppo, total, adapters) <= memory):
        console.print(f"• {sentence}", markup=False)


def look(config: Config, console: Console) -> Found:
    """Read the file, and say what is in it."""
    section = inspecting.InspectSection(config.data, columns=config.columns, signals=config.signals)
    kind = inspecting.kind_of_rows(section)
    records, report = inspecting.read(kind, section, section.path, section.split)
    console.print(f"{config.data}: {report}", markup=False)
    findings = find(records)
    noun = {Demonstration: "demonstrations", Preference: "pairs", Ranking: "rankings"}.get(kind, "prompts")
    noun = "answers with a label each" if kind is UnpairedPreference else noun
    console.print(f"{len(records)} {noun}, {findings.prompts} different prompts")
    for count, words in ((findings.repeated, "repeated"), (findings.contradicted, "contradicted by another")):
        if count:
            console.print(f"{count} of them {words}")
    for name, share in balance(records).items():
        console.print(f"{name}: {100 * share:.1f} %")
    return Found(kind, records, findings.prompts, has_answers(config.data))


def has_answers(path: str) -> bool:
    """Whether each of the first rows has a field ``answer`` that ends in a number: a reward that can be checked."""
    rows: list[Row] = []
    for row in read_rows(path, streaming=True):
        rows.append(row)
        if len(rows) == 20:
            break
    answers = [row.value.get("answer") if isinstance(row.value, dict) else None for row in rows]
    return bool(rows) and all(each is not None and final_number(str(each)) is not None for each in answers)


def parameters(config: ModelConfig, rank: int | None = None) -> int:
    """How many numbers a model of this shape has, with adapters of a rank or without."""
    model = Model(config)
    if rank is not None:
        model = dataclasses.replace(model, lora=LoraConfig(rank=rank, alpha=rank))
        lora.check(model.lora)  # type: ignore[arg-type]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.param_shapes()))


def in_memory(holding: Holding, total: int, adapters: int | None = None) -> float:
    """Bytes of a method's models: all parameters trained; or adapters, whose base is the reference too.

    >>> in_memory(Holding("kto", 1, 1, 6, ""), 100), in_memory(Holding("kto", 1, 1, 6, ""), 100, 2)
    (2000, 432)
    """
    if adapters is None:
        return TRAINED * holding.trained * total + 4 * holding.frozen * total
    others = max(0, holding.frozen - 1)
    return 4 * total + TRAINED * holding.trained * adapters + 4 * others * total


def needs(total: int, adapters: int, rank: int, memory: float) -> Table:
    """What each method would hold and compute; what does not fit is marked."""
    table = Table(title="what each method needs", title_justify="left")
    for column in ("method", "models", "GiB", f"GiB with LoRA {rank}", "passes"):
        table.add_column(column, justify="left" if column == "method" else "right")
    table.add_column("of which")
    for each in HOLDINGS:
        sizes = [in_memory(each, total), in_memory(each, total, adapters)]
        cells = [f"{size / 2**30:.1f}" + ("" if size <= memory else " (too much)") for size in sizes]
        table.add_row(each.method, str(each.trained + each.frozen), *cells, f"{each.passes:g}", each.how)
    return table


def advice(found: Found, *, judge: bool, four_fit: bool) -> list[str]:
    """Where to start, in sentences; the first names the method.

    The rules are the field's: DPO for most (Rafailov et al. 2023, arXiv:2305.18290), PPO where exploration matters and
    its models fit (Xu et al. 2024, arXiv:2404.10719), KTO for binary signals (Ethayarajh et al. 2024,
    arXiv:2402.01306), AI labels where a clearly stronger judge exists (Lee et al. 2023, arXiv:2309.00267).
    """
    fits = "its models fit" if four_fit else "its models do not fit here without adapters"
    said = []
    if found.kind is Preference:
        said = [
            "Start with jaxalign dpo: pairs are all it needs, and it holds one model.",
            f"If good answers lie outside the pairs, so that exploration matters: jaxalign reward, then ppo ({fits}).",
        ]
    elif found.kind is UnpairedPreference:
        said = ["Start with jaxalign kto: it learns from single answers that were liked or not."]
    elif found.kind is Ranking:
        said = [
            "Start with jaxalign reward: it learns from rankings; its model then serves ppo, online_dpo or best-of-n.",
            f"For ppo, {fits}.",
        ]
    elif found.verifiable:
        said = ["Start with jaxalign grpo and reward.functions {number_match: 1.0}: rows hold answers to check."]
    elif found.kind is Demonstration:
        said = ["Start with jaxalign sft: these are demonstrations; nothing here says which of two answers is better."]
    elif judge:
        said = ["Start with jaxalign judge on sampled answers, then dpo: there are prompts, and a stronger judge."]
    else:
        said = [
            "These are prompts only: no method can tell good from bad yet. Collect pairs or thumbs, "
            "write a reward function (jaxalign grpo), or find a clearly stronger judge (jaxalign judge)."
        ]
    if found.kind in (Preference, UnpairedPreference, Ranking) and judge:
        said.append("A stronger judge can label more answers (jaxalign judge); audit it on these labels first.")
    if found.kind is Demonstration and judge:
        said.append("Then, with the judge: jaxalign generate on the same prompts, jaxalign judge, jaxalign dpo.")
    if len(found.records) < FEW:
        said.append(f"{len(found.records)} examples are few: hold some out, and read the intervals.")
    shares = balance(found.records)
    longer = next((share for name, share in shares.items() if "longe" in name), 0.5)
    if longer > SKEWED:
        said.append(
            f"In {100 * longer:.0f} % of pairs the better answer is the longer one: length may be learned; watch "
            "the words an answer in jaxalign eval tax, or use losses.simpo, whose log-probs are averages."
        )
    liked = shares.get("liked", 0.5)
    if not 0.1 <= liked <= 0.9:
        said.append(f"{100 * liked:.0f} % of answers were liked: kto weighs the two kinds to balance, and says so.")
    said.append("Whatever you train, measure what it cost: jaxalign eval tax --before … --after …")
    return said


def machine_memory() -> float:
    """GiB of the first device and those like it, or of the host."""
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    if all(limits):
        return sum(limits) / 2**30
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        raise UserError("the memory of this machine is not known; give --memory GIB.") from None
