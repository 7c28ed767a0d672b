"""Whole folders to a bucket and back, many files at once, every one with its checksum."""

import contextlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pi05 import disk
from pi05.errors import DataError, TemporaryError, Unreachable
from pi05.storage import artefact
from pi05.storage.artefact import MANIFEST, Entry
from pi05.storage.bucket import ABSENT, PART, WORKERS, Bucket, Object


def send(bucket: Bucket, folder: Path, prefix: str, check: Callable[[], None]) -> dict[str, Entry]:
    """Upload the files of a folder and return their table; those that are there already are left alone.

    Args:
        bucket: Where to.
        folder: The files; a manifest in it is ignored.
        prefix: Name of the artefact's folder in the bucket, ending with a slash.
        check: Raises when this process may not write any more.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        names = artefact.files_of(folder)
        files = dict(zip(names, pool.map(artefact.entry_of, [folder / name for name in names]), strict=True))
        there = listing(bucket, prefix)
        todo = [name for name in files if there.get(name) != files[name]]
        todo.sort(key=lambda name: files[name].size, reverse=True)  # the longest first, so that none is left alone

        def send(name: str) -> None:
            check()
            bucket.write_file(prefix + name, folder / name, files[name].crc32c)

        run_all(pool, [partial(send, name) for name in todo])
    return files


def finish(bucket: Bucket, prefix: str, files: dict[str, Entry], check: Callable[[], None]) -> None:
    """Make an artefact of what was sent: remove what an earlier attempt left, then write the manifest.

    Raises:
        Unreachable: A file is not there as it was sent.
        Conflict: Another process has completed the artefact meanwhile.
    """
    there = listing(bucket, prefix)
    if wrong := artefact.differences(files, there):
        raise Unreachable(f"{prefix} did not arrive whole ({'; '.join(wrong[:3])}); try again")
    with ThreadPoolExecutor(WORKERS) as pool:
        run_all(pool, [partial(bucket.remove, prefix + name) for name in there if name not in files])
    check()
    bucket.write_mine(prefix + MANIFEST, artefact.dump_manifest(files), ABSENT)


def listing(bucket: Bucket, prefix: str) -> dict[str, Entry]:
    """Return what lies under an artefact's folder in the bucket, the manifest left out."""
    found = {
        one.name.removeprefix(prefix): Entry(one.size, one.crc32c) for one in bucket.objects(prefix, checksums=True)
    }
    found.pop(MANIFEST, None)
    return found


def download(bucket: Bucket, prefix: str, files: dict[str, Entry], folder: Path) -> list[str]:
    """Fetch an artefact's files into a folder; return what is wrong with them, one line a file.

    Raises:
        TemporaryError: The disk has not enough room, or the bucket cannot be reached.
    """
    _check_room(folder, sum(entry.size for entry in files.values()))
    objects = {one.name.removeprefix(prefix): one for one in bucket.objects(prefix)}
    if gone := [f"{name} is missing" for name in files if name not in objects]:
        return gone
    with ThreadPoolExecutor(WORKERS) as pool, artefact.disk_errors(f"fetching {prefix} into {folder}"):
        parts = (_parts(bucket, objects[name], folder / name) for name in files)
        run_all(pool, [part for several in parts for part in several])
        found = pool.map(artefact.entry_of, [folder / name for name in files])
        return artefact.differences(files, dict(zip(files, found, strict=True)))


def run_all(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], Any]]) -> None:
    """Make calls in parallel; after the first error those that wait are dropped, and it is raised."""
    futures = [pool.submit(call) for call in calls]
    try:
        for future in futures:
            future.result()
    finally:
        for future in futures:
            future.cancel()


def _parts(bucket: Bucket, source: Object, target: Path) -> list[Callable[[], None]]:
    """Return the calls that fetch one object, each a part of it, into a file that is made here in its full size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        file.truncate(source.size)

    def fetch(start: int) -> None:
        stop = min(start + PART, source.size)
        content = bucket.read_range(source.name, start, stop, source.version)
        with target.open("r+b") as file:
            os.pwrite(file.fileno(), content, start)

    return [partial(fetch, start) for start in range(0, source.size, PART)]


def _check_room(folder: Path, size: int) -> None:
    """Raise TemporaryError when the disk cannot hold what is to be fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    free = disk.free(folder)
    if size > free:
        raise TemporaryError(
            f"disk full: {size / 1e9:.2f} GB are to be fetched into {folder}, which has {free / 1e9:.2f} GB free; "
            "free some space, or set TMPDIR to a larger disk, and run the same command again"
        )


def complete(folder: Path, files: dict[str, Entry]) -> bool:
    """Return whether a folder that was verified when it was made still has all its files in their sizes."""
    with contextlib.suppress(OSError):
        return all((folder / name).stat().st_size == entry.size for name, entry in files.items())
    return False


def manifest(bucket: Bucket, prefix: str) -> tuple[dict[str, Entry], str]:
    """Return an artefact's file table and a word for this very content; raise DataError without a manifest."""
    one = bucket.stat(prefix + MANIFEST)
    if one is None:
        raise DataError(artefact.never_completed())
    return artefact.load_manifest(bucket.read(prefix + MANIFEST, one.version)), one.crc32c or one.version.strip('"')
