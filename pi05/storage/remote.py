"""gs:// and s3://: a bucket as storage, with this machine's disk as its cache.

Everything that is read in whole folders lies under TMPDIR (in a pod the large scratch disk), every artefact in a folder
named by its content; the small objects that `scan` has read lie in the user's cache, so that a status of a thousand
runs reads what has changed.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from pi05.errors import ConfigError, DataError
from pi05.storage import artefact, lease, local, transfer
from pi05.storage.artefact import MANIFEST, Entry, disk_errors
from pi05.storage.bucket import ABSENT, WORKERS, Bucket, Conflict, Missing, Object
from pi05.storage.interface import Lease, Storage
from pi05.storage.names import check_key

_NAMES = {
    "gs": (r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", "3 or more of a-z, 0-9, '.', '_' and '-'"),
    "s3": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "3 to 63 of a-z, 0-9, '.' and '-'"),
}
"""What a bucket's name can be, as an expression and in words."""


class BucketStorage(Storage):
    """A bucket, or a folder in one.

    Args:
        url: `gs://bucket`, `gs://bucket/folder`, or the same with `s3://`.
        patience: Seconds that an operation is repeated before the bucket counts as unreachable; None: PATIENCE.

    Raises:
        ConfigError: The URL is not of that form.
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        self._bucket, folder = _bucket_of(url, patience)
        self.url = f"{self._bucket.url}/{folder}".rstrip("/")
        self._prefix = f"{folder}/" if folder else ""
        self._held: list[lease.BucketLease] = []

    def read(self, key: str) -> bytes:
        try:
            return self._bucket.read(self._name(key))
        except Missing as error:
            raise DataError(f"{self.url}/{key} does not exist") from error

    def write(self, key: str, data: bytes, absent: bool = False) -> bool:
        self._may_write()
        if not absent:
            self._bucket.write(self._name(key), data)
            return True
        try:
            self._bucket.write_mine(self._name(key), data, ABSENT)
        except Conflict:
            return False
        return True

    def exists(self, key: str) -> bool:
        return self._stat(key) is not None

    def modified(self, key: str) -> float:
        found = self._stat(key)
        if found is None:
            raise DataError(f"{self.url}/{key} does not exist")
        return found.updated

    def children(self, key: str) -> list[str]:
        return [name for name in self._bucket.names(self._folder(key)) if not name.startswith(".")]

    def artefacts(self, key: str) -> list[str]:
        found = self._bucket.matching(self._folder(key), [MANIFEST])
        return sorted(name for one in found if not (name := one.name.split("/")[-2]).startswith("."))

    def incomplete(self, key: str) -> list[str]:
        return sorted({*self.children(key)} - {*self.artefacts(key)})

    def discard(self, key: str) -> None:
        if self._bucket.stat(self._folder(key) + MANIFEST) is None:
            self.delete(key)

    def scan(self, prefix: str, names: Iterable[str]) -> dict[str, bytes]:
        found = self._bucket.matching(self._folder(prefix), [check_key(name) for name in names])
        with ThreadPoolExecutor(WORKERS) as pool:
            contents = pool.map(self._cached, found)
            return {
                one.name.removeprefix(self._prefix): content
                for one, content in zip(found, contents, strict=True)
                if content is not None
            }

    def delete(self, key: str) -> None:
        self._may_write()
        folder = self._folder(key)
        self._bucket.remove(folder + MANIFEST)
        self._bucket.remove(self._name(key))
        with ThreadPoolExecutor(WORKERS) as pool:
            transfer.run_all(pool, [partial(self._bucket.remove, one.name) for one in self._bucket.objects(folder)])

    @contextlib.contextmanager
    def stage(self, key: str) -> Generator[Path]:
        self._refuse_existing(key)
        with disk_errors(f"writing {key}"):
            folder = Path(tempfile.mkdtemp(dir=_made(local.scratch()), prefix="stage-"))
            try:
                yield folder
                self.publish(folder, key)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, key: str) -> None:
        self._refuse_existing(key)
        with self._alone(key):
            self.complete(key, self.add(folder, key))

    def add(self, folder: Path, key: str) -> dict[str, Entry]:
        return transfer.send(self._bucket, folder, self._folder(key), self._may_write)

    def complete(self, key: str, files: dict[str, Entry]) -> None:
        self._refuse_existing(key)
        try:
            transfer.finish(self._bucket, self._folder(key), files, self._may_write)
        except Conflict as error:
            raise artefact.already_there(f"{self.url}/{key}") from error

    @contextlib.contextmanager
    def _alone(self, key: str) -> Generator[None]:
        """Hold the lease of an artefact while it is made, unless its run is leased by us already."""
        if any(key.startswith(held.what + "/") for held in tuple(self._held)):
            yield
            return
        parent, _, name = key.rpartition("/")
        with self._hold(f"{parent}/.{name}/lease" if parent else f".{name}/lease", key):
            self._refuse_existing(key)  # made while we waited
            yield

    def verify(self, key: str, parts: tuple[str, ...] = ()) -> list[str]:
        """Compare the manifest with what the service knows of every object; nothing is downloaded."""
        try:
            files = artefact.chosen(transfer.manifest(self._bucket, self._folder(key))[0], parts)
        except DataError as error:
            return [str(error)]
        return artefact.differences(files, transfer.listing(self._bucket, self._folder(key)))

    def open(self, key: str, parts: tuple[str, ...] = ()) -> Path:
        files, target = self._copy(key, parts)
        if not transfer.complete(target, files):
            shutil.rmtree(_made(target.parent) / target.name, ignore_errors=True)
            try:
                self._fetch(key, files, target)
            except OSError:  # its place is taken
                if not transfer.complete(target, files):  # and not by another process that was faster
                    raise
        return target

    @contextlib.contextmanager
    def borrow(self, key: str, parts: tuple[str, ...] = ()) -> Generator[Path]:
        _, target = self._copy(key, parts)
        try:
            yield self.open(key, parts)
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def _copy(self, key: str, parts: tuple[str, ...]) -> tuple[dict[str, Entry], Path]:
        """Return the files of an artefact's parts, and where this machine keeps a copy of this very content."""
        try:
            files, version = transfer.manifest(self._bucket, self._folder(key))
            files = artefact.chosen(files, parts)
        except DataError as error:
            raise artefact.unusable(f"{self.url}/{key}", [str(error)]) from error
        return files, self._cache("+".join([f"artefacts/{check_key(key)}@{version}", *sorted(parts)]))

    def fetch(self, key: str, folder: Path) -> None:
        try:
            files, _ = transfer.manifest(self._bucket, self._folder(key))
        except DataError as error:
            raise artefact.unusable(f"{self.url}/{key}", [str(error)]) from error
        self._fetch(key, files, folder)

    def scratch(self, key: str) -> Path:
        return self._cache(f"scratch/{check_key(key)}")

    def lease(self, key: str) -> AbstractContextManager[Lease]:
        return self._hold(key, key.removesuffix("/lease"))

    @contextlib.contextmanager
    def _hold(self, key: str, what: str) -> Generator[Lease]:
        """Hold a lease; while it is held, this storage writes nothing unless it still is."""
        with lease.hold(self._bucket, self._name(key), what) as held:
            self._held.append(held)
            try:
                yield held
            finally:
                self._held.remove(held)

    def leased(self, key: str) -> bool:
        return lease.is_held(self._bucket, self._name(key))

    def _name(self, key: str) -> str:
        """Return the object's name in the bucket."""
        return self._prefix + check_key(key)

    def _folder(self, key: str) -> str:
        return self._name(key).rstrip("/") + "/"

    def _stat(self, key: str) -> Object | None:
        """Return an object, or the manifest of an artefact."""
        return self._bucket.stat(self._name(key)) or self._bucket.stat(self._folder(key) + MANIFEST)

    def _refuse_existing(self, key: str) -> None:
        if self._bucket.stat(self._folder(key) + MANIFEST) is not None:
            raise artefact.already_there(f"{self.url}/{key}")

    def _may_write(self) -> None:
        """Raise TemporaryError when a lease of this process is lost: another one writes now."""
        for held in tuple(self._held):
            held.confirm()

    def _cached(self, one: Object) -> bytes | None:
        """Return an object's content, from this machine when it has that version; None when it is gone."""
        key = f"{self._bucket.url}/{one.name}".removeprefix("gs://")
        path = local.user_cache() / "objects" / hashlib.sha256(key.encode()).hexdigest()[:32]
        head = f"{one.version} {one.crc32c}\n".encode()
        with contextlib.suppress(OSError):
            if (content := path.read_bytes()).startswith(head):
                return content[len(head) :]
        try:
            content, version = self._bucket.read_at(one.name)
        except Missing:
            return None
        if version == one.version:
            _keep(path, head + content)
        return content

    def _cache(self, name: str) -> Path:
        place = self._bucket.name if self._bucket.scheme == "gs" else f"{self._bucket.scheme}+{self._bucket.name}"
        return local.scratch() / place / f"{self._prefix}{name}"

    def _fetch(self, key: str, files: dict[str, Entry], folder: Path) -> None:
        """Download an artefact beside its place and move it there when every checksum agrees."""
        if problems := artefact.differences(files, transfer.listing(self._bucket, self._folder(key))):
            raise artefact.unusable(f"{self.url}/{key}", problems)
        with disk_errors(f"fetching {key}"), artefact.placed(folder) as part:
            if problems := transfer.download(self._bucket, self._folder(key), files, part):
                raise artefact.unusable(f"{self.url}/{key}", problems)
            (part / MANIFEST).write_bytes(artefact.dump_manifest(files))


def _bucket_of(url: str, patience: float | None) -> tuple[Bucket, str]:
    """Return the bucket of a URL and the folder in it, importing what its service needs and nothing else."""
    scheme, _, rest = url.partition("://")
    name, _, folder = rest.partition("/")
    letters, words = _NAMES[scheme]
    if not re.fullmatch(letters, name) or "?" in folder or "#" in folder:
        raise ConfigError(
            f"storage {url!r} is not supported; use {scheme}://bucket or {scheme}://bucket/folder, where bucket has "
            f"{words}"
        )
    folder = folder.strip("/")
    if folder:
        check_key(folder)
    if scheme == "gs":
        from pi05.storage.gcs import GcsBucket  # half a second of imports that nobody else needs

        return GcsBucket(name, patience), folder
    from pi05.storage.s3 import S3Bucket

    return S3Bucket(name, patience), folder


def _made(folder: Path) -> Path:
    """Make a folder, which nobody else may read or have made before us, and return it."""
    root = local.scratch()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise ConfigError(f"{root} belongs to another user; remove it, or set TMPDIR to a folder of your own")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _keep(path: Path, content: bytes) -> None:
    """Keep a small object on this machine; where that is impossible it is read again next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        part.write_bytes(content)
        part.replace(path)
