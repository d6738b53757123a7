"""jaxalign: align language models in JAX with pure, composable functions.

``jaxalign.losses``, ``jaxalign.advantages`` and ``jaxalign.logprobs`` are functions of arrays and do not depend on
models. ``load_model``, ``generate`` and ``loop`` apply them to models. Names load on first use, so that importing the
package is fast.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxalign.models.model import Model as Model
    from jaxalign.models.params import average_params as average_params
    from jaxalign.models.sharding import make_mesh as make_mesh
    from jaxalign.models.tokenizer import load_tokenizer as load_tokenizer
    from jaxalign.models.weights import load_model as load_model
    from jaxalign.models.weights import save_model as save_model
    from jaxalign.rollout.generate import generate as generate

__version__ = "0.1.0"

_HOME = {
    "Model": "jaxalign.models.model",
    "average_params": "jaxalign.models.params",
    "generate": "jaxalign.rollout.generate",
    "load_model": "jaxalign.models.weights",
    "load_tokenizer": "jaxalign.models.tokenizer",
    "make_mesh": "jaxalign.models.sharding",
    "save_model": "jaxalign.models.weights",
}
_MODULES = {module.name for module in pkgutil.iter_modules(__path__)}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"jaxalign.{name}")
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
