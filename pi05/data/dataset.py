"""Datasets on disk: turns demonstrations into a LeRobot v3.0 folder, and such a folder into plain arrays.

Writing goes through lerobot itself, so that LeRobotDataset opens the result; reading needs pyarrow and json only,
because lerobot imports torch and decodes one row at a time. Beside LeRobot's files lies meta/pi05.json: under which
convention, from which seeds and by which versions the demonstrations were made.
Knows nothing of simulators, storage or training.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from pi05.config import ACTION_NAMES, Convention, explain
from pi05.errors import DataError
from pi05.tasks import Task

META = "meta/pi05.json"
_MAKE_AGAIN = "delete the dataset and make it again with the demos job"


@dataclass(frozen=True)
class Demo:
    """One demonstration of T steps.

    Attributes:
        seed: Environment seed of the reset it starts from.
        states: float32 (T, S), before each action.
        actions: float32 (T, 8), absolute joint targets in rad and the gripper in [-1, 1].
    """

    seed: int
    states: np.ndarray
    actions: np.ndarray


class Attempt(BaseModel):
    """What became of one seed: planned and replayed, or the reason why not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    success: bool
    steps: int
    seconds: float
    reason: str = ""


class DatasetMeta(BaseModel):
    """Where a dataset comes from.

    Attributes:
        task: Name of the task.
        convention: Of states, actions and cameras.
        renderer: What drew the images.
        seeds: Environment seed of each episode, in order.
        attempts: Every seed tried, in order, failures included.
        inexact: Episodes whose replay differed from the plan's recording by at least one bit.
        max_difference: Largest difference between replay and recording, in the state's own units.
        versions: Of what simulated and wrote it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    task: str
    convention: Convention
    renderer: str
    seeds: tuple[int, ...]
    attempts: tuple[Attempt, ...]
    inexact: int = 0
    max_difference: float = 0.0
    versions: dict[str, str]

    @property
    def solver_yield(self) -> float:
        """Demonstrations kept of seeds tried, in [0, 1]."""
        return len(self.seeds) / len(self.attempts)

    @property
    def solver_seconds(self) -> float:
        """Planning time a kept demonstration cost, failures included."""
        return sum(attempt.seconds for attempt in self.attempts) / len(self.seeds)


@dataclass(frozen=True)
class Dataset:
    """All rows of a dataset, episode after episode.

    Attributes:
        meta: Where it comes from.
        states: float32 (N, S), named by `state_names`.
        actions: float32 (N, 8), absolute joint targets in rad and the gripper in [-1, 1].
        starts: int64 (E + 1,), first row of each episode, and N.
        state_names: Name of each number in a state.
    """

    meta: DatasetMeta
    states: np.ndarray
    actions: np.ndarray
    starts: np.ndarray
    state_names: tuple[str, ...]


def write(
    folder: Path, task: Task, state_names: Sequence[str], demos: Iterable[Demo], meta: DatasetMeta, user: str = "pi05"
) -> None:
    """Write demonstrations as a LeRobot v3.0 dataset into `folder`, which must be empty or not exist."""
    if folder.exists():
        folder.rmdir()  # LeRobot insists on making it
    dataset = _create(folder, f"{user}/{task.name}", meta.convention, state_names)
    for demo in demos:
        for state, action in zip(demo.states, demo.actions, strict=True):
            dataset.add_frame({"observation.state": state, "action": action, "task": task.sentence})
        dataset.save_episode()
    dataset.finalize()
    (folder / META).write_text(meta.model_dump_json(indent=1))


def load(folder: Path) -> Dataset:
    """Read a dataset written by `write`.

    Raises:
        DataError: A file is missing or damaged, or its content is not what the meta data promise.
    """
    meta = _read_meta(folder / META)
    info = _read_json(folder / "meta/info.json")
    names = _feature_names(folder, info, "observation.state")
    table = _read_rows(folder)
    states = _matrix(folder, table, "observation.state", len(names))
    actions = _matrix(folder, table, "action", len(ACTION_NAMES))
    starts = _episode_starts(folder, table["episode_index"].to_numpy(), len(meta.seeds))
    if len(states) != info.get("total_frames"):
        raise DataError(
            f"{folder} has {len(states)} rows, meta/info.json says {info.get('total_frames')}; {_MAKE_AGAIN}"
        )
    return Dataset(meta, states, actions, starts, names)


def check_convention(found: Convention, wanted: Convention, what: str) -> None:
    """Raise DataError naming each field in which `found`, the convention of `what`, is not the job's.

    Args:
        found: What the artefact was made with.
        wanted: What the job says.
        what: The artefact, as the user knows it: "dataset datasets/pushcube/3f2a91".
    """
    ours, theirs = wanted.model_dump(), found.model_dump()
    differing = [f"{key} is {theirs[key]!r}, the job wants {ours[key]!r}" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise DataError(
            f"{what} follows another convention: {'; '.join(differing)}. "
            "Use the preset it was made with, or make it again under this one"
        )


def _create(folder: Path, name: str, convention: Convention, state_names: Sequence[str]) -> Any:
    """Return an empty LeRobotDataset; imports lerobot and with it torch (about 8 s)."""
    with _quiet_lerobot():
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        return LeRobotDataset.create(
            name,
            fps=convention.control_rate,
            root=folder,
            robot_type=convention.robot,
            use_videos=False,
            features={
                "observation.state": {"dtype": "float32", "shape": (len(state_names),), "names": list(state_names)},
                "action": {"dtype": "float32", "shape": (len(ACTION_NAMES),), "names": list(ACTION_NAMES)},
            },
        )


@contextlib.contextmanager
def _quiet_lerobot() -> Iterator[None]:
    """Import lerobot without the network, progress bars, and words about videos that are not there."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations of what lerobot imports
            import datasets

            datasets.disable_progress_bars()
            yield
    finally:
        logging.disable(logging.NOTSET)


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raise DataError when there is none."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("not an object")
        return content
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, so this is no dataset of ours; {_MAKE_AGAIN}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); {_MAKE_AGAIN}") from error


