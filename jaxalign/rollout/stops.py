"""Stop strings: texts that end a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxalign.errors import UserError
from jaxalign.rollout.generate import Stop


def stop_strings(tokenizer: Any, strings: Sequence[str]) -> Stop | None:
    """Returns a function that finds where a completion ends.

    The function maps a completion's ids to the number of them up to its end, or to None if it has not ended. The last
    token is the first one with which the text contains a stop string; its text may extend beyond that string. Special
    tokens are text here, so they can be stop strings.

    Args:
        tokenizer: decodes the ids.
        strings: the stop strings. Without any the result is None.

    Raises:
        UserError: for an empty string, which every text contains, or one with U+FFFD, which stands for an incomplete
            character.
    """
    for string in strings:
        if not string or "\ufffd" in string:
            raise UserError(f"The stop string {string!r} cannot end a text. Give one of ordinary characters.")
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
