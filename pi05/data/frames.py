"""Frames of a dataset, decoded once: a memory-mapped uint8 file a camera on local disk, which processes share.

    frames/<digest>-<size>/base_camera.u8      (N, size, size, 3), row after row
    frames/<digest>-<size>/base_camera.json    written last: the file is whole

The digest is that of the dataset's manifest, so a dataset that changes gets files of its own. Whoever comes first
builds them, others wait; a build that is interrupted leaves no marker and is begun again. A batch reads the pages of
its own frames and no others. When the disk is short of space, caches that no process uses go, the oldest first.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, Self

import numpy as np
from jaxtyping import Int, UInt8

from pi05 import disk
from pi05.data.images import decode, fit
from pi05.data.lerobot import MAKE_AGAIN, LeRobotFolder
from pi05.data.parquet import RowGroup
from pi05.errors import DataError, TemporaryError
from pi05.storage import artefact

log = logging.getLogger("pi05")

_PERIOD = 0.5
"""Seconds between two looks at whether to stop, and at a lock that another process holds."""
_RESERVE = 2**28
"""Bytes of a disk that a cache leaves free."""

Progress = Callable[[int, int], None]
"""Told how many frames of how many are decoded."""


def _silent(done: int, total: int) -> None:
    """Tell nobody."""
    del done, total


class Frames:
    """The decoded frames of some cameras; other processes may use the same files.

    Args:
        maps: uint8 (N, size, size, 3) a camera.
        lock: Keeps the files from being deleted while they are used.
    """

    def __init__(self, maps: dict[str, np.ndarray], lock: BinaryIO) -> None:
        self.maps, self._lock = maps, lock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, rows: Int[np.ndarray, " b"]) -> dict[str, UInt8[np.ndarray, "b h w 3"]]:
        """Return the frames of some rows, by camera."""
        return {camera: frames[rows] for camera, frames in self.maps.items()}

    def close(self) -> None:
        """Let go of the files; arrays that `read` returned stay."""
        self.maps = {}
        self._lock.close()


@dataclass(frozen=True)
class _Cache:
    """One dataset's frames at one size.

    Attributes:
        folder: Where the files are.
        recorded: The dataset.
        digest: Of its manifest.
        given: Height and width of its images, in pixels.
        size: Those of the cache.
        rows: N.
    """

    folder: Path
    recorded: LeRobotFolder
    digest: str
    given: int
    size: int
    rows: int

    @property
    def bytes(self) -> int:
        """Size of one camera's file."""
        return self.rows * self.size * self.size * 3

    def file(self, camera: str) -> Path:
        """Return where a camera's frames are."""
        return self.folder / f"{camera}.u8"

    def marker(self, camera: str) -> Path:
        """Return the file that says so."""
        return self.folder / f"{camera}.json"

    def is_whole(self, camera: str) -> bool:
        """Return whether a camera's file is complete."""
        try:
            said = json.loads(self.marker(camera).read_bytes())
            return said == self._said() and self.file(camera).stat().st_size == self.bytes
        except (OSError, ValueError):
            return False

    def finish(self, camera: str, built: Path) -> None:
        """Give a built file its name, and then its marker."""
        built.replace(self.file(camera))
        unfinished = self.folder / f".{camera}.json"
        unfinished.write_text(json.dumps(self._said()))
        unfinished.replace(self.marker(camera))

    def map(self, path: Path, mode: Literal["r", "r+"]) -> np.memmap:
        """Map a file of frames."""
        return np.memmap(path, np.uint8, mode, shape=(self.rows, self.size, self.size, 3))

    def _said(self) -> dict[str, object]:
        return {"v": 1, "dataset": self.digest, "shape": [self.rows, self.size, self.size, 3]}


def dataset_digest(folder: Path) -> str:
    """Return 64 hex digits that change with any byte of a dataset: those of its manifest, or of one made now."""
    try:
        content = (folder / artefact.MANIFEST).read_bytes()
    except FileNotFoundError:
        content = artefact.dump_manifest({name: artefact.entry_of(folder / name) for name in artefact.files_of(folder)})
    return hashlib.sha256(content).hexdigest()


def open_frames(
    folder: Path,
    cameras: Sequence[str],
    size: tuple[int, int],
    cache: Path,
    on_progress: Progress = _silent,
    check_stop: Callable[[], None] = lambda: None,
    workers: int = 0,
) -> Frames:
    """Return the frames of a dataset, decoding them first when no process has done so.

    Args:
        folder: The dataset.
        cameras: Which images.
        size: Pixels of an image in the dataset, and in the frames.
        cache: Folder of the caches of all datasets, on a local disk.
        on_progress: Called as frames are decoded, at most twice a second.
        check_stop: Called twice a second; what it raises ends the build and removes what it had.
        workers: Threads that decode; 0 means one a core.

    Raises:
        DataError: An image is damaged or of another size, or the dataset changed meanwhile.
        TemporaryError: The disk is too small.
    """
    recorded, digest = LeRobotFolder(folder), dataset_digest(folder)
    rows = sum(group.rows for group in recorded.groups)
    here = _Cache(cache / f"{digest[:16]}-{size[1]}", recorded, digest, *size, rows)
    used = _lock(here.folder, "used", fcntl.LOCK_SH, check_stop)
    try:
        if not all(here.is_whole(camera) for camera in cameras):
            with _lock(here.folder, "built", fcntl.LOCK_EX, check_stop):
                missing = [camera for camera in cameras if not here.is_whole(camera)]
                _build(here, missing, on_progress, check_stop, workers or len(os.sched_getaffinity(0)))
        return Frames({camera: np.asarray(here.map(here.file(camera), "r")) for camera in cameras}, used)
    except BaseException:
        used.close()
        raise


