"""Checkpoints of a running training: what is due is copied on the devices, and a thread writes the copy.

    step 1000 |copy|step 1001|step 1002|...                 training waits for the copy, for milliseconds
                   |fetch and write, piece by piece|deliver|
    step 2000                |copy|...                      and for the one before, if that is not written yet

There is one copy at a time. Where a GPU has no room for it training waits while the state itself is written. Either way
the host holds pieces only: see pi05.model.arrays.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pi05.config import TrainConfig
from pi05.errors import JobError, Stopped
from pi05.events import EventWriter
from pi05.training import checkpoint, processes, snapshot
from pi05.training.checkpoint import Checkpoint
from pi05.training.delivery import Delivery, delivery
from pi05.training.surroundings import Surroundings, warn


@contextlib.contextmanager
def saver(around: Surroundings, train: TrainConfig, check: Callable[[], None]) -> Iterator["Saver"]:
    """Yield where the trainer leaves its checkpoints; when it is left, all of them are in storage.

    Args:
        around: The storage, and the run's names and voice.
        train: Says which checkpoints stay.
        check: Called before each is written, in a thread; raises when none may be.

    Raises:
        JobError: A checkpoint could not be written or delivered, unless training ended with another error.
    """
    with delivery(around, train.keep_every, train.steps) as place, ThreadPoolExecutor(1, "checkpoint") as thread:
        one = Saver(place, thread, check, around.events)
        try:
            yield one
        except JobError as error:
            if isinstance(error, Stopped):
                one.wait()
            raise
        one.wait()


class Saver:
    """Has checkpoints written, one at a time."""

    def __init__(
        self, place: Delivery, thread: ThreadPoolExecutor, check: Callable[[], None], events: EventWriter
    ) -> None:
        self._place, self._thread, self._check, self._events = place, thread, check, events
        self._writing: Future[bool] | None = None
        self._whole = False  # whether that is one to go on from
        self._owed = False  # one to go on from was left out
        self._room: dict[bool, bool] = {}

    def save(self, what: Checkpoint, whole: bool, last: bool) -> None:
        """Have a checkpoint written; training may go on, and change its state, when this returns.

        Args:
            what: With the arrays of the state, which are copied.
            whole: Whether training shall be able to go on from it, so that it holds all of them.
            last: Whether the run ends with it; then it is not left out, whatever that takes.

        Raises:
            JobError: The checkpoint before could not be written.
        """
        if not self._turn(last):
            self._owed = self._owed or whole
            warn(self._events, f"checkpoint {what.meta.step} is left out: the one before is still on its way")
            return
        self._whole = whole or self._owed
        self._owed = False
        what = what if self._whole else what.for_policies()
        fits, read = self._fits(what), threading.Event()
        self._writing = self._thread.submit(self._write, what.copied() if fits else what, last, read)
        if not fits:
            read.wait()

    def check(self) -> None:
        """Raise what has gone wrong with a checkpoint meanwhile; call it now and then."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when no checkpoint is being written; raise what went wrong."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            there = writing.result()
            self._owed = self._owed or (self._whole and not there)

    def _turn(self, last: bool) -> bool:
        """Return whether the next one may begin, after waiting for the one before.

        Several processes do not wait: theirs is over when it is in the bucket, which may be out of reach for hours.
        """
        busy = self._writing is not None and not self._writing.done()
        if processes.others() and not last and processes.choice_of_first(busy):
            return False
        self.wait()
        return True

    def _fits(self, what: Checkpoint) -> bool:
        """Return whether the devices have room for a copy; decided once, because the copy itself will count as used."""
        if self._whole not in self._room:
            self._room[self._whole] = snapshot.fits((what.params, what.state))
            if not self._room[self._whole]:
                warn(self._events, "the devices have no room for a copy of the state: training waits for checkpoints")
        return self._room[self._whole]

    def _write(self, what: Checkpoint, last: bool, read: threading.Event) -> bool:
        """Write and deliver a checkpoint; say when its arrays have been read, and return whether it will be there."""

        def fill(folder: Path) -> None:
            checkpoint.write(folder, what)
            read.set()

        try:
            self._check()
            return self._place.put(what.meta.step, fill, what.state is not None, last)
        finally:
            read.set()
