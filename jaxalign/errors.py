"""The exception for a user's mistake, and the message of another library's exception."""


class UserError(ValueError):
    """Bad input. The message says what is wrong, where (file, row, field), and what to do.

    The command line prints the message and exits with code 2; library callers may catch it as a ValueError.
    """


def first_line(error: Exception) -> str:
    r"""Returns the first line of an exception's message without its final period, or "no message".

    >>> first_line(ValueError("no such thing.\nMore.")), first_line(ValueError())
    ('no such thing', 'no message')
    """
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")
