"""Everything a pod prints, kept: turns the process's stdout and stderr into the same bytes on stdout and in storage.

It works on file descriptors, so that libraries and child processes are in it, too. In storage the log lies in parts, of
which only the last one, while it grows, is ever written again; neither memory nor disk holds more than what is not
there yet. The last event is kept once more, where Kubernetes looks.

    printed   ...............................................  pipe -> stdout, and the part that grows
    stored    |part 0, whole |part 1, whole |part 2, so far|   every PERIOD, and at the end
"""

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO

from pi05.errors import JobError
from pi05.events import Event

TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words; absent outside a pod."""

PERIOD = 30.0
"""Seconds between two uploads of a log that grows."""

PART = 1 << 20
"""Bytes after which a part is whole."""

_CHILDREN = 2.0
"""Seconds that a child process may still hold the pipe open at the end."""

log = logging.getLogger("pi05")


def last_words(event: Event) -> None:
    """Leave an event where Kubernetes looks when the container has ended, however it ends."""
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists() and os.access(TERMINATION_LOG, os.W_OK):
            TERMINATION_LOG.write_text(event.line())


@contextlib.contextmanager
def kept(upload: Callable[[int, bytes], object]) -> Generator["Log"]:
    """Upload what is printed inside the block, every PERIOD while it grows, and at its end, however it ends.

    Args:
        upload: Writes a part of the log, given its number; when it fails, it is called again with all that was missed.
    """
    log = Log(upload)
    log.begin()
    try:
        yield log
    finally:
        log.end()


class Log:
    """What this process and its children print between `begin` and `end`.

    Args:
        upload: Writes a part, given its number.
    """

    def __init__(self, upload: Callable[[int, bytes], object]) -> None:
        self._parts = _Parts()
        self._saver = _Saver(self._parts, upload)
        self._drained = threading.Lock()

    def begin(self) -> None:
        """Let stdout and stderr go into the log and to stdout."""
        source, sink = os.pipe()
        self._stdout, self._stderr = os.dup(1), os.dup(2)
        self._pump = threading.Thread(
            target=_pump, args=(source, self._stdout, self._parts.write), daemon=True, name="output"
        )
        _redirect(sink, sink)
        os.close(sink)
        self._pump.start()
        self._saver.start()

    def drain(self) -> None:
        """Let stdout and stderr go where they went before, and wait until all that was printed has come through."""
        if self._drained.acquire(blocking=False):  # once, whoever ends the process
            _redirect(self._stdout, self._stderr)  # the last ones to write into the pipe are child processes
            self._pump.join(_CHILDREN)
            os.close(self._stderr)

    def end(self) -> None:
        """Drain it and upload the rest."""
        self.drain()
        self._saver.stop()
        self._saver.save()


def _redirect(stdout: int, stderr: int) -> None:
    """Let stdout and stderr go elsewhere from here on."""
    with contextlib.suppress(RuntimeError):  # a signal came in the middle of a print
        sys.stdout.flush()
        sys.stderr.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def _pump(source: int, stdout: int, keep: Callable[[bytes], object]) -> None:
    """Copy a pipe until its last writer is gone; a target that is full or closed does not stop it."""
    while data := os.read(source, 1 << 16):
        with contextlib.suppress(OSError):
            rest = data
            while rest:
                rest = rest[os.write(stdout, rest) :]
        with contextlib.suppress(OSError):
            keep(data)


class _Parts:
    """A growing log in temporary files of PART bytes and a little more; what is whole and uploaded is forgotten."""

    def __init__(self) -> None:
        self._change = threading.Lock()
        self._files: deque[IO[bytes]] = deque([_temporary()])
        self._first, self._saved = 0, 0

    def write(self, data: bytes) -> None:
        """Append."""
        with self._change:
            self._files[-1].write(data)
            if self._files[-1].tell() >= PART:
                self._files.append(_temporary())

    def next(self) -> tuple[int, bytes] | None:
        """Return number and content of the first part that has grown since it was uploaded; None: there is none."""
        with self._change:
            file = self._files[0]
            if file.tell() == self._saved:
                return None
            return self._first, os.pread(file.fileno(), file.tell(), 0)

    def uploaded(self, size: int) -> None:
        """Remember how much of the first part is uploaded, and let go of it when it is whole."""
        with self._change:
            self._saved = size
            if len(self._files) > 1 and self._files[0].tell() == size:
                self._files.popleft().close()
                self._first, self._saved = self._first + 1, 0


def _temporary() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="pi05-log-", buffering=0)  # it lives as long as its part


class _Saver:
    """Uploads a growing log in the background."""

    def __init__(self, parts: _Parts, upload: Callable[[int, bytes], object]) -> None:
        self._parts, self._upload = parts, upload
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="log upload")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the background; an upload that has begun is waited for, so that it cannot replace a later one."""
        self._ended.set()
        self._thread.join()

    def save(self) -> None:
        """Upload what has grown; say so when that fails, and go on."""
        try:
            while (part := self._parts.next()) is not None:
                number, data = part
                self._upload(number, data)
                self._parts.uploaded(len(data))
        except JobError as error:
            log.warning("the log could not be saved: %s", error)

    def _run(self) -> None:
        while not self._ended.wait(PERIOD):
            self.save()
