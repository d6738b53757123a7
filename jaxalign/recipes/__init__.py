"""A whole run as a function: one module for each method, each with ``Config``, ``load_config`` and ``train``."""

import importlib
from typing import Any

__all__ = ["Result", "dpo", "grpo", "kto", "online_dpo", "ppo", "reward", "sft"]


def __getattr__(name: str) -> Any:
    # Modules load on first use: `jaxalign dpo` does not import what the other methods need.
    if name == "Result":
        return importlib.import_module("jaxalign.recipes.steps").Result
    if name in __all__:
        return importlib.import_module(f"jaxalign.recipes.{name}")
    raise AttributeError(f"module 'jaxalign.recipes' has no attribute {name!r}")