def _build(
    cache: _Cache, cameras: Sequence[str], on_progress: Progress, check_stop: Callable[[], None], workers: int
) -> None:
    """Decode every frame of some cameras; nothing remains of a build that fails."""
    if not cameras:  # another process was faster
        return
    cache.folder.mkdir(parents=True, exist_ok=True)
    make_room(cache.folder, len(cameras) * cache.bytes)
    built = {camera: cache.folder / f".{camera}.incomplete" for camera in cameras}
    try:
        with artefact.disk_errors(f"decoding the frames of {cache.recorded.path} into {cache.folder}"):
            maps = {camera: _allocate(cache, path) for camera, path in built.items()}
            _decode_all(cache, maps, on_progress, check_stop, workers)
            for camera, path in built.items():
                _sync(maps[camera], path)
        if dataset_digest(cache.recorded.path) != cache.digest:
            raise DataError(f"{cache.recorded.path} changed while its frames were decoded; {MAKE_AGAIN}")
        for camera, path in built.items():
            cache.finish(camera, path)
    finally:
        for path in built.values():
            path.unlink(missing_ok=True)


def _allocate(cache: _Cache, path: Path) -> np.memmap:
    """Return a writable map whose blocks the disk has promised: writing to a full disk through a map is fatal."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(cache.bytes, 1))
    return cache.map(path, "r+")


def _sync(frames: np.memmap, path: Path) -> None:
    """Make the content of a written map durable."""
    frames.flush()
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _decode_all(
    cache: _Cache, maps: dict[str, np.memmap], on_progress: Progress, check_stop: Callable[[], None], workers: int
) -> None:
    """Decode all row groups, some at a time; decoding frees Python's lock, so threads are enough."""
    total, done = cache.rows * len(maps), 0
    with ThreadPoolExecutor(workers) as pool:
        pending: set[Future[int]] = {pool.submit(_decode, cache, maps, group) for group in cache.recorded.groups}
        try:
            while pending:
                check_stop()
                finished, pending = wait(pending, _PERIOD)
                done += sum(future.result() for future in finished)
                on_progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _decode(cache: _Cache, maps: dict[str, np.memmap], group: RowGroup) -> int:
    """Decode one row group into the maps and return how many frames that were."""
    for camera, encoded in cache.recorded.images(group, list(maps)).items():
        for offset, content in enumerate(encoded):
            row = group.first + offset
            maps[camera][row] = _frame(cache, camera, row, content)
    return group.rows * len(maps)


def _frame(cache: _Cache, camera: str, row: int, content: bytes) -> np.ndarray:
    """Return one frame at the cache's size; raise DataError naming what is wrong with it."""
    try:
        picture = decode(content, cache.given)
    except ValueError as error:
        raise DataError(
            f"{cache.recorded.path}: the image of {camera} in row {row} cannot be used: {error}; {MAKE_AGAIN}"
        ) from error
    return fit(picture, cache.size)


def make_room(folder: Path, needed: int) -> None:
    """Delete caches beside `folder` that nobody uses, the oldest first, until the disk has `needed` bytes free.

    Raises:
        TemporaryError: It still has not.
    """
    others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
    for path in sorted(others, key=lambda path: path.stat().st_mtime):
        if disk.free(folder) >= needed + _RESERVE:
            return
        _delete_unused(path)
    free = disk.free(folder)
    if free < needed + _RESERVE:
        raise TemporaryError(
            f"the decoded frames need {_gigabytes(needed)} in {folder.parent}, whose disk has {_gigabytes(free)} free "
            f"({_gigabytes(_RESERVE)} of it stay free); free some space and run the same command again, or train with "
            "a smaller model.image_size or fewer cameras"
        )


def _delete_unused(folder: Path) -> None:
    """Delete a cache unless a process uses it."""
    with contextlib.suppress(BlockingIOError), _lock_file(folder, "used").open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        log.info("the disk is short of space: deleting the decoded frames in %s", folder)
        shutil.rmtree(folder)


def _lock(folder: Path, name: str, kind: int, check_stop: Callable[[], None]) -> BinaryIO:
    """Return an open file that holds a lock until it is closed; looks twice a second whether to stop."""
    with artefact.disk_errors(f"writing {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = _lock_file(folder, name).open("a+b")
    waiting = False
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if not waiting:
                log.info("another process is at the decoded frames in %s; waiting for it", folder)
            waiting = True
        try:
            check_stop()
        except BaseException:
            file.close()
            raise
        time.sleep(_PERIOD)


def _lock_file(folder: Path, name: str) -> Path:
    """Return the file whose lock says that a cache is used or built; it lies beside it and is never deleted."""
    return folder.parent / f".{folder.name}.{name}"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