def _read_meta(path: Path) -> DatasetMeta:
    try:
        return DatasetMeta.model_validate(_read_json(path))
    except ValidationError as error:
        raise DataError(f"{path} is not what this version writes: {explain(error)}; {_MAKE_AGAIN}") from error


def _feature_names(folder: Path, info: dict[str, Any], feature: str) -> tuple[str, ...]:
    """Return the names of a feature's numbers from LeRobot's info.json."""
    try:
        return tuple(info["features"][feature]["names"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder}/meta/info.json does not describe {feature}; {_MAKE_AGAIN}") from error


def _read_rows(folder: Path) -> pyarrow.Table:
    """Return the rows of all data files in order."""
    columns = ["observation.state", "action", "episode_index"]
    paths = sorted((folder / "data").rglob("*.parquet"))
    if not paths:
        raise DataError(f"{folder}/data holds no parquet file; {_MAKE_AGAIN}")
    try:
        return pyarrow.concat_tables([pyarrow.parquet.read_table(path, columns=columns) for path in paths])
    except (pyarrow.ArrowException, KeyError, OSError) as error:
        raise DataError(f"{folder}/data cannot be read ({error}); {_MAKE_AGAIN}") from error


def _matrix(folder: Path, table: pyarrow.Table, column: str, width: int) -> np.ndarray:
    """Return a column of lists as float32 (N, width); raise DataError for another width or a value not finite."""
    values = table[column].combine_chunks()
    flat = values.flatten().to_numpy(zero_copy_only=False)
    if len(flat) != len(table) * width or flat.dtype != np.float32:
        raise DataError(
            f"{folder}: {column} holds {len(flat)} values of {flat.dtype} in {len(table)} rows, "
            f"float32 rows of {width} are required; {_MAKE_AGAIN}"
        )
    matrix = flat.reshape(len(table), width)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise DataError(f"{folder}: {column} is not finite in {bad.size} rows, first in row {bad[0]}; {_MAKE_AGAIN}")
    return np.array(matrix)


def _episode_starts(folder: Path, episode: np.ndarray, count: int) -> np.ndarray:
    """Return int64 (E + 1,) from the episode of each row; raise DataError unless it counts 0, 0, .., 1, 1, .."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1, [len(episode)]]).astype(np.int64)
    if not np.array_equal(episode[starts[:-1]], np.arange(count)):
        raise DataError(f"{folder} has {len(starts) - 1} episodes, {META} says {count}; {_MAKE_AGAIN}")
    short = np.flatnonzero(np.diff(starts) < 2)
    if short.size:
        raise DataError(f"{folder}: episode {short[0]} has fewer than two steps; {_MAKE_AGAIN}")
    return starts
