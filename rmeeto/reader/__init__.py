"""The one reader of checkpoint files: plain values and tensors, and none of a file's code.

`file.py` finds the records of a file and verifies them, `machine.py` runs its pickle, and `values.py` lists the names
that the pickle may use.
"""

from rmeeto.reader.file import DIGEST, digest, read
from rmeeto.reader.safetensors import read_header, read_safetensors
from rmeeto.reader.values import Unreadable, printable

__all__ = ["DIGEST", "Unreadable", "digest", "printable", "read", "read_header", "read_safetensors"]
