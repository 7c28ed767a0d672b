"""One door to everything that outlives a process: `connect(url)` opens file:// and gs:// behind the same methods.

Keys are relative POSIX paths. An artefact (a dataset, a checkpoint, weights) is a folder; it exists when its
MANIFEST.json exists, which names every file with size and crc32c and is written last. Readers verify.
This package knows bytes and names, nothing of what is inside them.

    names      RunPaths: what lies where; keys that stay inside
    artefact   manifests and checksums
    interface  Storage, Lease: what both kinds can do
    local      folders of this user on this machine
    files      FileStorage, file://: a folder of this machine
    gcs        GcsStorage, gs://: a bucket, made of
               bucket (the library and its errors), transfer (folders in parallel) and lease (who may write)
"""

from pi05.errors import ConfigError
from pi05.storage.artefact import MANIFEST, Entry, crc32c, disk_errors
from pi05.storage.files import FileStorage
from pi05.storage.interface import Lease, Storage
from pi05.storage.local import user_cache
from pi05.storage.names import ASSETS, PARAMS, STATE, RunPaths, check_key, removal

__all__ = [
    "ASSETS",
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
    "removal",
    "user_cache",
]


def connect(url: str, patience: float | None = None) -> Storage:
    """Return the storage of a URL, without looking whether it is there.

    Args:
        url: `file:///absolute/path`, `gs://bucket` or `gs://bucket/folder`.
        patience: Seconds that a bucket may not answer before it counts as unreachable; None: long enough for jobs.

    Raises:
        ConfigError: The URL is not one this version can open.
    """
    if url.startswith("gs://"):
        from pi05.storage.gcs import GcsStorage  # half a second of imports that file:// does not need

        return GcsStorage(url, patience)
    if url.startswith("file:"):
        return FileStorage(url)
    raise ConfigError(f"storage {url!r} is not supported; use file:///absolute/path or gs://bucket/folder")
