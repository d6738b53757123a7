"""Tracking: the metrics file of a resumed run, dashboards, progress."""

import io
import json
import sys
import types

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxalign.cli.console import LiveReport
from jaxalign.errors import UserError
from jaxalign.tracking import Clock, Jsonl, LogConfig, Tracker, read_jsonl


def step_metrics(step: int) -> dict:
    return {
        "loss": jnp.float32(0.7) / step,
        "rewards/accuracies": jnp.float32(0.5),
        "rewards/margins": jnp.float32(0.1) * step,
        "num_tokens": jnp.int32(100),
    }


def run(directory, first: int, last: int, *, total: int = 6, resume_step: int | None = None, **options) -> list[str]:
    lines = []
    with Tracker(directory, total_steps=total, resume_step=resume_step, report=lines.append, **options) as tracker:
        for step in range(first, last + 1):
            tracker.log(step, step_metrics(step))
            if step % 2 == 0:
                tracker.log_eval(step, {"loss": 0.1 * step})
    return lines


def test_a_resumed_run_writes_the_file_of_an_uninterrupted_one(tmp_path):
    run(tmp_path / "whole", 1, 6)
    run(tmp_path / "cut", 1, 5)  # stopped in step 5, its last checkpoint of step 3
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    run(tmp_path / "cut", 4, 6, resume_step=3)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert [line["step"] for line in read_jsonl(tmp_path / "cut" / "timings.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_lines_hold_the_step_and_every_metric_exactly(tmp_path):
    run(tmp_path, 1, 2)
    first, second, evaluation = read_jsonl(tmp_path / "metrics.jsonl")
    assert first == {"step": 1, **{name: float(value) for name, value in step_metrics(1).items()}}
    assert second["step"] == 2
    assert evaluation == {"step": 2, "eval/loss": 0.2}


def test_a_new_run_starts_a_new_file(tmp_path):
    run(tmp_path, 1, 6)
    run(tmp_path, 1, 1)
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [1]


def test_every_nth_step_and_the_last_are_logged(tmp_path):
    run(tmp_path, 1, 7, total=7, config=LogConfig(every=3))
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl") if "loss" in line] == [3, 6, 7]


def test_what_is_not_finite_becomes_null(tmp_path):
    sink = Jsonl(tmp_path / "m.jsonl")
    sink.log(1, {"loss": float("nan"), "kl": float("inf"), "margin": 1.0})
    sink.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "loss": None, "kl": None, "margin": 1.0}


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is not a metrics line"):
        run(tmp_path, 1, 1, resume_step=1)


def test_plain_lines_show_loss_accuracy_margin_speed_and_time_left(tmp_path):
    lines = run(tmp_path, 1, 2)
    assert lines[0].startswith("step 1/6  loss 0.7000  accuracy 0.5000  margin 0.1000  ")
    assert lines[0].endswith("tokens/s")  # the first step compiles: no forecast from it
    assert lines[1].endswith(" left")
    assert lines[2] == "eval at step 2: loss 0.2000"


def test_a_terminal_gets_a_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    with LiveReport(
        Console(file=stream, force_terminal=True, color_system="standard", width=100, highlight=False)
    ) as report:
        for step in range(1, 7):
            report(f"step {step}/6  margin {step / 10:.4f}")
        report("eval at step 6: loss 0.2")
    shown = stream.getvalue()
    assert "\x1b[" in shown
    assert "6/6" in shown
    assert "margin 0.6000" in shown
    assert "eval at step 6: loss 0.2" in shown


def test_a_run_without_a_directory_records_in_memory():
    with Tracker(None, total_steps=2) as tracker:
        tracker.log(1, step_metrics(1))
        tracker.log_eval(1, {"loss": 0.5})
    assert [line["step"] for line in tracker.lines] == [1, 1]
    assert tracker.lines[1]["eval/loss"] == 0.5


def test_the_clock_leaves_out_compilation_and_evaluation(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("jaxalign.tracking.time.perf_counter", lambda: now[0])
    clock = Clock(0, 10)
    for step, passed in ((1, 50.0), (2, 2.0), (3, 4.0)):
        now[0] += passed
        clock.count(jnp.int32(8))
        timing = clock.read(step)
        now[0] += 100.0  # an evaluation
        clock.restart()
    assert (timing.seconds, timing.tokens_per_second, timing.left) == (4.0, 2.0, 21.0)


def test_tensorboard_gets_every_scalar(tmp_path):
    pytest.importorskip("tensorboardX")
    run(tmp_path, 1, 2, config=LogConfig(tensorboard=True))
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"rewards/margins" in content
    assert b"eval/loss" in content


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        id = "abc"

        def log(self, metrics, step):
            calls.append(("log", step, sorted(metrics)))

        def finish(self):
            calls.append(("finish",))

    def init(**arguments):
        calls.append(("init", arguments["project"], arguments["id"], arguments["config"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    options = {"config": LogConfig(wandb="project"), "settings": {"beta": 0.1}}
    run(tmp_path, 1, 1, **options)
    run(tmp_path, 2, 2, resume_step=1, **options)
    assert calls[0] == ("init", "project", None, {"beta": 0.1})
    assert calls[1] == ("log", 1, ["loss", "num_tokens", "rewards/accuracies", "rewards/margins"])
    assert calls[3] == ("init", "project", "abc", {"beta": 0.1})
    assert calls[-2:] == [("log", 2, ["eval/loss"]), ("finish",)]


@pytest.mark.parametrize(
    ("module", "config", "command"),
    [
        ("wandb", LogConfig(wandb="project"), r"pip install 'jaxalign\[wandb\]'"),
        ("tensorboardX", LogConfig(tensorboard=True), r"pip install 'jaxalign\[tensorboard\]'"),
    ],
)
def test_a_missing_package_is_named_with_its_command_before_anything_is_written(
    tmp_path, monkeypatch, module, config, command
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=command):
        Tracker(tmp_path / "run", total_steps=1, config=config)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
