"""Shared by both sides of the DPO step benchmark: the settings, the rows, and the record of a measurement."""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import itertools
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

PAIRS = 4  # the batch: the first pairs of the file, in one optimiser step
MAX_LENGTH = 512  # tokens of prompt and one answer; nothing may be truncated
BETA = 0.1
STEPS = 4  # the first one, which compiles and allocates, is not counted
ADAMW = {"learning_rate": 1e-6, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
METRICS = ("loss", "logps/chosen", "logps/rejected", "rewards/margins", "grad_norm")  # both sides report these

Texts = tuple[str, str, str]  # prompt, chosen, rejected
Ids = tuple[list[int], list[int], list[int]]


@dataclasses.dataclass
class Measurement:
    """The measurement of one side.

    Attributes:
        side: Name and versions.
        seconds: Wall time of each step, the warm-up step first.
        cpu_seconds: Processor time of each step over all threads. Compare it with ``seconds`` to see other load.
        peak_bytes: Largest resident memory of the process up to the last step.
        positions: Token positions of one forward pass over the batch, with padding.
        pairs: Token ids that reached the model: (prompt, chosen, rejected) of each pair.
        metrics: ``METRICS`` of each step, as this side reports them.
    """

    side: str
    seconds: list[float]
    cpu_seconds: list[float]
    peak_bytes: int
    positions: int
    pairs: list[Ids]
    metrics: list[dict[str, float]]


class Stopwatch:
    """Measures wall and processor time of each step, and the process's peak memory after the last one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peak_bytes = 0

    def start(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        wall, cpu = self._started
        self.seconds.append(time.perf_counter() - wall)
        self.cpu_seconds.append(time.process_time() - cpu)
        unit = 1 if sys.platform == "darwin" else 1024
        self.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def results(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "peak_bytes": self.peak_bytes}


def read_texts(path: str | Path) -> list[Texts]:
    """Returns the first pairs of Anthropic transcripts in a file. Prompts end with the last ``"\\n\\nAssistant:"``."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, PAIRS)]
    texts = []
    for number, row in enumerate(rows, start=1):
        end = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
        prompt = row["chosen"][:end]
        if row["rejected"][:end] != prompt:
            sys.exit(f"{path}, row {number}: chosen and rejected have different prompts. Give pairs of answers to one.")
        texts.append((prompt, row["chosen"][end:], row["rejected"][end:]))
    return texts


def longest(pairs: list[Ids]) -> int:
    """Returns the number of tokens of the longest prompt with one of its answers."""
    return max(len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs)


def distinct(pairs: list[Ids]) -> int:
    """Returns the number of tokens if each prompt counts once and padding does not count."""
    return sum(len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs)


def side_arguments() -> argparse.Namespace:
    """Returns the arguments with which the driver starts a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", required=True, help="path of the model's .gguf file")
    parser.add_argument("--data", required=True, help="file of Anthropic transcripts (.jsonl or .jsonl.gz)")
    parser.add_argument("--out", required=True, help="file to write the measurement to")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    return parser.parse_args()


def write_measurement(measurement: Measurement, path: str) -> None:
    """Writes a measurement as JSON."""
    Path(path).write_text(json.dumps(dataclasses.asdict(measurement)), encoding="utf-8")


def read_measurement(path: str | Path) -> Measurement:
    """Reads a measurement written by ``write_measurement``."""
    return Measurement(**json.loads(Path(path).read_text(encoding="utf-8")))
