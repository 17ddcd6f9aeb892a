"""The argument parser of the small commands, which shows what it cannot read without obeying it."""

from __future__ import annotations

import argparse
from typing import NoReturn

from rmeeto.errors import shown


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose complaints are `shown`: exit code 2 after the usage and a line."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))
