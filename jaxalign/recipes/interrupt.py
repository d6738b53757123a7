"""Ctrl-C in a training command: the step ends, the state is saved, the same command goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax

from jaxalign.checkpoint import Checkpoints


class Interrupt:
    """Within it, the first Ctrl-C only sets ``asked``, to be looked at between steps; a second one stops at once.

    A state is whole, and its metrics written, between steps only: within one it has been donated. Where Python hands
    out no signals (outside the main thread), or several processes must agree, Ctrl-C stays what it was.
    """

    def __init__(self) -> None:
        self.asked = False
        self._hears = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if self._hears:
            self._before = signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._hears:
            signal.signal(signal.SIGINT, self._before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")  # print is not for signals


@contextlib.contextmanager
def telling(checkpoints: Checkpoints) -> Iterator[None]:
    """A KeyboardInterrupt from within says where the same command goes on, if it does."""
    try:
        yield
    except KeyboardInterrupt:
        step = checkpoints.latest_step()
        raise KeyboardInterrupt("" if step is None else f"the same command goes on after step {step}") from None
