"""Compiled programs, kept in the storage: a start after the first one compiles nothing that takes long.

    cache/compiled/<machine>/<program>-<digest>-cache                          a program, as JAX keeps it
    cache/compiled/<machine>/xla_gpu_per_fusion_autotune_cache_dir/<digest>    which kernel was the fastest on a GPU

JAX's digest covers the program, the options and the versions it was compiled with; <machine> covers what JAX leaves
out. On file:// JAX works in that folder itself, with a bucket in a local one that is filled at the start and whose new
files are uploaded while the job runs. All of it is best effort: whatever fails costs a compilation and never a run.

Whoever can write the storage can have its code run in jobs this way.
"""

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
import zlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jaxlib.version
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from pi05.errors import JobError
from pi05.storage import FileStorage, Storage

log = logging.getLogger("pi05")

KEY = "cache/compiled"
_TUNING = "xla_gpu_per_fusion_autotune_cache_dir"
"""JAX's name for the folder of XLA's measurements."""
_MOST, _LARGEST = 128, 2**31
"""Files, and bytes, that are kept for one machine; the oldest go."""
_PERIOD = 5.0
"""Seconds between two looks for new files; one that has not grown since the last look is whole."""
_AT_ONCE = 16
_ZLIB = b"\x78"
"""First byte of what zlib packs."""


