"""Stop strings: where a completion ends by what it says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxalign.errors import UserError
from jaxalign.rollout.generate import Stop


def stop_strings(tokenizer: Any, strings: Sequence[str]) -> Stop | None:
    """A function from a completion's ids to the number of them at which it ends, None while it goes on.

    The end is the first token with which the text contains one of the strings; that token is the completion's last,
    with what its text holds beyond the string. Special tokens count as text, so that they can be stop strings.

    Args:
        tokenizer: decodes the ids.
        strings: the stop strings; without any the answer is None, and nothing is looked for.

    Raises:
        UserError: for an empty string, which every text contains, or one with U+FFFD, the sign for half a character.
    """
    for string in strings:
        if not string or "\ufffd" in string:
            raise UserError(f"the stop string {string!r} can end nothing; give one of ordinary characters")
    if not strings:
        return None

    def has_ended(ids: Int[np.ndarray, " c"]) -> bool:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in strings)

    def stop(ids: Int[np.ndarray, " c"]) -> int | None:
        if not has_ended(ids):
            return None
        return next(length for length in range(1, len(ids) + 1) if has_ended(ids[:length]))

    return stop
