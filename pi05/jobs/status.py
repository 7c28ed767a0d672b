"""A job's last event as status.json in a bucket, written beside the work, which a bucket out of reach does not stop."""

import logging
import threading
import time
from collections.abc import Callable

from pi05.errors import JobError, Unreachable
from pi05.events import Event

PERIOD = 10.0
"""Seconds between two writes of progress; a bucket allows one write a second of an object, and asks money for each."""

_LAST_TRIES = 120.0
"""Seconds that the last event is written again and again before the termination log must be enough."""

log = logging.getLogger("pi05")


class StatusWriter:
    """Writes the newest event in the background, and the last one of all before it returns.

    Args:
        write: Writes an event to storage.
    """

    def __init__(self, write: Callable[[Event], object]) -> None:
        self._write = write
        self._newest: Event | None = None
        self._hurry = threading.Event()
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name="status")
        self._thread.start()

    def put(self, event: Event) -> None:
        """Have an event written: progress with the next turn, anything else at once."""
        self._newest = event
        if event.kind != "progress":
            self._hurry.set()

    def finish(self, event: Event) -> None:
        """Write the last event; nothing is written after it."""
        self._ended.set()
        self._hurry.set()
        with self._writing:
            deadline = time.monotonic() + _LAST_TRIES
            while not self._wrote(event) and time.monotonic() < deadline:
                time.sleep(1)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._hurry.wait(PERIOD)
            self._hurry.clear()
            event = self._newest
            with self._writing:
                if event is None or self._ended.is_set() or not self._wrote(event):
                    continue
            if self._newest is event:
                self._newest = None

    def _wrote(self, event: Event) -> bool:
        """Return whether trying again would be of no use."""
        try:
            self._write(event)
        except Unreachable as error:
            log.warning("status.json: %s", error)
            return False
        except JobError as error:
            log.warning("status.json is not written: %s", error)
        return True
