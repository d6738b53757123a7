"""The one exception for a user's mistake, and what another library's exception says, for its sentence."""


class UserError(ValueError):
    """Bad input, told in one sentence: what is wrong, where (file, row, field), and what to do.

    The command line prints the sentence and exits with code 2; library callers may catch it as a ValueError.
    """


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or that it says nothing.

    >>> first_line(ValueError("no such thing.\\nMore.")), first_line(ValueError())
    ('no such thing', 'no message')
    """
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
