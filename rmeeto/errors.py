"""The one exception that means: the user can fix this; and how names are shown."""

_LONGEST = 2000  # characters of a text that is shown; a name in a tar file can have millions


def shown(text: object) -> str:
    """A text in one line that a terminal only displays: what is not printable stands escaped, as in Python's `repr`.

    Names of files, classes and tensors are anybody's: escape codes, line ends, bytes that are no UTF-8 or marks that
    turn the direction of writing would otherwise act where they are printed. Of a very long text the middle is left
    out.
    """
    whole = str(text)
    if len(whole) > _LONGEST:
        whole = f"{whole[: _LONGEST - 500]} ... {whole[-400:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in whole)


class UserError(ValueError):
    """An input that cannot be used; the message says what was got, what was expected and what to do.

    Which error is raised: `ValueError` in `rmeeto.merge`, `rmeeto.nn`, `rmeeto.ops` and the classes of models, which
    know of no run: an argument is refused (`MergeConfig`, `match`, `Vim`, the settings that a model is merged by);
    and where a decoder or a reader gives its caller a reason, which the caller says of a file. `UserError` everywhere
    else: the cause is what a user brought, settings, files, data, a model or the machine. Every UserError is a
    ValueError, and the commands make one of a ValueError that a setting has caused. Both name sections and fields
    (`OptimConfig: lr=-1`, `run.name`); a command puts them into flags, prints them and leaves with exit code 2,
    without a traceback.

    Args:
        lines: of the message, each `shown`: a line end within one, such as a file's name has, starts no line.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(shown, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)
