"""Imports point down the layers that CONTRIBUTING.md draws, or stay on a line; the array layer knows no models."""

import ast
import subprocess
import sys
from pathlib import Path

import jaxalign

ROOT = Path(jaxalign.__file__).parent
LAYERS = (
    {"errors", "paths", "keys", "settings", "reporting", "packages", "_checks"},
    {"masking"},
    {"losses", "advantages", "logprobs"},
    {"checkpoint", "tracking", "optim", "stats"},
    {"data", "models"},
    {"loop", "rollout", "rewards"},
    {"methods", "judges"},
    {"evals", "testbed"},
    {"recipes", "compare", "advice"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
STANDARD = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
ARRAY_IMPORTS = STANDARD | {"jax", "jaxtyping", "numpy", "jaxalign"}


def imports(path):
    """Every module name a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "jaxalign":
                yield from (f"jaxalign.{alias.name}" for alias in node.names)
            else:
                yield node.module


def files():
    return [path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem not in ("__init__", "__main__")]


def test_every_module_has_a_layer():
    assert {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files()} <= set(LEVEL)


def test_imports_point_down():
    for path in files():
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports(path):
            if module.startswith("jaxalign."):
                other = module.split(".")[1]
                allowed = other == room or LEVEL[other] <= LEVEL[room]
                assert allowed, f"{path.relative_to(ROOT)} ({room}) imports {module}, which lies above it"


def test_losses_know_arrays_only():
    for path in files():
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room in LAYERS[1] | LAYERS[2]:
            foreign = {module.split(".")[0] for module in imports(path)} - ARRAY_IMPORTS
            assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_flax_stays_inside_models():
    for path in files():
        if path.relative_to(ROOT).parts[0] != "models":
            assert not any(module.split(".")[0] == "flax" for module in imports(path)), path


def test_files_stay_readable():
    for path in files():
        assert len(path.read_text().splitlines()) <= 450, f"{path.relative_to(ROOT)} outgrew its room"


def test_importing_the_losses_costs_little_beyond_jax():
    """At most 0.1 s of processor time, the minimum of three processes."""
    code = "import time, jax; start = time.process_time(); import jaxalign.losses; print(time.process_time() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) <= 0.1
