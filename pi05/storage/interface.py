"""What every storage can do, whatever it is made of."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from pi05.errors import DataError, TemporaryError
from pi05.storage import artefact
from pi05.storage.artefact import MANIFEST, Entry

_AT_ONCE = 32
"""Objects that `read_all` reads at a time: a bucket answers in some 30 ms, whatever else it is asked."""


class Lease:
    """The right to write a run. This one ends with the block that holds it and cannot be lost before."""

    @property
    def lost(self) -> bool:
        """Whether another process has taken it; whoever held it must not write any more."""
        return False

    def check(self) -> None:
        """Raise TemporaryError when the lease is lost."""
        if self.lost:
            raise TemporaryError("another process has taken over this run; this one stops and leaves it alone")


class Storage(ABC):
    """A root addressed by URL, with objects and artefacts below it."""

    url: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return the content of one object; raise DataError when it does not exist."""

    @abstractmethod
    def write(self, key: str, data: bytes, absent: bool = False) -> bool:
        """Replace one object: a reader sees the old or the new content, never a part.

        Args:
            key: The object's name.
            data: Its new content.
            absent: Leave an object alone that exists; of several writers at once, one wins.

        Returns:
            Whether it was written; False only with `absent`.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether an object, or an artefact with its manifest, exists."""

    @abstractmethod
    def modified(self, key: str) -> float:
        """Return when an object was written or an artefact completed, in seconds since 1970; DataError without it."""

    @abstractmethod
    def children(self, key: str) -> list[str]:
        """Return the sorted names directly under a folder; empty when there is none. Temporary names are left out."""

    @abstractmethod
    def artefacts(self, key: str) -> list[str]:
        """Return the sorted names directly under a folder that are complete artefacts."""

    def numbered(self, key: str) -> list[int]:
        """Return the numbers that name complete artefacts directly under a folder, ascending."""
        return sorted(int(name) for name in self.artefacts(key) if name.isdigit())

    def parts(self, key: str) -> frozenset[str]:
        """Return what a complete artefact holds: the names directly under it; raise DataError without it."""
        return artefact.parts_of(artefact.load_manifest(self.read(f"{key}/{MANIFEST}")))

    def holding(self, key: str, part: str) -> list[int]:
        """Return the numbers that name complete artefacts directly under a folder which hold a part, ascending.

        One with a damaged manifest counts: whoever opens it is told.
        """
        found = {name.split("/")[-2]: content for name, content in self.scan(key, [MANIFEST]).items()}
        return sorted(int(name) for name, content in found.items() if name.isdigit() and _holds(content, part))

    @abstractmethod
    def incomplete(self, key: str) -> list[str]:
        """Return the sorted names directly under a folder that were begun, or deleted, and are not complete."""

    @abstractmethod
    def discard(self, key: str) -> None:
        """Remove what an artefact that was never completed has left; a complete one stays.

        The caller sees to it that nobody is writing it.
        """

    @abstractmethod
    def scan(self, prefix: str, names: Iterable[str]) -> dict[str, bytes]:
        """Return every object `<prefix>/*/<name>` that exists, by key, in few round trips; a name may hold `*`, too."""

    def read_all(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the content of those objects that exist, by key; many are read at a time."""
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return {key: data for key, data in pool.map(self._read_if_there, keys) if data is not None}

    def _read_if_there(self, key: str) -> tuple[str, bytes | None]:
        try:
            return key, self.read(key)
        except DataError:
            return key, None

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object or folder; the manifest goes first, so that no reader takes a half-deleted artefact."""

    @abstractmethod
    def stage(self, key: str) -> AbstractContextManager[Path]:
        """Yield an empty folder that becomes the artefact `key`, manifest last, when the block ends without error.

        An incomplete earlier attempt is removed; a complete artefact is never overwritten.

        Raises:
            ConfigError: The artefact already exists.
            TemporaryError: The disk is full, or the storage cannot be reached; the staging folder is removed.
        """

    @abstractmethod
    def publish(self, folder: Path, key: str) -> None:
        """Make the artefact `key` of a complete local folder, which stays as it is; otherwise like `stage`."""

    @abstractmethod
    def add(self, folder: Path, key: str) -> dict[str, Entry]:
        """Bring the files of a local folder to where an artefact is being made; return its part of the manifest.

        Several processes may do so at once, with other files each; `complete` makes an artefact of them. The files may
        be moved.

        Raises:
            TemporaryError: The disk is full, or the storage cannot be reached.
        """

    @abstractmethod
    def complete(self, key: str, files: dict[str, Entry]) -> None:
        """Write the manifest over what has been added; what else lies there, from an earlier attempt, is removed.

        Raises:
            ConfigError: The artefact already exists.
            TemporaryError: A file is missing or another one; the storage cannot be reached.
        """

    @abstractmethod
    def verify(self, key: str, parts: tuple[str, ...] = ()) -> list[str]:
        """Return what is wrong with an artefact, or some parts of it, one line a file; empty when all agree."""

    @abstractmethod
    def open(self, key: str, parts: tuple[str, ...] = ()) -> Path:
        """Return a local folder with an artefact, verified, to be read only; raise DataError naming the bad files.

        Args:
            key: The artefact.
            parts: Names directly under it; nothing else is fetched or verified. Empty: all.
        """

    def borrow(self, key: str, parts: tuple[str, ...] = ()) -> AbstractContextManager[Path]:
        """Yield what `open` returns; a copy that this machine had to fetch is removed when the block ends."""
        return contextlib.nullcontext(self.open(key, parts))

    @abstractmethod
    def fetch(self, key: str, folder: Path) -> None:
        """Copy an artefact, verified, manifest included, into a folder that does not exist or is empty.

        Raises:
            DataError: The artefact is damaged; every bad file is named, and the folder is not made.
            TemporaryError: The disk is full, or the storage cannot be reached.
        """

    @abstractmethod
    def scratch(self, key: str) -> Path:
        """Return a local folder for intermediate files; on file:// it is `key` itself, so that a restart finds them."""

    @abstractmethod
    def lease(self, key: str) -> AbstractContextManager[Lease]:
        """Hold the right to write a run; raise TemporaryError when another process holds it."""

    @abstractmethod
    def leased(self, key: str) -> bool:
        """Return whether some process holds the lease."""


def _holds(manifest: bytes, part: str) -> bool:
    try:
        return part in artefact.parts_of(artefact.load_manifest(manifest))
    except DataError:
        return True
