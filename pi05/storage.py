"""One door to everything that outlives a process: file:// now, gs:// behind the same methods.

Keys are relative POSIX paths. An artefact (a dataset, a checkpoint, weights) is a folder; it exists when its
MANIFEST.json exists, which names every file with size and crc32c and is written last. Readers verify.
This module knows bytes and names, nothing of what is inside them.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import google_crc32c

from pi05.errors import ConfigError, DataError, TemporaryError

MANIFEST = "MANIFEST.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RunPaths:
    """Names every artefact of a run.

    runs/<run>/{run.json,job.json,status.json,log.txt,lease,work/,checkpoints/<step>/,results/<shard>.json,report/}
    """

    run: str

    @property
    def root(self) -> str:
        """Folder of the run."""
        return f"runs/{self.run}"

    @property
    def spec(self) -> str:
        """What was asked for, written by the controller."""
        return f"{self.root}/run.json"

    @property
    def job(self) -> str:
        """What the job was told."""
        return f"{self.root}/job.json"

    @property
    def status(self) -> str:
        """The job's last event."""
        return f"{self.root}/status.json"

    @property
    def log(self) -> str:
        """Everything the job printed."""
        return f"{self.root}/log.txt"

    @property
    def lease(self) -> str:
        """Held by the one process that may write this run."""
        return f"{self.root}/lease"

    @property
    def work(self) -> str:
        """Intermediate files that a restarted job reuses."""
        return f"{self.root}/work"

    @property
    def checkpoints(self) -> str:
        """Folder of checkpoints, one folder a step."""
        return f"{self.root}/checkpoints"

    @property
    def results(self) -> str:
        """Folder of evaluation results."""
        return f"{self.root}/results"

    def checkpoint(self, step: int) -> str:
        """Checkpoint artefact of a step."""
        return f"{self.checkpoints}/{step}"


def check_key(key: str) -> str:
    """Return `key` when it stays inside the storage root; raise DataError otherwise."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\\" in key or re.search(r"[\x00-\x1f]", key):
        raise DataError(f"storage key {key!r} is not a relative path without '..'")
    return key


def crc32c(path: Path) -> str:
    """Return the CRC-32C (Castagnoli, RFC 3720) of a file as 8 hex digits."""
    checksum: Any = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return checksum.digest().hex()


@contextlib.contextmanager
def disk_errors(action: str) -> Generator[None]:
    """Turn a full or read-only disk during `action` into an error with the remedy.

    The writer of checkpoints (tensorstore) reports a full disk as a ValueError with the system's words.
    """
    full = TemporaryError(
        f"disk full while {action}; nothing that was complete is lost; free some space and run the same command again"
    )
    try:
        yield
    except ValueError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise full from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise ConfigError(f"not allowed to write while {action}: {error}; choose another storage") from error
        raise


class Storage:
    """A root folder addressed by URL.

    Args:
        url: `file:///absolute/path`.

    Raises:
        ConfigError: The URL is not one this version can open.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "file" or parts.netloc or not parts.path.startswith("/"):
            raise ConfigError(f"storage {url!r} is not supported; use file:///absolute/path")
        self.url = url
        self.root = Path(unquote(parts.path))

    def path(self, key: str) -> Path:
        """Return where a key lies on disk, whether it exists or not."""
        return self.root / check_key(key)

    def read(self, key: str) -> bytes:
        """Return the content of one object; raise DataError when it does not exist."""
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{self.url}/{key} does not exist") from error

    def write(self, key: str, data: bytes) -> None:
        """Replace one object atomically: a reader sees the old or the new content, never a part."""
        target = self.path(key)
        with disk_errors(f"writing {key}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(target)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise

    def exists(self, key: str) -> bool:
        """Return whether an object, or an artefact with its manifest, exists."""
        path = self.path(key)
        return (path / MANIFEST).is_file() if path.is_dir() else path.is_file()

    def children(self, key: str) -> list[str]:
        """Return the sorted names directly under a folder; empty when there is none. Temporary names are left out."""
        path = self.path(key)
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))

    def delete(self, key: str) -> None:
        """Remove an object or folder; the manifest goes first, so that no reader takes a half-deleted artefact."""
        path = self.path(key)
        if path.is_dir():
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def stage(self, key: str) -> Generator[Path]:
        """Yield an empty folder that becomes the artefact `key`, manifest last, when the block ends without error.

        An incomplete earlier attempt is removed; a complete artefact is never overwritten.

        Raises:
            ConfigError: The artefact already exists.
            TemporaryError: The disk is full; the staging folder is removed.
        """
        target = self.path(key)
        if self.exists(key):
            raise ConfigError(f"{self.url}/{key} already exists and is never overwritten")
        staging = target.parent / f".{target.name}.incomplete"
        with disk_errors(f"writing {key}"):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            try:
                yield staging
                _write_manifest(staging)
                shutil.rmtree(target, ignore_errors=True)
                staging.rename(target)
                _sync(target.parent)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise

    def verify(self, key: str) -> list[str]:
        """Return what is wrong with an artefact, one line a file; empty when every checksum agrees."""
        folder = self.path(key)
        try:
            files = _manifest_files(folder)
        except DataError as error:
            return [str(error)]
        return [problem for name, entry in sorted(files.items()) if (problem := _problem(folder, name, entry))]

    def open(self, key: str) -> Path:
        """Return the local folder of an artefact after verifying it; raise DataError naming each bad file."""
        problems = self.verify(key)
        if problems:
            raise DataError(f"{self.url}/{key} cannot be used: " + "; ".join(problems))
        return self.path(key)

    @contextlib.contextmanager
    def lease(self, key: str) -> Generator[None]:
        """Hold the right to write a run; raise TemporaryError when another process holds it.

        The operating system frees the lease with the process, however it ends.
        """
        path = self.path(key)
        with disk_errors(f"writing {key}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        with file:
            if not _lock(file, attempts=10):
                raise TemporaryError(
                    f"another process is writing {key.removesuffix('/lease')}; wait for it or cancel it first"
                )
            yield

    def leased(self, key: str) -> bool:
        """Return whether some process holds the lease."""
        path = self.path(key)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def _lock(file: BinaryIO, attempts: int) -> bool:
    """Lock a file exclusively; try more than once, because `leased` looks by holding it for a moment."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.05)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _sync(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_manifest(folder: Path) -> None:
    """Write MANIFEST.json for every file below `folder`, synced to disk first."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "crc32c": crc32c(path)}
    target = folder / MANIFEST
    with target.open("w") as file:
        json.dump({"v": 1, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _manifest_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's file table; raise DataError when it is missing or not of our form."""
    try:
        files: object = json.loads((folder / MANIFEST).read_bytes())["files"]
        if not isinstance(files, dict):
            raise TypeError("files is not a table")
        return cast("dict[str, dict[str, Any]]", files)
    except FileNotFoundError as error:
        raise DataError(f"{MANIFEST} is missing, so it was never completed; make it again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{MANIFEST} is damaged ({error}); make it again") from error


def _problem(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    """Return what is wrong with one file of a manifest, or None."""
    path = folder / check_key(name)
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != entry.get("size"):
        return f"{name} has {size} bytes, the manifest says {entry.get('size')}"
    found = crc32c(path)
    if found != entry.get("crc32c"):
        return f"{name} has crc32c {found}, the manifest says {entry.get('crc32c')}"
    return None
