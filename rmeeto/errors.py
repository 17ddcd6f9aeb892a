"""The one exception that means: the user can fix this; how names are shown; the reason that a file gives."""


def shown(text: object) -> str:
    """A text in one line that a terminal only displays: what is not printable stands escaped, as in Python's `repr`.

    Names of files, classes and tensors are anybody's: escape codes, line ends, bytes that are no UTF-8 or marks that
    turn the direction of writing would otherwise act where they are printed.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


class UserError(ValueError):
    """An input that cannot be used; the message says what was got, what was expected and what to do.

    The command lines print it and leave with exit code 2, without a traceback.

    Args:
        lines: of the message, each `shown`: a line end within one, such as a file's name has, starts no line.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(shown, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


def why_unreadable(error: Exception) -> str:
    """What reading a checkpoint file has raised, as a reason in one line."""
    from safetensors import SafetensorError  # not above: the doctor runs without it

    if isinstance(error, OSError | RuntimeError | SafetensorError) and str(error).strip():
        return str(error).strip().splitlines()[0][:160]
    return "it is no checkpoint of torch, or holds objects besides tensors and plain options"
