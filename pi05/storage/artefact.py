"""Manifests and checksums: turns a folder into the table of its files, and a table into what is wrong with a folder."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import google_crc32c

from pi05.errors import ConfigError, DataError, TemporaryError
from pi05.storage.names import check_key

MANIFEST = "MANIFEST.json"
_CHUNK = 1 << 20
_POINTER = b"version https://git-lfs"
_SHOWN = 8
"""Bad files named in an error; the rest are counted."""


@dataclass(frozen=True)
class Entry:
    """One file of an artefact: its size in bytes and its CRC-32C as 8 hex digits."""

    size: int
    crc32c: str


def crc32c(path: Path) -> str:
    """Return the CRC-32C (Castagnoli, RFC 3720) of a file as 8 hex digits."""
    checksum: Any = google_crc32c.Checksum()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
    return checksum.digest().hex()


def files_of(folder: Path, hidden: bool = True) -> list[str]:
    """Return the names of all files below a folder, sorted; a manifest of the folder itself is not one of them.

    Links are followed: what is large is moved to another disk and linked back. A folder that is not there has none.
    Without `hidden`, what begins with a dot is left out: of git, of the hub, of desktops.

    Raises:
        DataError: A link leads nowhere or back up, something is neither file nor folder, or may not be read.
    """
    if not folder.exists() and not folder.is_symlink():
        return []
    names = (path.relative_to(folder).as_posix() for path in _below(folder, (), hidden))
    return sorted(name for name in names if name != MANIFEST)


def _below(folder: Path, above: tuple[Path, ...], hidden: bool) -> Iterator[Path]:
    """Yield the files below a folder; `above` are the real folders that it is in."""
    try:
        here = folder.resolve()
        entries = sorted(path for path in folder.iterdir() if hidden or not path.name.startswith("."))
        kinds = [(path, path.is_dir(), path.is_file()) for path in entries]
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be read ({error.strerror}); nothing is left out") from error
    if here in above:
        raise DataError(f"{folder} is a link back to {here}, in which it lies itself; remove the link")
    for path, is_folder, is_file in kinds:
        if is_folder:
            yield from _below(path, (*above, here), hidden)
        elif is_file:
            yield path
        elif path.is_symlink():
            raise DataError(f"{path} is a link to {path.readlink()}, which does not exist; put that back or remove it")
        else:
            raise DataError(f"{path} is neither a file nor a folder; remove it")


def is_pointer(path: Path) -> bool:
    """Return whether a file is not content but Git LFS's word for where to fetch it."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
    return False


def entry_of(path: Path) -> Entry:
    """Return what the manifest says of a file."""
    return Entry(path.stat().st_size, crc32c(path))


def dump_manifest(files: dict[str, Entry]) -> bytes:
    """Return the content of MANIFEST.json."""
    return json.dumps({"v": 1, "files": {name: asdict(entry) for name, entry in files.items()}}, indent=1).encode()


def load_manifest(content: bytes) -> dict[str, Entry]:
    """Return the file table of a manifest; raise DataError when it is not of our form or names a file outside."""
    try:
        files: object = json.loads(content)["files"]
        if not isinstance(files, dict):
            raise TypeError("files is not a table")
        table = cast("dict[str, dict[str, Any]]", files)
        entries = {name: Entry(int(entry["size"]), str(entry["crc32c"])) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{MANIFEST} is damaged ({error}); make it again") from error
    return {check_key(name): entry for name, entry in entries.items()}


def parts_of(files: Iterable[str]) -> frozenset[str]:
    """Return the parts of an artefact: the folders, and files in none, directly under it."""
    return frozenset(name.split("/")[0] for name in files)


def chosen(files: dict[str, Entry], parts: tuple[str, ...]) -> dict[str, Entry]:
    """Return the files of some parts of an artefact, of all without a part; raise DataError when it lacks one."""
    if lacking := [part for part in parts if part not in parts_of(files)]:
        raise DataError(f"it has no {', '.join(lacking)}; there are {', '.join(sorted(parts_of(files)))}")
    return {name: entry for name, entry in files.items() if not parts or name.split("/")[0] in parts}


def differences(wanted: Mapping[str, Entry], found: Mapping[str, Entry]) -> list[str]:
    """Return how files differ from what the manifest says, one line a file."""
    lines = (difference(name, entry, found.get(name)) for name, entry in sorted(wanted.items()))
    return [line for line in lines if line]


def difference(name: str, wanted: Entry, found: Entry | None) -> str | None:
    """Return in words how a file differs from what the manifest says, or None."""
    if found is None:
        return f"{name} is missing"
    if found.size != wanted.size:
        return f"{name} has {found.size} bytes, the manifest says {wanted.size}"
    if found.crc32c != wanted.crc32c:
        return f"{name} has crc32c {found.crc32c}, the manifest says {wanted.crc32c}"
    return None


def never_completed() -> str:
    """Say what a missing manifest means."""
    return f"{MANIFEST} is missing, so it was never completed; make it again"


def unusable(where: str, problems: Iterable[str]) -> DataError:
    """Return the error that names the bad files of an artefact."""
    lines = list(problems)
    more = f"; and {len(lines) - _SHOWN} more" if lines[_SHOWN:] else ""
    return DataError(f"{where} cannot be used: " + "; ".join(lines[:_SHOWN]) + more)


def already_there(where: str) -> ConfigError:
    """Return the error of whoever would overwrite a complete artefact."""
    return ConfigError(f"{where} already exists and is never overwritten")


@contextlib.contextmanager
def placed(folder: Path) -> Generator[Path]:
    """Yield a new folder beside `folder` and give it that name when the block ends; after an error nothing is left."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
