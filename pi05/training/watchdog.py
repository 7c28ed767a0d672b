"""Steps that the devices were given -> an end when none of them ends any more.

A hung kernel, driver or network holds the GPUs until a person looks: nothing raises. So the time counts in which steps
are unfinished and none ends. What the host does between steps (compiling, restoring, decoding frames, waiting for data,
saving) does not count, because then no step is unfinished.

    given   1  2  3        4                        the trainer waits while more than AHEAD are unfinished
    ended        1  2  3   .  .  .  .  .  .  |      FACTOR medians, at least `floor` seconds: it is hung
"""

import contextlib
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

AHEAD = 2
"""Unfinished steps that the trainer runs ahead of: enough that the devices never wait for it."""
FACTOR = 20
"""Medians of a step's time without the end of one, after which the process is hung."""
FLOOR = 120.0
"""Seconds that are waited at least."""
FIRST = 1800.0
"""Seconds that are waited until a few steps have ended: devices that meet for the first time take a while."""
_FEW, _MANY = 3, 101
"""Steps of which a median says something, and of which it is taken."""
_LOOK = 1.0
"""Seconds between two looks."""


class Computed(Protocol):
    """An array that a device may still be computing."""

    def is_ready(self) -> bool: ...

    def block_until_ready(self) -> object: ...


class Watchdog:
    """Watches the steps of one training from a thread of its own.

    Args:
        on_hung: Called once, from that thread, with a sentence; it ends the process.
        clock: Seconds, monotonic.
        floor, first: Seconds that are waited at least, and until a few steps have ended.
        look: Seconds between two looks.
    """

    def __init__(
        self,
        on_hung: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
        floor: float = FLOOR,
        first: float = FIRST,
        look: float = _LOOK,
    ) -> None:
        self._on_hung, self._clock, self._floor, self._first, self._look = on_hung, clock, floor, first, look
        self._unfinished: deque[Computed] = deque()
        self._seconds: deque[float] = deque(maxlen=_MANY)
        self._moved, self._giving = clock(), False
        self._change = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextlib.contextmanager
    def giving(self) -> Iterator[None]:
        """Give the devices a compiled step inside; some do it before they return, and may hang there."""
        with self._change:
            self._sweep()
            if not self._unfinished:
                self._moved = self._clock()
            self._giving = True
        try:
            yield
        finally:
            self._giving = False

    def given(self, result: Computed) -> None:
        """Take what that step will leave, and wait while more than AHEAD are unfinished."""
        with self._change:
            self._unfinished.append(result)
        while (oldest := self._too_old()) is not None:
            oldest.block_until_ready()

    @property
    def idle(self) -> bool:
        """Whether the devices have done all that they were given."""
        with self._change:
            self._sweep()
            return not self._unfinished

    def check(self) -> None:
        """Say that the process is hung when it is."""
        with self._change:
            self._sweep()
            silent = self._clock() - self._moved if self._unfinished or self._giving else 0.0
            limit, words = self._limit()
        if silent > limit:
            self._ended.set()
            self._on_hung(
                f"no step has ended for {silent:.0f} s, {words}; the stacks of all threads are in the log. The next "
                "start goes on from the last checkpoint; if it hangs again, have the node's GPUs looked at (pi05ctl "
                "doctor)"
            )

    def _too_old(self) -> Computed | None:
        """Return the oldest unfinished step while there are more than AHEAD."""
        with self._change:
            self._sweep()
            return self._unfinished[0] if len(self._unfinished) > AHEAD else None

    def _sweep(self) -> None:
        """Forget what has ended, and remember how long it took."""
        ended = 0
        while self._unfinished and self._unfinished[0].is_ready():
            self._unfinished.popleft()
            ended += 1
        if ended:
            now = self._clock()
            self._seconds.append((now - self._moved) / ended)
            self._moved = now

    def _limit(self) -> tuple[float, str]:
        """Return the seconds after which no step having ended means that none will, and why so many."""
        if len(self._seconds) < _FEW:
            return self._first, f"and at most {self._first:.0f} s are waited for the first ones"
        median = statistics.median(self._seconds)
        words = f"{FACTOR} times the median of {median:.2g} s"
        return max(FACTOR * median, self._floor), f"and at most {words}, at least {self._floor:.0f} s, are waited"

    def _run(self) -> None:
        while not self._ended.wait(self._look):
            self.check()
