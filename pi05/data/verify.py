"""Looks into a dataset, every image included: `python -m pi05.data.verify FOLDER`.

Prints one problem a line (none: nothing), and exits with 65 when there is one. Checksums are the storage's business;
this finds what they cannot: a dataset that was written wrong, or changed together with its manifest.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pi05.data import dataset as datasets
from pi05.data.images import decode
from pi05.data.lerobot import INFO, LeRobotFolder, read_json
from pi05.data.parquet import RowGroup
from pi05.errors import DataError

_STATS = "meta/stats.json"
_SHOWN = 20
"""Problems that are printed; the rest are counted."""


def problems(folder: Path) -> list[str]:
    """Return what is wrong with a dataset, in words; empty when every number and every image is there."""
    try:
        data = datasets.load(folder)
        recorded = LeRobotFolder(folder)
    except DataError as error:
        return [str(error)]
    found = [*_counts(folder, data), *_statistics(folder, data)]
    cameras, size = data.meta.convention.cameras, data.meta.convention.image_size
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # PIL decodes without Python's lock
        looks = threads.map(lambda group: list(_images(recorded, group, cameras, size)), recorded.groups)
        return found + [problem for group in looks for problem in group]


def _counts(folder: Path, data: datasets.Dataset) -> Iterator[str]:
    """Yield where the counts of LeRobot's meta data and of ours disagree with the rows."""
    info, meta = read_json(folder / INFO), data.meta
    if info.get("total_episodes") != len(meta.seeds):
        yield f"{INFO} says {info.get('total_episodes')} episodes, there are {len(meta.seeds)}"
    kept = {attempt.seed: attempt.steps for attempt in meta.attempts if attempt.success}
    if tuple(kept) != meta.seeds:
        yield f"{datasets.META} says that {len(kept)} attempts succeeded, the episodes are of {len(meta.seeds)} seeds"
        return
    steps = (data.starts[1:] - data.starts[:-1]).tolist()
    for number, (seed, found) in enumerate(zip(meta.seeds, steps, strict=True)):
        if kept[seed] != found:
            yield f"episode {number} (seed {seed}) has {found} rows, {datasets.META} says {kept[seed]} steps"


def _statistics(folder: Path, data: datasets.Dataset) -> Iterator[str]:
    """Yield whether LeRobot's statistics are those of the rows: they count what was written."""
    try:
        count = json.loads((folder / _STATS).read_bytes())["action"]["count"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{_STATS} is damaged ({error})"
        return
    if count != [len(data.actions)]:
        yield f"{_STATS} counts {count} rows, there are {len(data.actions)}"


def _images(recorded: LeRobotFolder, group: RowGroup, cameras: tuple[str, ...], size: int) -> Iterator[str]:
    """Yield what is wrong with the images of a row group."""
    try:
        by_camera = recorded.images(group, cameras) if cameras else {}
    except DataError as error:
        yield str(error)
        return
    for camera, contents in by_camera.items():
        for row, content in enumerate(contents, group.first):
            try:
                decode(content, size)
            except ValueError as error:
                yield f"{group.path}: row {row}, {camera}: {error}"


def main(arguments: list[str]) -> int:
    """Print the problems of a folder; return the exit code."""
    found = problems(Path(arguments[0]))
    more = [f"and {len(found) - _SHOWN} more"] if found[_SHOWN:] else []
    sys.stdout.write("".join(f"{line}\n" for line in found[:_SHOWN] + more))
    return DataError.exit_code if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
