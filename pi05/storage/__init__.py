"""One door to everything that outlives a process: `connect(url)` opens file:// and gs:// behind the same methods.

Keys are relative POSIX paths. An artefact (a dataset, a checkpoint, weights) is a folder; it exists when its
MANIFEST.json exists, which names every file with size and crc32c and is written last. Readers verify.
This package knows bytes and names, nothing of what is inside them.

    names      RunPaths: what lies where; keys that stay inside
    artefact   manifests and checksums
    interface  Storage, Lease: what both kinds can do
    files      FileStorage, file://: a folder of this machine
"""

from pi05.errors import ConfigError
from pi05.storage.artefact import MANIFEST, crc32c, disk_errors
from pi05.storage.files import FileStorage
from pi05.storage.interface import Lease, Storage
from pi05.storage.names import RunPaths, check_key

__all__ = ["connect", "Storage", "FileStorage", "Lease", "RunPaths", "MANIFEST", "check_key", "crc32c", "disk_errors"]


def connect(url: str) -> Storage:
    """Return the storage of a URL, without looking whether it is there.

    Args:
        url: `file:///absolute/path`.

    Raises:
        ConfigError: The URL is not one this version can open.
    """
    if url.startswith("file:"):
        return FileStorage(url)
    raise ConfigError(f"storage {url!r} is not supported; use file:///absolute/path")
