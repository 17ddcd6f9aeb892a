"""When last.pt is written, and leaving with it written."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rmeeto.engine import checkpoint
from rmeeto.engine.preempt import Notice, Order, Preempted
from rmeeto.engine.resume import FILES, snapshot

if TYPE_CHECKING:
    from rmeeto.engine.loop import Training


class Saver:
    """Writes the checkpoints of a training: at the ends of epochs, when the clock says so, when told to leave.

    Attributes:
        seconds: that checkpoints have taken; whoever reads them sets them back.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._world = training, training.world
        self.notice = Notice(training.world, training.run.checkpoint_every)
        self.seconds, self._told = 0.0, False

    def after_step(self) -> None:
        """Save, or save and leave, where it is time.

        Raises:
            Preempted: a process was told to leave.
        """
        order = self.notice.order()
        if order is Order.LEAVE:
            self.save()
            self.leave()
        if order is Order.SAVE:
            try:
                self.save()
            except checkpoint.DiskError as error:  # which may have room the next time; what was saved is intact
                self._world.print(f"note: {error}", "note: the run goes on, and tries again")
                self.notice.saved()

    def in_evaluation(self, before: dict[str, Any]) -> None:
        """Leave where this process was told to; `before`: the state that the training was left in.

        Processes see unequal numbers of batches, so they cannot agree.
        """
        if self.notice.signal is not None:
            if self._world.is_main:
                self._write(before)
            self.leave()

    def save(self) -> None:
        """Write last.pt; the one before it is kept, since a file may be damaged after it was written."""
        training, began = self._training, time.perf_counter()
        training.stop_if_not_finite()
        state = snapshot(training)
        self._world.on_main(lambda: self._write(state))
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.notice.saved()
        training.watchdog.beat()
        every = training.run.checkpoint_every
        if every and not self._told:
            self._told = True
            share = 100 * seconds / (seconds + 60 * every)
            self._world.print(
                f"saving  {FILES[0]} takes {seconds:.1f} s, every {every:g} minutes (--checkpoint_every): {share:.1f} %"
            )

    def _write(self, state: dict[str, Any]) -> None:
        last, previous = (self._training.folder.path / name for name in FILES)
        checkpoint.save(last, state, previous)

    def leave(self) -> None:
        """End a run that was told to leave and has saved."""
        at = self._training.at
        raise Preempted(
            f"{self.notice.signal or 'a signal to another process'}: saved at epoch {at.epoch + 1}, step {at.step}; "
            f"the same command with --resume goes on from {self._training.folder.path / FILES[0]}"
        )
