"""Looks into a dataset, every image included: `python -m pi05.data.verify FOLDER`.

Prints one problem a line (none: nothing), on stderr what to do, and exits with 65 when there is one. Checksums are the
storage's business; this finds what they cannot: a dataset that was written wrong, or changed with its manifest.
"""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from pi05.data import dataset as datasets
from pi05.data.images import decode
from pi05.data.lerobot import ACTION, INFO, MAKE_AGAIN, STATE, LeRobotFolder, read_json
from pi05.data.parquet import RowGroup
from pi05.errors import DataError

_STATS = "meta/stats.json"
_SHOWN = 20
"""Problems that are printed; the rest are counted."""


def problems(folder: Path) -> list[str]:
    """Return what is wrong with a dataset, in words; empty when every number and every image is there."""
    try:
        data = datasets.load(folder, remedy="")
        recorded = LeRobotFolder(folder, remedy="")
        found = [*_counts(folder, data), *_statistics(folder, data), *_times(recorded, data)]
        cameras, size = data.meta.convention.cameras, data.meta.convention.image_size
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # PIL decodes without Python's lock
            looks = threads.map(lambda group: list(_images(recorded, group, cameras, size)), recorded.groups)
            return found + [problem for group in looks for problem in group]
    except DataError as error:
        return [str(error)]


def _counts(folder: Path, data: datasets.Dataset) -> Iterator[str]:
    """Yield where the counts of LeRobot's meta data and of ours disagree with the rows."""
    info, meta = read_json(folder / INFO, remedy=""), data.meta
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
    """Yield where LeRobot's statistics are not those of the rows: of another count, length or order, or no numbers."""
    try:
        told = read_json(folder / _STATS, remedy="")
    except DataError as error:
        yield str(error)
        return
    if not isinstance(told.get(ACTION), dict):
        yield f"{_STATS} has no {ACTION}"
    for feature, rows in ((STATE, data.states), (ACTION, data.actions)):
        said = told.get(feature)
        if not isinstance(said, dict):
            continue
        if said.get("count") != [len(rows)]:
            yield f"{_STATS}: {feature} counts {said.get('count')} rows, there are {len(rows)}"
        are = {"min": rows.min(axis=0), "max": rows.max(axis=0), "mean": rows.mean(axis=0, dtype=np.float64)}
        for name in [name for name in are if name in said]:
            yield from _other_numbers(f"{_STATS}: {feature}.{name}", said[name], are[name])


def _other_numbers(what: str, said: object, wanted: np.ndarray) -> Iterator[str]:
    """Yield how a list of numbers that is told differs from what it must be."""
    try:
        found = np.asarray(said, np.float64)
    except (ValueError, TypeError):
        found = np.empty(0)
    if found.shape != wanted.shape:
        yield f"{what} is no list of {len(wanted)} numbers"
        return
    close = np.isclose(found, wanted, rtol=1e-3, atol=1e-4)  # NaN is close to nothing
    if not close.all():
        place = int(np.argmin(close))
        yield f"{what}[{place}] is {found[place]:g}, that of the rows is {wanted[place]:g}"


def _times(recorded: LeRobotFolder, data: datasets.Dataset) -> Iterator[str]:
    """Yield the first row whose time is not that of its place in its episode."""
    times, rate = recorded.times(), data.meta.convention.control_rate
    if times is None:
        return
    steps = np.arange(len(times)) - np.repeat(data.starts[:-1], np.diff(data.starts))
    off = np.flatnonzero(~(np.abs(times - steps / rate) < 0.5 / rate))
    if off.size:
        row = int(off[0])
        yield f"row {row} is of {times[row]:g} s, step {steps[row]} at {rate} a second is {steps[row] / rate:g} s"


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
    try:
        found = problems(Path(arguments[0]))
    except Exception as error:  # whatever it is, these data are the reason: others are read by the same lines
        if isinstance(error, MemoryError):
            raise
        found = [f"{arguments[0]} cannot be read ({type(error).__name__}: {error})"]
    more = [f"and {len(found) - _SHOWN} more"] if found[_SHOWN:] else []
    sys.stdout.write("".join(f"{line}\n" for line in found[:_SHOWN] + more))
    if found and (Path(arguments[0]) / datasets.META).is_file():
        sys.stderr.write(f"{MAKE_AGAIN}\n")
    return DataError.exit_code if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
