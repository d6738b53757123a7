"""Ctrl-C during training: the current step ends, its state is saved, and the run can be resumed."""

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
    """A context in which the first Ctrl-C only sets ``requested``, which the loop reads between steps.

    A second Ctrl-C stops at once. Within a step the state is donated, so it can only be saved between steps. Outside
    the main thread Python delivers no signals, and several processes would have to agree: there Ctrl-C is unchanged.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_active = threading.current_thread() is threading.main_thread() and jax.process_count() == 1
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if self._is_active:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_active:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # print is not safe within a signal handler.
        os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")


@contextlib.contextmanager
def describe_interrupt(checkpoints: Checkpoints) -> Iterator[None]:
    """Gives a KeyboardInterrupt from within a message that names the step to resume from, if there is one."""
    try:
        yield
    except KeyboardInterrupt:
        step = checkpoints.latest_step()
        raise KeyboardInterrupt("" if step is None else f"rerun to resume after step {step}") from None
