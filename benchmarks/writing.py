"""Demonstrations written by us and by LeRobot's own writer: the same rows, frames and statistics, compared.

Frames are drawn, two cameras of 224 pixels, as many bytes as rendered ones (70 kB), and encoded before: that is the
renderer's work. Both write the same PNG files; LeRobot would encode them once more, which is kept from it and timed
apart. Ours is timed as in a demos job, where those who rendered have counted the shades that statistics need, and once
more counting them itself, as in an import. Rounds are in turn; medians count. LeRobot's time is told by what it is for.

    scripts/bench writing [--episodes 4] [--steps 74] [--rounds 3]
"""

import argparse
import contextlib
import functools
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import PIL.Image
import pyarrow.parquet
from datasets import disable_progress_bars
from lerobot.datasets import lerobot_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from pi05.config import ACTION_NAMES
from pi05.data import shades
from pi05.data.blocks import png
from pi05.data.images import pixels
from pi05.data.writer import Form, Writer

SIZE = 224
FORM = Form(
    robot="panda_wristcam",
    rate=20,
    sentence="Push and move a cube to a goal region in front of it.",
    numbers={"observation.state": [f"number_{i}" for i in range(17)], "action": ACTION_NAMES},
    cameras=("observation.images.base_camera", "observation.images.hand_camera"),
    size=SIZE,
)
WHOLE = 300
"""Demonstrations of a dataset of preset micro."""


@dataclass(frozen=True)
class Episode:
    """Numbers and frames by feature, and the shades of the frames."""

    numbers: dict[str, np.ndarray]
    frames: dict[str, list[bytes]]
    seen: dict[str, np.ndarray]


def draw(episodes: int, steps: int) -> list[Episode]:
    """Return episodes whose frames are as large as rendered ones."""
    random = np.random.default_rng(0)
    smooth = np.stack([*np.meshgrid(np.arange(SIZE), np.arange(SIZE)), np.full((SIZE, SIZE), 90)], axis=-1)

    def frame(step: int) -> bytes:
        return png((smooth + step + random.integers(-4, 5, smooth.shape)).clip(0, 255).astype(np.uint8))

    def episode() -> Episode:
        numbers = {name: random.normal(size=(steps, len(of))).astype(np.float32) for name, of in FORM.numbers.items()}
        frames = {name: [frame(step) for step in range(steps)] for name in FORM.cameras}
        seen = {name: shades.of_episode([shades.of_frame(pixels(one)) for one in of]) for name, of in frames.items()}
        return Episode(numbers, frames, seen)

    return [episode() for _ in range(episodes)]


def ours(folder: Path, episodes: Sequence[Episode], counted: bool) -> None:
    """Write with our writer."""
    with Writer(folder, FORM) as writer:
        for one in episodes:
            writer.add(one.numbers, one.frames, one.seen if counted else None)


def theirs(folder: Path, episodes: Sequence[Episode], encode: bool = False) -> None:
    """Write with LeRobot's; unless told, it gets pictures that are saved as the file they came from."""
    features = {name: dict(of) for name, of in FORM.features.items() if name in (*FORM.numbers, *FORM.cameras)}
    for feature in features.values():
        feature["shape"] = tuple(feature["shape"])
    dataset = LeRobotDataset.create("pi05/bench", FORM.rate, features, folder, FORM.robot, use_videos=False)
    given = pixels if encode else _as_it_is
    for one in episodes:
        columns = {**one.numbers, **{name: map(given, frames) for name, frames in one.frames.items()}}
        for row in zip(*columns.values(), strict=True):
            dataset.add_frame({**dict(zip(columns, row, strict=True)), "task": FORM.sentence})
        dataset.save_episode()
    dataset.finalize()


def _as_it_is(content: bytes) -> Any:
    image: Any = PIL.Image.open(io.BytesIO(content))
    image.save = lambda path, **_: Path(path).write_bytes(content)
    return image


@contextlib.contextmanager
def shares() -> Iterator[dict[str, float]]:
    """Yield the seconds that LeRobot's writer spends, by what for."""
    spent: dict[str, float] = {"frames to files": 0, "statistics": 0, "files to rows": 0, "meta data": 0}
    places = [
        (LeRobotDataset, "add_frame", "frames to files"),
        (lerobot_dataset, "compute_episode_stats", "statistics"),
        (LeRobotDataset, "_save_episode_data", "files to rows"),
        (lerobot_dataset.LeRobotDatasetMetadata, "save_episode", "meta data"),
    ]
    originals = [getattr(owner, name) for owner, name, _ in places]
    try:
        for (owner, name, what), original in zip(places, originals, strict=True):
            setattr(owner, name, _timed(original, spent, what))
        yield spent
    finally:
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def _timed(original: Callable[..., Any], spent: dict[str, float], what: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def timed(*given: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return original(*given, **named)
        finally:
            spent[what] += time.perf_counter() - begin

    return timed


def equal(one: Path, other: Path) -> bool:
    """Return whether two datasets have the same rows, frames, records of episodes, statistics and description."""
    tables = ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"]
    same = [pyarrow.parquet.read_table(one / name).equals(pyarrow.parquet.read_table(other / name)) for name in tables]
    for name in ("meta/info.json", "meta/stats.json"):
        same.append(json.loads((one / name).read_bytes()) == json.loads((other / name).read_bytes()))
    return all(same)


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a line a way and one of JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench writing")
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=74)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    disable_progress_bars()
    episodes = draw(given.episodes, given.steps)
    ways: dict[str, Callable[[Path], None]] = {
        "ours": lambda folder: ours(folder, episodes, counted=True),
        "ours, counting shades": lambda folder: ours(folder, episodes, counted=False),
        "lerobot": lambda folder: theirs(folder, episodes),
        "lerobot, encoding": lambda folder: theirs(folder, episodes, encode=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as temporary, shares() as spent:
        root = Path(temporary)
        for number in range(given.rounds):
            for name, write in ways.items():
                before = dict(spent)
                begin = time.perf_counter()
                write(root / f"{name}-{number}")
                taken[name].append(time.perf_counter() - begin)
                if name != "lerobot":
                    spent.update(before)
        same = equal(root / "ours-0", root / "lerobot-0")
        bytes_ = sum(path.stat().st_size for path in (root / "ours-0").rglob("*") if path.is_file())
    seconds = {name: statistics.median(times) / given.episodes for name, times in taken.items()}
    for name, one in seconds.items():
        print(f"{name:<24} {one:7.3f} s an episode of {given.steps} steps, {one * WHOLE / 60:5.1f} minutes for {WHOLE}")
    print(json.dumps(_line(seconds, spent, given.rounds * given.episodes, same, bytes_ / given.episodes)))


def _line(seconds: dict[str, float], spent: dict[str, float], episodes: int, same: bool, size: float) -> dict[str, Any]:
    return {
        "name": "writing",
        "ratio": round(seconds["lerobot"] / seconds["ours"], 1),
        "ratio_counting": round(seconds["lerobot"] / seconds["ours, counting shades"], 1),
        "seconds_an_episode": {name: round(one, 3) for name, one in seconds.items()},
        "lerobot_spends": {what: round(one / episodes, 3) for what, one in spent.items()},
        "megabytes_an_episode": round(size / 1e6, 1),
        "same": same,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
