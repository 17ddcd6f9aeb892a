"""A step that never ends: it is said, and in the end every process writes down where it hangs and gives up."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep

from rmeeto.engine.dist import PATIENCE, World

FIRST_WORD = 30.0  # seconds without a step until the main process says so; the next after twice as many
GRACE = 5.0  # seconds in which the others write down where they hang; the end of one is an error in the others
EXIT_CODE = 1
STOPPED = 5.0  # seconds that a wait took too long: the process was stopped (Ctrl-Z), and nothing could move


class Watchdog:
    """Ends this process where nothing has moved for long: a peer is gone without a word, or a collective hangs.

    All processes of a run wait for one another, so all of them come to this, each with its own stacks; a launcher that
    was given restarts then starts them anew.

    Args:
        folder: where stacks-rank<k>.txt is written (stderr takes it where that fails).
        patience: without a `beat` until this process ends.
    """

    def __init__(self, world: World, folder: Path, patience: timedelta = PATIENCE) -> None:
        self._world, self._file = world, folder / f"stacks-rank{world.rank}.txt"
        self._patience = patience.total_seconds()
        self._done = threading.Event()
        self.beat()

    def __enter__(self) -> Watchdog:
        self.beat()
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def beat(self) -> None:
        """Something has moved."""
        self._last, self._word = monotonic(), FIRST_WORD

    def _watch(self) -> None:
        every, before = min(1.0, self._patience / 4), monotonic()
        while not self._done.wait(every):
            now = monotonic()
            if now - before > every + STOPPED:
                self.beat()
            before, idle = now, now - self._last
            if idle >= self._patience:
                self._give_up(idle)
            elif idle >= self._word:
                self._word *= 2
                if self._world.is_main:
                    end = f"the run ends after {self._patience / 60:g} minutes of this"
                    print(f"note: no step for {idle:.0f} s; {end}", file=sys.stderr, flush=True)

    def _give_up(self, idle: float) -> None:
        where = str(self._file)
        try:
            with open(self._file, "w") as file:
                faulthandler.dump_traceback(file)
        except OSError:
            faulthandler.dump_traceback(sys.stderr)
            where = "above"
        print(
            f"error: rank {self._world.rank} has done no step for {idle:.0f} s; where its threads are stands {where}. "
            "With --resume the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        sleep(GRACE)
        os._exit(EXIT_CODE)  # the main thread may be in a call that never returns
