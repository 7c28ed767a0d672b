"""The right to write a run in a bucket: an object that its holder writes again and again.

    nobody --write, if there is none--> held --every BEAT, if it is still of my version--> held --> released
                                         |
                                         +--not written for TTL: whoever comes next writes over that version-->

The service's clock alone counts. A holder that was cut off from the bucket and comes back has not lost the lease unless
another has taken it; before it writes anything it makes sure.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Generator
from typing import Any

from pi05.errors import JobError, TemporaryError
from pi05.storage.bucket import ABSENT, Bucket, Conflict, Missing, Object
from pi05.storage.interface import Lease

TTL = 60.0
"""Seconds without a sign of life after which a lease may be taken over: as long as a dead pod's run stands still."""

BEAT = 15.0
"""Seconds between two signs of life: several may fail before the lease expires."""

_POLL = 1.0
"""Seconds between two looks at a lease that another process holds."""

log = logging.getLogger("pi05")


class BucketLease(Lease):
    """A lease object that this process holds.

    Args:
        bucket: Where it is.
        name: The object.
        version: The one that was written to take it.
        what: What it is the right to write.
    """

    def __init__(self, bucket: Bucket, name: str, version: str, what: str) -> None:
        self._bucket, self._name, self._version, self.what = bucket, name, version, what
        self._lost = False
        self._confirmed = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @property
    def lost(self) -> bool:
        return self._lost

    def confirm(self) -> None:
        """Make sure that the lease is held, asking the bucket when the last sign of life is old.

        Raises:
            TemporaryError: It is lost, or the bucket cannot be reached.
        """
        self.check()
        if time.monotonic() - self._confirmed > TTL / 2:
            self.renew()
            self.check()

    def renew(self) -> None:
        """Give a sign of life; find out whether the lease is lost."""
        with self._lock:
            if self._lost or self._ended.is_set():
                return
            started = time.monotonic()
            try:
                self._version = self._write()
                self._confirmed = started
            except Conflict:
                self._lost = True
                log.warning("the lease of %s is lost: another process has taken it, or it was deleted", self.what)

    def _write(self) -> str:
        """Write over my last sign of life, or over a later one of mine whose answer was lost; return its version."""
        try:
            return self._bucket.write(self._name, _content(), self._version)
        except Conflict:
            mine = self._bucket.mine(self._name)
            if mine is None:
                raise
            return self._bucket.write(self._name, _content(), mine.version)

    def keep(self) -> None:
        """Give signs of life until the lease ends or is lost."""
        while not self._ended.wait(BEAT) and not self._lost:
            with contextlib.suppress(JobError):  # the bucket is unreachable; whoever writes meanwhile is told so
                self.renew()

    def release(self) -> None:
        """Free the lease for the next process, unless it is lost."""
        with contextlib.suppress(JobError):  # it expires by itself
            self.renew()
            with self._lock:
                self._ended.set()
                if not self._lost:
                    self._bucket.remove(self._name, self._version)
        self._ended.set()


@contextlib.contextmanager
def hold(bucket: Bucket, name: str, what: str) -> Generator[BucketLease]:
    """Hold the lease `name`; raise TemporaryError when another process holds it and gives signs of life."""
    lease = BucketLease(bucket, name, _take(bucket, name, what), what)
    beat = threading.Thread(target=lease.keep, daemon=True, name=f"lease of {what}")
    beat.start()
    try:
        yield lease
    finally:
        lease.release()
        beat.join(timeout=1)


def is_held(bucket: Bucket, name: str) -> bool:
    """Return whether some process holds the lease."""
    found = bucket.stat(name)
    return found is not None and not _expired(bucket, found)


def _take(bucket: Bucket, name: str, what: str) -> str:
    """Take a lease and return its version; wait for one whose holder may be dead to expire."""
    seen = None
    while True:
        found = bucket.stat(name)
        if found is None or _expired(bucket, found):
            with contextlib.suppress(Conflict):  # another was faster; its lease is looked at next
                return bucket.write_mine(name, _content(), found.version if found else ABSENT)
            continue
        if seen is not None and found.version != seen:
            raise TemporaryError(
                f"another process ({_holder(bucket, name)}) is writing {what}; wait for it or cancel it"
            )
        if seen is None:
            log.info("%s is leased to %s; waiting up to %.0f s for a sign of life", what, _holder(bucket, name), TTL)
        seen = found.version
        time.sleep(_POLL)


def _expired(bucket: Bucket, found: Object) -> bool:
    return bucket.now() - found.updated > TTL


def _content() -> bytes:
    """Return what a lease says of its holder; in a pod the host is the pod. No two signs of life are alike: an ETag is
    the same for the same bytes, and a lease whose version stays looks dead."""
    return json.dumps({"holder": f"{socket.gethostname()}, process {os.getpid()}", "sign": uuid.uuid4().hex}).encode()


def _holder(bucket: Bucket, name: str) -> str:
    """Return who holds a lease, in words."""
    with contextlib.suppress(Missing, ValueError, KeyError, TypeError):
        said: Any = json.loads(bucket.read(name))
        return str(said["holder"])
    return "unknown"
