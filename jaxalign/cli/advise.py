"""The command ``jaxalign advise``: prints what data allow, what each method needs, and which to start with."""

from __future__ import annotations

import dataclasses
import math

from rich.console import Console
from rich.table import Table

from jaxalign.advice import advise
from jaxalign.data.feedback import Signals
from jaxalign.models.paths import resolve
from jaxalign.models.weights import read_config
from jaxalign.settings import check_ranges


@dataclasses.dataclass(frozen=True)
class Config:
    """Recommend a method to start with: jaxalign advise --data FILE --model ID.

    Args:
        data: a file of examples, as `jaxalign data inspect` takes it
        model: the model to align: a directory, .gguf file, hub id or package:file; its weights are not read
        judge: whether a judge clearly stronger than the model is available
        memory: GiB of all devices together; by default that of this machine
        lora_rank: rank of the adapters that the second column of memory is for
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


def run(config: Config) -> None:
    """Prints the advice."""
    check_ranges(config, {"memory": (0.01, math.inf), "lora_rank": (1, 4096)})
    console = Console(highlight=False, soft_wrap=True)
    options = {"judge": config.judge, "memory": config.memory, "lora_rank": config.lora_rank}
    model = read_config(resolve(config.model, weights=False))
    advice = advise(config.data, model, columns=config.columns, signals=config.signals, **options)  # type: ignore[arg-type]
    data = advice.inspection
    nouns = {"sft": "demonstrations", "preference": "pairs", "ranking": "rankings", "unpaired": "labelled answers"}
    console.print(f"{config.data}: {data.reports[config.data]}", markup=False)
    noun = nouns.get(data.kind, "prompts")
    console.print(f"{len(data.records)} {noun}, {data.findings.prompts} different prompts")
    console.print(*(f"{count} {words}\n" for words, count in data.problems.items() if count), sep="", end="")
    console.print(*(f"{name}: {100 * share:.1f} %\n" for name, share in data.shares.items()), sep="", end="")
    memory = f"{advice.memory / 2**30:.1f} GiB"
    console.print(f"model: {advice.parameters / 1e6:.1f}M parameters; memory: {memory}\n")
    table = Table("method", title="what each method needs", title_justify="left")
    for column in ("models", "GiB", f"GiB with LoRA {config.lora_rank}", "passes"):
        table.add_column(column, justify="right")
    table.add_column("of which")
    for cost, *sizes in advice.needs:
        cells = [f"{size / 2**30:.1f}{' (too much)' if size > advice.memory else ''}" for size in sizes]
        table.add_row(cost.method, str(cost.trained + cost.frozen), *cells, f"{cost.passes:g}", cost.steps)
    console.print(table)
    console.print("Activations come on top; they shrink with train.rows_per_microbatch.\n")
    for sentence in advice.sentences:
        console.print(f"• {sentence}", markup=False)
