"""What a bucket of an object store can do, whoever's it is: named objects with versions, and errors in our words.

A version is what the service calls the content that an object has now: a generation in Google's, an ETag in S3's. Two
writes never have the same one, if their bytes differ. Knows no service; gcs and s3 do.
"""

import contextlib
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import google_crc32c

from pi05.errors import AccessError, DataError, TemporaryError, Unreachable

WORKERS = 16
"""Transfers at once. One stream waits for its round trips most of the time; sixteen fill the line of one machine."""

PART = 16 << 20
"""Bytes of one request of a large transfer: what is sent again when it fails. WORKERS of them are in memory at once."""

PATIENCE = 30.0
"""Seconds that one operation is repeated, with growing pauses, before the bucket counts as unreachable."""

ABSENT = ""
"""The version of an object that does not exist."""

_ANEW = 2
"""How often an upload that arrived damaged is made anew before that is an error."""


class Missing(DataError):
    """There is no such object."""


class Damaged(Unreachable):
    """The bytes that arrived are not those that were sent."""


class Conflict(TemporaryError):
    """The object is of another version than the writer knew; somebody else has written it."""


@dataclass(frozen=True)
class Object:
    """What a service tells of an object.

    Attributes:
        name: Its name.
        size: Bytes.
        version: Of its content.
        updated: When it was written, in seconds since 1970 of the service's own clock.
        crc32c: Its checksum as 8 hex digits; "" where the service was not asked for it, or does not know it.
    """

    name: str
    size: int
    version: str
    updated: float
    crc32c: str


class Bucket(ABC):
    """One bucket.

    Args:
        name: Its name.
        patience: Seconds that an operation is repeated; None: PATIENCE.
    """

    scheme: str

    def __init__(self, name: str, patience: float | None = None) -> None:
        self.name, self.patience = name, PATIENCE if patience is None else patience
        self.url = f"{self.scheme}://{name}"
        self.writer = uuid.uuid4().hex
        self._ahead = 0.0  # seconds that the service's clock is ahead of ours

    def now(self) -> float:
        """Return the service's time in seconds since 1970, as of its last answer."""
        return time.time() + self._ahead

    def heard(self, date: str | None) -> None:
        """Learn the service's clock from the Date of an answer, so that a lease does not depend on ours."""
        with contextlib.suppress(ValueError):
            if date:
                self._ahead = parsedate_to_datetime(date).timestamp() - time.time()

    def read(self, name: str, version: str | None = None) -> bytes:
        """Return an object's content; raise Missing without it."""
        return self.read_at(name, version)[0]

    @abstractmethod
    def read_at(self, name: str, version: str | None = None) -> tuple[bytes, str]:
        """Return an object's content, verified by its checksum, and the version that was read."""

    @abstractmethod
    def read_range(self, name: str, start: int, stop: int, version: str) -> bytes:
        """Return bytes `start` to `stop` (exclusive) of one version."""

    @abstractmethod
    def write(self, name: str, data: bytes, version: str | None = None) -> str:
        """Write an object, verified by its checksum, and return its version.

        Args:
            name: The object.
            data: Its content.
            version: Write only over this one; ABSENT: only when there is none.

        Raises:
            Conflict: It is of another version.
        """

    def write_mine(self, name: str, data: bytes, version: str) -> str:
        """Write like `write`; an answer that was lost, so that a repetition met our own object, is no conflict."""
        try:
            return self.write(name, data, version)
        except Conflict:
            mine = self.mine(name)
            if mine is not None and mine.crc32c == checksum(data):
                return mine.version
            raise

    @abstractmethod
    def mine(self, name: str) -> Object | None:
        """Return an object that this very Bucket has written, its checksum included; None when somebody else has."""

    def write_file(self, name: str, path: Path, crc32c: str) -> None:
        """Upload a file; the service refuses it when its bytes do not have the checksum.

        A file larger than PART goes in parts, of which one that fails is sent again. What arrives damaged, because an
        upload was resumed at another byte than the service had come to, is sent anew from the start.
        """
        for _ in range(_ANEW):
            with contextlib.suppress(Damaged):
                return self.send(name, path, crc32c)
        return self.send(name, path, crc32c)

    @abstractmethod
    def send(self, name: str, path: Path, crc32c: str) -> None:
        """Upload a file once; raise Damaged when it did not arrive as it was sent."""

    @abstractmethod
    def stat(self, name: str) -> Object | None:
        """Return what the service knows of an object, or None without it."""

    @abstractmethod
    def objects(self, prefix: str, checksums: bool = False) -> Iterator[Object]:
        """Yield every object whose name begins with `prefix`, with its checksum if that is wanted."""

    @abstractmethod
    def matching(self, folder: str, names: Sequence[str]) -> list[Object]:
        """Return the objects `<folder>*/<name>`, in the order of names; `folder` ends with a slash."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Return the sorted names directly under a folder, which ends with a slash."""

    @abstractmethod
    def remove(self, name: str, version: str | None = None) -> None:
        """Delete an object, if it exists."""


def checksum(data: bytes) -> str:
    """Return the CRC-32C of bytes as 8 hex digits."""
    found: Any = google_crc32c.Checksum(data)
    return found.digest().hex()


def chosen(objects: Sequence[Object], folder: str, name: str) -> list[Object]:
    """Return those of some objects that are `<folder>*/<name>`, where a `*` is no slash."""
    wanted = f"*/{name}".split("/")
    found: list[Object] = []
    for one in objects:
        parts = one.name.removeprefix(folder).split("/")
        if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
            found.append(one)
    return found


def without_credentials(said: str, login: str, overlay: str) -> AccessError | TemporaryError:
    """Return the error of somebody who has no credentials.

    A person logs in. A pod gets them from an identity server, and the libraries do not tell one that is away for a
    moment from one that knows nothing of this pod: it is worth another try.
    """
    if not _in_pod():
        return AccessError(f"{said}; {remedy(login, overlay)}")
    return TemporaryError(
        f"{said}; the identity server may be away for a moment. If it stays so: {remedy(login, overlay)}"
    )


def remedy(login: str, overlay: str) -> str:
    """Return what gives credentials to whoever runs this: nobody can log in inside a pod."""
    return f"bind the pod's service account to an identity, as in {overlay}" if _in_pod() else f"log in with: {login}"


def _in_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ
