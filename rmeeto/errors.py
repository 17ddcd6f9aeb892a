"""The one exception that means: the user can fix this; and the reason that a file gives."""

from safetensors import SafetensorError


class UserError(ValueError):
    """An input that cannot be used; the message says what was got, what was expected and what to do.

    The command lines print it as one line and leave with exit code 2, without a traceback.
    """


def why_unreadable(error: Exception) -> str:
    """What reading a checkpoint file has raised, as a reason in one line."""
    if isinstance(error, OSError | RuntimeError | SafetensorError) and str(error).strip():
        return str(error).strip().splitlines()[0][:160]
    return "it is no checkpoint of torch, or holds objects besides tensors and plain options"
