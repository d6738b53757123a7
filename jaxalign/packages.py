"""Optional packages, such as matplotlib for pictures."""

from __future__ import annotations

import importlib
from typing import Any

from jaxalign.errors import UserError


def import_package(package: str, extra: str, purpose: str, alternative: str = "") -> Any:
    """Imports an optional package. Call it before long work that needs the package.

    Args:
        package: The package.
        extra: The extra of jaxalign that installs it.
        purpose: What needs the package, as the subject of the error's sentence.
        alternative: What else the user can do, such as "or set picture=false".

    Returns:
        The module.

    Raises:
        UserError: If the package is not installed.

    >>> import_package("no_such_package", "plots", "The picture")
    Traceback (most recent call last):
    jaxalign.errors.UserError: The picture needs no_such_package. Install it with pip install 'jaxalign[plots]'.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        advice = f"Install it with pip install 'jaxalign[{extra}]'" + (f", {alternative}." if alternative else ".")
        raise UserError(f"{purpose} needs {package}. {advice}") from None
