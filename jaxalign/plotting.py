"""Pictures need matplotlib, an optional dependency that is slow to import."""

from __future__ import annotations

import importlib.util

from jaxalign.errors import UserError


def check_matplotlib(alternative: str = "") -> None:
    """Checks that a picture can be drawn, before the work that it shows.

    Args:
        alternative: What else the user can do, such as "or set picture=false".

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        installed = importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # sys.modules names it without a module
        installed = False
    if not installed:
        advice = "Install it with pip install 'jaxalign[plots]'" + (f", {alternative}." if alternative else ".")
        raise UserError(f"The picture needs matplotlib. {advice}")
