"""A checkpoint to a bucket and back, beside the service's own library used plainly: one file after the other.

Both against the same server on this machine, in turn, over a line on which everything is under way for 20 ms, as to a
bucket in the same part of the world. Both verify checksums; ours also writes and reads the manifest and holds a lease.
The server and the line run on the same cores, so the figures are a floor.

    scripts/bench storage [MEGABYTES] [gs|s3]
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


class PlainGcs:
    """google-cloud-storage as its documentation uses it."""

    def __init__(self, bucket: str) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage as library

        self.bucket: Any = library.Client(project="x", credentials=AnonymousCredentials()).bucket(bucket)

    def up(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.iterdir()):
            self.bucket.blob(f"{prefix}/{path.name}").upload_from_filename(str(path), checksum="crc32c")

    def down(self, folder: Path, prefix: str) -> None:
        folder.mkdir()
        for blob in self.bucket.client.list_blobs(self.bucket.name, prefix=f"{prefix}/"):
            blob.download_to_filename(str(folder / Path(blob.name).name), checksum="crc32c")


class PlainS3:
    """botocore as its documentation uses it, which checks a CRC-32 of what it sends."""

    def __init__(self, bucket: str) -> None:
        import botocore.session

        self.bucket, self.client = bucket, botocore.session.get_session().create_client("s3")

    def up(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file:
                self.client.put_object(Bucket=self.bucket, Key=f"{prefix}/{path.name}", Body=file)

    def down(self, folder: Path, prefix: str) -> None:
        folder.mkdir()
        for one in self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{prefix}/")["Contents"]:
            with (folder / Path(one["Key"]).name).open("wb") as file:
                for piece in self.client.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].iter_chunks(1 << 20):
                    file.write(piece)


def seconds(call: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Measure both in turn, up and down, and print the ratio of the sums."""
    from tests.gcs.emulator import Cloud, Emulator, Line, new_bucket

    words = dict(enumerate(sys.argv))
    megabytes, scheme = int(words.get(1, 200)), words.get(2, "gs")
    server = Cloud(Line()) if scheme == "s3" else Emulator(Line())
    server.start()
    try:
        url = new_bucket(server)
        ours = connect(url)
        plain = (PlainS3 if scheme == "s3" else PlainGcs)(url.split("/")[2])
        server.line.delay = DELAY
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            source = make(root / "source", megabytes)
            rows: list[tuple[float, float, float, float]] = []
            for run in range(RUNS):
                rows.append(
                    (
                        seconds(lambda run=run: plain.up(source, f"plain/{run}")),
                        seconds(lambda run=run: ours.publish(source, f"ours/{run}")),
                        seconds(lambda run=run: plain.down(root / f"plain-{run}", f"plain/{run}")),
                        seconds(lambda run=run: ours.fetch(f"ours/{run}", root / f"ours-{run}")),
                    )
                )
            assert not ours.verify("ours/0")
    finally:
        server.line.close()
        server.stop()
    report(scheme, megabytes, rows)


def report(scheme: str, megabytes: int, rows: list[tuple[float, float, float, float]]) -> None:
    """Print MB/s of both, and how many times as fast ours is, both ways together."""
    plain_up_s, up, plain_down_s, down = (statistics.median(column) for column in zip(*rows, strict=True))
    for name, plain, own in (("up", plain_up_s, up), ("down", plain_down_s, down)):
        print(f"{name}: one stream {megabytes / plain:.0f} MB/s, ours {megabytes / own:.0f} MB/s")
    ratio = (plain_up_s + plain_down_s) / (up + down)
    figures = {"up_mb_s": round(megabytes / up), "down_mb_s": round(megabytes / down)}
    print(json.dumps({"name": "storage", "scheme": scheme, "ratio": round(ratio, 2), **figures}))


if __name__ == "__main__":
    main()
