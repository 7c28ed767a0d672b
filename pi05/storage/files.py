"""file://: a folder of this machine as storage."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from pi05.errors import AccessError, ConfigError, DataError, TemporaryError
from pi05.storage import artefact
from pi05.storage.artefact import MANIFEST, Entry, disk_errors
from pi05.storage.interface import Lease, Storage
from pi05.storage.names import check_key

_INCOMPLETE = ".incomplete"
_LACKING = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
"""What a file system answers that does not do what it was asked for."""


class FileStorage(Storage):
    """A root folder addressed by URL.

    Args:
        url: `file:///absolute/path`.

    Raises:
        ConfigError: The URL is not of that form.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = _root(url)

    def path(self, key: str) -> Path:
        """Return where a key lies on disk, whether it exists or not."""
        return self.root / check_key(key)

    def read(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError as error:
            raise DataError(f"{self.url}/{key} does not exist") from error

    def write(self, key: str, data: bytes, absent: bool = False) -> bool:
        target = self.path(key)
        with disk_errors(f"writing {key}"):
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                return _move(Path(name), target, absent)
            finally:
                Path(name).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        path = self.path(key)
        return (path / MANIFEST).is_file() if path.is_dir() else path.is_file()

    def modified(self, key: str) -> float:
        path = self.path(key)
        try:
            return (path / MANIFEST if path.is_dir() else path).stat().st_mtime
        except FileNotFoundError as error:
            raise DataError(f"{self.url}/{key} does not exist") from error

    def children(self, key: str) -> list[str]:
        path = self.path(key)
        if not path.is_dir():
            return []
        return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))

    def artefacts(self, key: str) -> list[str]:
        return [name for name in self.children(key) if (self.path(key) / name / MANIFEST).is_file()]

    def incomplete(self, key: str) -> list[str]:
        begun = {path.name[1 : -len(_INCOMPLETE)] for path in self.path(key).glob(f".*{_INCOMPLETE}")}
        return sorted((begun | {*self.children(key)}) - {*self.artefacts(key)})

    def discard(self, key: str) -> None:
        shutil.rmtree(_staging(self.path(key)), ignore_errors=True)
        _making(self.path(key)).unlink(missing_ok=True)
        if not self.exists(key):
            with contextlib.suppress(OSError):
                _remove(self.path(key))

    def scan(self, prefix: str, names: Iterable[str]) -> dict[str, bytes]:
        folder, found = self.path(prefix), dict[str, bytes]()
        for name in names:
            for path in folder.glob(f"*/{check_key(name)}"):
                if path.is_file() and not path.relative_to(folder).parts[0].startswith("."):
                    found[path.relative_to(self.root).as_posix()] = path.read_bytes()
        return found

    def delete(self, key: str) -> None:
        path = self.path(key)
        if path.is_dir():
            (path / MANIFEST).unlink(missing_ok=True)
            _remove(path)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def stage(self, key: str) -> Generator[Path]:
        target = self.path(key)
        staging = _staging(target)
        with disk_errors(f"writing {key}"), self._alone(key):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            try:
                yield staging
                _finish(staging, target, _entries(staging, artefact.files_of(staging)))
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise

    def publish(self, folder: Path, key: str) -> None:
        with self.stage(key) as staging:
            for name in artefact.files_of(folder):
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name, staging / name)

    def add(self, folder: Path, key: str) -> dict[str, Entry]:
        staging, names = _staging(self.path(key)), artefact.files_of(folder)
        with disk_errors(f"writing {key}"):
            files = _entries(folder, names)
            for name in names:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(folder / name, staging / name)
        return files

    def complete(self, key: str, files: dict[str, Entry]) -> None:
        target = self.path(key)
        staging = _staging(target)
        with disk_errors(f"writing {key}"), self._alone(key):
            for name in artefact.files_of(staging):
                if name not in files:
                    (staging / name).unlink()
            sizes = {name: (staging / name).stat().st_size for name in artefact.files_of(staging)}
            if wrong := [name for name, entry in files.items() if sizes.get(name) != entry.size]:
                raise TemporaryError(f"{', '.join(wrong)} of {key} went missing while it was made; try again")
            _finish(staging, target, files)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Generator[None]:
        """Be the only one that makes an artefact; the lock file is there as long as somebody is.

        Raises:
            ConfigError: The artefact exists.
            TemporaryError: Another process, or thread, is making it.
        """
        lock = _making(self.path(key))
        lock.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with lock.open("a+b") as file:
                if not _lock(file, attempts=10):
                    raise TemporaryError(f"another process is writing {key}; wait for it or cancel it first")
                if not _is(file, lock):  # of somebody who has just removed it
                    continue
                try:
                    if self.exists(key):
                        raise artefact.already_there(f"{self.url}/{key}")
                    yield
                finally:
                    lock.unlink(missing_ok=True)
                return

    def verify(self, key: str, parts: tuple[str, ...] = ()) -> list[str]:
        folder = self.path(key)
        try:
            files = artefact.chosen(artefact.load_manifest((folder / MANIFEST).read_bytes()), parts)
        except FileNotFoundError:
            return [artefact.never_completed()]
        except DataError as error:
            return [str(error)]
        return [problem for name, entry in sorted(files.items()) if (problem := _problem(folder, name, entry))]

    def open(self, key: str, parts: tuple[str, ...] = ()) -> Path:
        if problems := self.verify(key, parts):
            raise artefact.unusable(f"{self.url}/{key}", problems)
        return self.path(key)

    def fetch(self, key: str, folder: Path) -> None:
        source = self.open(key)
        with disk_errors(f"copying {key} to {folder}"), artefact.placed(folder) as part:
            for name in (*artefact.load_manifest((source / MANIFEST).read_bytes()), MANIFEST):
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, part / name)

    def scratch(self, key: str) -> Path:
        return self.path(key)

    @contextlib.contextmanager
    def lease(self, key: str) -> Generator[Lease]:
        """Hold the right to write a run; the operating system frees it with the process, however it ends."""
        path = self.path(key)
        with disk_errors(f"writing {key}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b")
        with file:
            if not _lock(file, attempts=10):
                raise TemporaryError(
                    f"another process is writing {key.removesuffix('/lease')}; wait for it or cancel it first"
                )
            yield Lease()

    def leased(self, key: str) -> bool:
        path = self.path(key)
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return not _flock(file, fcntl.LOCK_SH)


