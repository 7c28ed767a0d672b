"""A checkpoint to a bucket and back, beside google-cloud-storage used plainly: one file after the other.

Both against the same emulator on this machine, in turn, over a line on which everything is under way for 20 ms, as to a
bucket in the same part of the world. Both verify checksums; ours also writes and reads the manifest and holds a lease.
The emulator and the line run on the same cores, so the figures are a floor.

    scripts/bench storage [MEGABYTES]
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pi05.storage import connect

DELAY, RUNS = 0.02, 3
LARGE, SMALL = 8, 120
"""Files of a checkpoint: the arrays in a few large ones, and the rest."""


def make(folder: Path, megabytes: int) -> Path:
    """Fill a folder with random files, nine tenths of it in the large ones."""
    folder.mkdir()
    for count, share, name in ((LARGE, 0.9, "large"), (SMALL, 0.1, "small")):
        for number in range(count):
            (folder / f"{name}-{number}").write_bytes(os.urandom(int(megabytes * 1e6 * share / count)))
    return folder


def plain_up(bucket: Any, folder: Path, prefix: str) -> None:
    """Upload as the library's documentation does."""
    for path in sorted(folder.iterdir()):
        bucket.blob(f"{prefix}/{path.name}").upload_from_filename(str(path), checksum="crc32c")


def plain_down(bucket: Any, folder: Path, prefix: str) -> None:
    """Download as the library's documentation does."""
    folder.mkdir()
    for blob in bucket.client.list_blobs(bucket.name, prefix=f"{prefix}/"):
        blob.download_to_filename(str(folder / Path(blob.name).name), checksum="crc32c")


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measure both in turn, up and down, and print the ratio of the sums."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage as library

    from tests.gcs.emulator import Emulator, Line, new_bucket

    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    server = Emulator(Line())
    server.start()
    try:
        url = new_bucket(server)
        ours = connect(url)
        bucket = library.Client(project="x", credentials=AnonymousCredentials()).bucket(url.split("/")[2])
        server.line.delay = DELAY
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            source = make(root / "source", megabytes)
            rows: list[tuple[float, float, float, float]] = []
            for run in range(RUNS):
                rows.append(
                    (
                        seconds(lambda run=run: plain_up(bucket, source, f"plain/{run}")),
                        seconds(lambda run=run: ours.publish(source, f"ours/{run}")),
                        seconds(lambda run=run: plain_down(bucket, root / f"plain-{run}", f"plain/{run}")),
                        seconds(lambda run=run: ours.fetch(f"ours/{run}", root / f"ours-{run}")),
                    )
                )
            assert not ours.verify("ours/0")
    finally:
        server.line.close()
        server.stop()
    report(megabytes, rows)


def report(megabytes: int, rows: list[tuple[float, float, float, float]]) -> None:
    """Print MB/s of both, and how many times as fast ours is, both ways together."""
    plain_up_s, up, plain_down_s, down = (statistics.median(column) for column in zip(*rows, strict=True))
    for name, plain, own in (("up", plain_up_s, up), ("down", plain_down_s, down)):
        print(f"{name}: one stream {megabytes / plain:.0f} MB/s, ours {megabytes / own:.0f} MB/s")
    ratio = (plain_up_s + plain_down_s) / (up + down)
    figures = {"up_mb_s": round(megabytes / up), "down_mb_s": round(megabytes / down)}
    print(json.dumps({"name": "storage", "ratio": round(ratio, 2), **figures}))


if __name__ == "__main__":
    main()
