"""The one exception for a user's mistake."""


class UserError(ValueError):
    """Bad input, told in one sentence: what is wrong, where (file, row, field), and what to do.

    The command line prints the sentence and exits with code 2; library callers may catch it as a ValueError.
    """
