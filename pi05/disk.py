"""How much more a folder may hold: what its disk has free, or what a pod may still use of its node's disk.

A pod that takes more than its emptyDir's size is evicted, with all that it has not uploaded; so the size it was given
(SCRATCH_BYTES, set by charts/pi05) counts as the size of a disk, and full is an error with words.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

LIMIT = "SCRATCH_BYTES"
"""Variable with the bytes that TMPDIR may hold; none outside of a pod."""


def free(folder: Path, environ: Mapping[str, str] = os.environ) -> int:
    """Return the bytes that may still be written below a folder that exists."""
    there = shutil.disk_usage(folder).free
    root = Path(environ.get("TMPDIR", "/tmp"))
    if LIMIT not in environ or not folder.resolve().is_relative_to(root.resolve()):
        return there
    return max(0, min(there, int(environ[LIMIT]) - _used(root)))


def _used(root: Path) -> int:
    """Return the bytes of disk that the files below a folder take, as the kubelet counts them."""
    found = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):  # it went while we looked
                found += Path(folder, name).lstat().st_blocks * 512
    return found