def _root(url: str) -> Path:
    """Return the folder of a URL; every byte of the URL counts, so that no two folders share one.

    Raises:
        ConfigError: It is no URL of a folder, or one that ends before its text does, at `#` or `?`.
    """
    path = url.removeprefix("file://")
    if path == url or not path.startswith("/"):
        raise ConfigError(f"storage {url!r} is not supported; use file:///absolute/path")
    if found := next((letter for letter in "#?" if letter in path), None):
        raise ConfigError(
            f"storage {url!r} is not supported: in a URL {found!r} ends the path. Write {quote(found)} for it, or name "
            "the folder by its path, without file://"
        )
    root = unquote(path, errors="surrogateescape")  # what Path.as_uri makes of a name that is no UTF-8, undone
    if re.search(r"[\x00-\x1f\x7f]", root):
        raise ConfigError(f"storage {url!r} is not supported: it has control characters; use file:///absolute/path")
    return Path(root)


def _staging(target: Path) -> Path:
    """Return where an artefact is made before it has its name."""
    return target.with_name(f".{target.name}{_INCOMPLETE}")


def _making(target: Path) -> Path:
    """Return the file that whoever makes an artefact has locked."""
    return target.with_name(f".{target.name}.making")


def _remove(folder: Path) -> None:
    """Remove a folder; of a link to one the link, because what it leads to is another's."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def _move(source: Path, target: Path, absent: bool) -> bool:
    """Give a file its name, over an older one or not; return whether it has it now."""
    if not absent:
        source.replace(target)
        return True
    try:
        target.hardlink_to(source)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (*_LACKING, errno.EPERM):
            raise
        return _move_locked(source, target)
    return True


def _move_locked(source: Path, target: Path) -> bool:
    """Give a file a name that nobody has, where the file system has no hard links; return whether that was so."""
    with target.with_name(f".{target.name}.lock").open("a+b") as lock:
        while not _lock(lock, attempts=10):
            pass
        if target.exists():
            return False
        source.replace(target)
        return True


def _is(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO, attempts: int) -> bool:
    """Lock a file exclusively; try more than once, because `leased` looks by holding it for a moment."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.05)
        if _flock(file, fcntl.LOCK_EX):
            return True
    return False


def _flock(file: BinaryIO, kind: int) -> bool:
    """Lock a file, exclusively or not, unless somebody else has locked it; return whether it is locked now.

    Raises:
        AccessError: Its file system has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        raise AccessError(
            f"the file system of {Path(file.name).parent} has no locks ({error.strerror}), and they keep two processes "
            "from writing one run; name a storage on another one in pi05.toml (Lustre has them when it is mounted with "
            "-o flock)"
        ) from error
    return True


def _sync(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entries(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Return what the manifest says of files, each synced to disk first."""
    files: dict[str, Entry] = {}
    for name in names:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
        files[name] = artefact.entry_of(folder / name)
    return files


def _finish(staging: Path, target: Path, files: dict[str, Entry]) -> None:
    """Make an artefact of a folder whose files are on disk."""
    with (staging / MANIFEST).open("wb") as file:
        file.write(artefact.dump_manifest(files))
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileNotFoundError):
        _remove(target)
    staging.rename(target)
    _sync(target.parent)


def _problem(folder: Path, name: str, wanted: Entry) -> str | None:
    """Return what is wrong with one file of a manifest, or None."""
    path = folder / name
    if not path.is_file():
        return artefact.difference(name, wanted, None)
    size = path.stat().st_size
    if size != wanted.size:  # its checksum need not be computed
        return artefact.difference(name, wanted, Entry(size, ""))
    return artefact.difference(name, wanted, artefact.entry_of(path))
