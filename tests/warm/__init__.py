"""A Python that starts in 0.1 s: it is forked from one that has imported torch and timm, which else takes seconds.

`PYTHON` takes the command lines of `sys.executable`. Tests that show what a new process imports, or how it ends with
its whole process group, take that one. The server begins with the first command and ends with the tests.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

MEGABYTES = "RMEETO_TESTS_MEGABYTES"  # a variable: of address space that a command may take beside what is imported
_FOLDER = "RMEETO_TESTS_WARM"
_CLIENT = Path(__file__).with_name("client.py")


def _make() -> Path:
    if _FOLDER not in os.environ:  # else the folder is that of the process that started this one
        folder = Path(tempfile.mkdtemp(prefix="warm"))
        os.environ[_FOLDER] = str(folder)
        os.environ["RMEETO_TESTS_ROOT"] = str(_CLIENT.parents[2])
        program = folder / "python"
        program.write_text(f"#!{sys.executable} -IS\n{_CLIENT.read_text()}")
        program.chmod(0o755)
        owner = os.getpid()
        atexit.register(lambda: _end(folder) if os.getpid() == owner else None)
    return Path(os.environ[_FOLDER]) / "python"


def _end(folder: Path) -> None:
    if (folder / "pid").exists():
        os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)


PYTHON = str(_make())
