"""Everything a pod prints, kept: turns the process's stdout and stderr into the same bytes on stdout and in storage.

It works on file descriptors, so that libraries and child processes are in it, too. The last event is kept once more,
where Kubernetes looks.
"""

import contextlib
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path

from pi05.errors import JobError
from pi05.events import Event

TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words; absent outside a pod."""

PERIOD = 30.0
"""Seconds between two uploads of a log that grows."""

_CHILDREN = 2.0
"""Seconds that a child process may still hold the pipe open at the end."""

log = logging.getLogger("pi05")


def last_words(event: Event) -> None:
    """Leave an event where Kubernetes looks when the container has ended, however it ends."""
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists() and os.access(TERMINATION_LOG, os.W_OK):
            TERMINATION_LOG.write_text(event.line())


@contextlib.contextmanager
def kept(upload: Callable[[bytes], object]) -> Generator[None]:
    """Upload what is printed inside the block, every PERIOD while it grows, and at its end, however it ends.

    Args:
        upload: Writes the whole log; when it fails, the next one carries all that was missed.
    """
    with tempfile.TemporaryFile(prefix="pi05-log-") as file:
        saver = _Saver(file.fileno(), upload)
        with _copied(file.fileno()):
            saver.start()
            try:
                yield
            finally:
                saver.stop()
        saver.save()


@contextlib.contextmanager
def _copied(target: int) -> Generator[None]:
    """Let stdout and stderr go to `target`, a file descriptor, and to stdout."""
    source, sink = os.pipe()
    stdout, stderr = os.dup(1), os.dup(2)
    pump = threading.Thread(target=_pump, args=(source, (stdout, target)), daemon=True, name="output")
    _redirect(sink, sink)
    os.close(sink)
    pump.start()
    try:
        yield
    finally:
        _redirect(stdout, stderr)  # the last ones to write into the pipe are child processes
        pump.join(_CHILDREN)
        os.close(stderr)


def _redirect(stdout: int, stderr: int) -> None:
    """Let stdout and stderr go elsewhere from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def _pump(source: int, targets: tuple[int, ...]) -> None:
    """Copy a pipe to several files until its last writer is gone; one that is full or closed does not stop it."""
    while data := os.read(source, 1 << 16):
        for target in targets:
            rest = data
            with contextlib.suppress(OSError):
                while rest:
                    rest = rest[os.write(target, rest) :]


class _Saver:
    """Uploads a growing file in the background."""

    def __init__(self, file: int, upload: Callable[[bytes], object]) -> None:
        self._file, self._upload = file, upload
        self._saved = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="log upload")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the background; an upload that has begun is waited for, so that it cannot replace a later one."""
        self._ended.set()
        self._thread.join()

    def save(self) -> None:
        """Upload the log when it has grown; say so when that fails, and go on."""
        size = os.fstat(self._file).st_size
        if size == self._saved:
            return
        try:
            self._upload(os.pread(self._file, size, 0))
            self._saved = size
        except JobError as error:
            log.warning("the log could not be saved: %s", error)

    def _run(self) -> None:
        while not self._ended.wait(PERIOD):
            self.save()
