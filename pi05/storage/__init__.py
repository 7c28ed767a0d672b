"""One door to everything that outlives a process: `connect(url)` opens file://, gs:// and s3:// behind the same
methods.

Keys are relative POSIX paths. An artefact (a dataset, a checkpoint, weights) is a folder; it exists when its
MANIFEST.json exists, which names every file with size and crc32c and is written last. Readers verify.
This package knows bytes and names, nothing of what is inside them.

    names      RunPaths: what lies where; keys that stay inside
    artefact   manifests and checksums
    interface  Storage, Lease: what both kinds can do
    local      folders of this user on this machine
    files      FileStorage, file://: a folder of this machine
    remote     BucketStorage, gs:// and s3://: a bucket, made of
               bucket (what any of them can do; gcs and s3: how theirs does it, each the one importer of its library),
               transfer (folders in parallel) and lease (who may write)
"""

from pi05.errors import ConfigError
from pi05.storage.artefact import MANIFEST, Entry, crc32c, disk_errors, files_of, is_pointer, load_manifest
from pi05.storage.files import FileStorage
from pi05.storage.interface import Lease, Storage
from pi05.storage.local import expanded, user_cache
from pi05.storage.names import ASSETS, PARAMS, STATE, RunPaths, check_key, removal
from pi05.storage.remote import BucketStorage

__all__ = [
    "ASSETS",
    "BucketStorage",
    "MANIFEST",
    "PARAMS",
    "STATE",
    "Entry",
    "FileStorage",
    "Lease",
    "RunPaths",
    "Storage",
    "check_key",
    "connect",
    "crc32c",
    "disk_errors",
    "expanded",
    "files_of",
    "is_pointer",
    "load_manifest",
    "removal",
    "user_cache",
]


def connect(url: str, patience: float | None = None) -> Storage:
    """Return the storage of a URL, without looking whether it is there.

    Args:
        url: `file:///absolute/path`; `gs://bucket`, `gs://bucket/folder`, or the same with `s3://`.
        patience: Seconds that a bucket may not answer before it counts as unreachable; None: long enough for jobs.

    Raises:
        ConfigError: The URL is not one this version can open.
    """
    if url.startswith(("gs://", "s3://")):
        return BucketStorage(url, patience)
    if url.startswith("file:"):
        return FileStorage(url)
    raise ConfigError(
        f"storage {url!r} is not supported; use file:///absolute/path, gs://bucket/folder or s3://bucket/folder"
    )
