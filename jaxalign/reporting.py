"""Reports as lines of text: the library reports progress to its caller through a function of one line.

A line of the form ``NAME K/N  REST`` is progress: a terminal may show each such line in place of the one before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Report: TypeAlias = Callable[[str], None]


def silent(line: str) -> None:
    """Ignores the line: the default report of library calls."""
    del line


def progress(items: Iterable[T], name: str, total: int, report: Report, *, interval: float = 2.0) -> Iterator[T]:
    """Yields the items, and reports ``NAME K/N  … left`` at most once per ``interval`` seconds.

    >>> lines = []
    >>> list(progress("abc", "letters", 3, lines.append, interval=0.0))[-1], lines[-1]
    ('c', 'letters 3/3  0s left')
    """
    started = last = time.perf_counter()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - last >= interval:
            last = now
            report(f"{name} {count}/{total}  {format_duration((now - started) / count * (total - count))} left")


def format_duration(seconds: float) -> str:
    """Formats seconds for people.

    >>> format_duration(7.4), format_duration(187), format_duration(7260)
    ('7s', '3m07s', '2h01m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
