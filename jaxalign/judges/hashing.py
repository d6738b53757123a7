"""Hashes of texts: identities of items and questions, and draws that depend on the content alone."""

from __future__ import annotations

import hashlib


def text_hash(*texts: str) -> str:
    """Returns the SHA-256 of texts in hexadecimal digits.

    >>> text_hash("Which?")[:8]
    'f04329d6'
    """
    return _digest(*texts).hex()


def uniform_hash(seed: int, *texts: str) -> float:
    """Returns a number in [0, 1) that depends on the arguments alone.

    >>> uniform_hash(0, "a") == uniform_hash(0, "a") != uniform_hash(1, "a")
    True
    """
    return int.from_bytes(_digest(str(seed), *texts)[:8], "big") / 2**64


def _digest(*texts: str) -> bytes:
    # A model may write half a character, which plain UTF-8 refuses.
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).digest()