@contextlib.contextmanager
def kept(storage: Storage) -> Generator[None]:
    """Let what is compiled in this block be kept in, and taken from, a storage.

    Where somebody has told JAX of a cache already (JAX_COMPILATION_CACHE_DIR), that one is used. Processes that train
    together use the cache only if all of them have the same files: compiling for GPUs, they share the work, and would
    wait for one that has nothing to compile.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        yield
        return
    key = f"{KEY}/{machine()}"
    folder = storage.scratch(key)
    try:
        shelf = None if isinstance(storage, FileStorage) else BucketCache(storage, key, folder)
        names = _prepared(folder, shelf)
    except (JobError, OSError) as error:
        log.info("compiled programs of earlier starts cannot be had: %s", error)
        shelf, names = None, None
    if not _same_everywhere(names):
        yield
        return
    log.info("%d files of compiled programs in %s/%s", len(names or ()), storage.url, key)
    with _jax_keeps(folder), shelf.uploading() if shelf and jax.process_index() == 0 else contextlib.nullcontext():
        yield


class BucketCache:
    """The cache of a machine in a bucket, beside the local folder that JAX works in.

    Args:
        storage: The bucket.
        key: Of the cache in it.
        folder: The local one.
    """

    def __init__(self, storage: Storage, key: str, folder: Path) -> None:
        self._storage, self._key, self._folder = storage, key, folder
        self._known: set[str] = set()

    def fill(self) -> None:
        """Fetch the newest files, and forget the others; what is there already is not fetched again."""
        names = [name for name in self._storage.children(self._key) if name != _TUNING]
        names += [f"{_TUNING}/{name}" for name in self._storage.children(f"{self._key}/{_TUNING}")]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            ages = dict(
                zip(names, pool.map(lambda name: self._storage.modified(f"{self._key}/{name}"), names), strict=True)
            )
            newest = sorted(names, key=lambda name: -ages[name])
            for _ in pool.map(lambda name: self._fetch(name, ages[name]), newest[:_MOST]):
                pass
        if jax.process_index() == 0:
            for name in newest[_MOST:]:
                self._storage.delete(f"{self._key}/{name}")
        self._known = set(names)

    def drop(self, name: str) -> None:
        """Remove a file from the bucket."""
        self._storage.delete(f"{self._key}/{name}")
        self._known.discard(name)

    @contextlib.contextmanager
    def uploading(self) -> Generator[None]:
        """Upload new files during the block, and what is left at its end."""
        ended = threading.Event()
        thread = threading.Thread(target=self._upload_until, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(2 * _PERIOD)

    def _age(self, name: str) -> float:
        return self._storage.modified(f"{self._key}/{name}")

    def _fetch(self, name: str, age: float) -> None:
        path = self._folder / name
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_bytes(self._storage.read(f"{self._key}/{name}"))
        os.utime(part, (age, age))
        part.replace(path)

    def _upload_until(self, ended: threading.Event) -> None:
        sizes: dict[str, int] = {}
        while not ended.wait(_PERIOD):
            sizes = self._upload(sizes)
        self._upload(_files(self._folder))

    def _upload(self, before: dict[str, int]) -> dict[str, int]:
        """Upload the files that are new and have the size they had before; return the sizes of all."""
        sizes = _files(self._folder)
        for name in sizes.keys() - self._known:
            if sizes[name] != before.get(name):
                continue
            try:
                self._storage.write(f"{self._key}/{name}", (self._folder / name).read_bytes(), absent=True)
            except (JobError, OSError) as error:
                log.info("a compiled program is not kept yet: %s", error)
                break
            self._known.add(name)
        return sizes


def machine() -> str:
    """Return a name for all that a compiled program asks of where it runs: devices and, of a CPU, what it can do."""
    first = jax.devices()[0]
    said = [jax.__version__, jaxlib.version.__version__, first.client.platform_version, first.device_kind]
    if first.platform == "cpu":
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        said += sorted(found[1].split()) if found else []
    return f"{first.platform}-{hashlib.sha256(' '.join(said).encode()).hexdigest()[:12]}"


def _prepared(folder: Path, shelf: BucketCache | None) -> list[str]:
    """Return the names of what is in the folder after it was filled, checked and made small enough."""
    folder.mkdir(parents=True, exist_ok=True)
    if shelf:
        shelf.fill()
    for name in (name for found in (_damaged, _too_many) for name in found(folder)):
        (folder / name).unlink(missing_ok=True)
        if shelf and jax.process_index() == 0:
            shelf.drop(name)
    return sorted(_files(folder))


def _files(folder: Path) -> dict[str, int]:
    """Return the size of every file of the cache, by its path in the folder."""
    paths = [*folder.glob("*-cache"), *folder.glob(f"{_TUNING}/*")]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.name[0] != "."}


def _damaged(folder: Path) -> list[str]:
    """Return the programs that a process was writing when it was killed: JAX would try them again for ever."""
    return [path.name for path in folder.glob("*-cache") if _is_old(path) and not _is_whole(path)]


def _is_old(path: Path) -> bool:
    """Return whether nobody can still be writing a file."""
    return time.time() - path.stat().st_mtime > 60


def _is_whole(path: Path) -> bool:
    """Return whether a file ends where its zlib stream ends; what JAX packed with another package is believed."""
    unpacked = zlib.decompressobj()
    with path.open("rb") as file:
        if file.peek(1)[:1] not in (b"", _ZLIB):
            return True
        try:
            while piece := file.read(2**20):
                while piece:
                    unpacked.decompress(piece, 2**24)
                    piece = unpacked.unconsumed_tail
        except zlib.error:
            return False
    return unpacked.eof


def _too_many(folder: Path) -> list[str]:
    """Return what has to go, the oldest."""
    sizes = _files(folder)
    newest = sorted(sizes, key=lambda name: -(folder / name).stat().st_mtime)
    totals = np.cumsum([sizes[name] for name in newest])
    return [name for place, name in enumerate(newest) if place >= _MOST or totals[place] > _LARGEST]


def _same_everywhere(names: list[str] | None) -> bool:
    """Return whether this process, and every other one that trains with it, has a cache, and all the same one."""
    if jax.process_count() == 1:
        return names is not None
    said = "missing" if names is None else "\n".join(names)
    digest = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    same = bool((digests == digests[0]).all())
    if not same:
        log.info("processes found different compiled programs: none is used")
    return same and names is not None


@contextlib.contextmanager
def _jax_keeps(folder: Path) -> Generator[None]:
    """Tell JAX where to keep what it compiles."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
