"""The one exception that means: the user can fix this."""


class UserError(ValueError):
    """An input that cannot be used; the message says what was got, what was expected and what to do.

    The command lines print it as one line and leave with exit code 2, without a traceback.
    """
