"""Datasets on disk: turns demonstrations into a LeRobot v3.0 folder, and such a folder into plain arrays.

Writing goes through lerobot itself, so that LeRobotDataset opens the result; reading goes through pi05.data.lerobot,
because lerobot imports torch and decodes one row at a time. Beside LeRobot's files lies meta/pi05.json: under which
convention, from which seeds and by which versions the demonstrations were made.
Frames stay the PNG files they come as; one demonstration is in memory at a time.
Knows nothing of simulators, storage or training.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
from pydantic import BaseModel, ConfigDict, ValidationError

from pi05.config import ACTION_NAMES, Convention, explain
from pi05.data.lerobot import MAKE_AGAIN, LeRobotFolder, Rows, read_json
from pi05.errors import DataError
from pi05.tasks import Task, find

META = "meta/pi05.json"
IMAGES = "observation.images."
"""LeRobot's keys of cameras begin with it."""


@dataclass(frozen=True)
class Demo:
    """One demonstration of T steps.

    Attributes:
        seed: Environment seed of the reset it starts from.
        states: float32 (T, S), before each action.
        actions: float32 (T, 8), absolute joint targets in rad and the gripper in [-1, 1].
        frames: What each camera saw before each action, T PNG files a camera.
    """

    seed: int
    states: np.ndarray
    actions: np.ndarray
    frames: Mapping[str, Sequence[bytes]] = field(default_factory=dict)


class Attempt(BaseModel):
    """What became of one seed: planned and replayed, or the reason why not.

    Attributes:
        seed: Environment seed.
        success: Whether the dataset has it.
        steps: Control steps.
        seconds: Planning took, as one core computes.
        reason: Why it failed, or "".
        replay_seconds: Replay took, rendering included, as one core computes.
        exact: Whether the replay had the plan's bits.
        difference: Largest difference between replay and plan, in the state's own units.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    success: bool
    steps: int
    seconds: float
    reason: str = ""
    replay_seconds: float = 0.0
    exact: bool = True
    difference: float = 0.0


class DatasetMeta(BaseModel):
    """Where a dataset comes from.

    Attributes:
        task: Name of the task.
        convention: Of states, actions and cameras.
        renderer: What drew the images.
        goal_visible: Whether the goal is in them. Ours always show it; ManiSkill by itself hides PickCube's.
        source: Recordings of others that were replayed, or "" for our own planner.
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
    goal_visible: bool = True
    source: str = ""
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

    @property
    def replay_seconds(self) -> float:
        """Replay and rendering time a kept demonstration cost, failures included."""
        return sum(attempt.replay_seconds for attempt in self.attempts) / len(self.seeds)


@dataclass(frozen=True)
class Dataset:
    """All rows of a dataset, episode after episode.

    Attributes:
        meta: Where it comes from.
        states: float32 (N, S), named by `state_names`.
        actions: float32 (N, 8), absolute joint targets in rad and the gripper in [-1, 1].
        starts: int64 (E + 1,), first row of each episode, and N.
        state_names: Name of each number in a state.
        folder: Where its files are, images among them.
    """

    meta: DatasetMeta
    states: np.ndarray
    actions: np.ndarray
    starts: np.ndarray
    state_names: tuple[str, ...]
    folder: Path | None = None


def write(
    folder: Path, task: Task, state_names: Sequence[str], demos: Iterable[Demo], meta: DatasetMeta, user: str = "pi05"
) -> None:
    """Write demonstrations as a LeRobot v3.0 dataset into `folder`, which must be empty or not exist."""
    if folder.exists():
        folder.rmdir()  # LeRobot insists on making it
    dataset = _create(folder, f"{user}/{task.name}", meta.convention, state_names)
    for demo in demos:
        cameras = {f"{IMAGES}{name}": map(_encoded, files) for name, files in demo.frames.items()}
        columns = {"observation.state": demo.states, "action": demo.actions, **cameras}
        for row in zip(*columns.values(), strict=True):
            dataset.add_frame({**dict(zip(columns, row, strict=True)), "task": task.sentence})
        dataset.save_episode()
    dataset.finalize()
    shutil.rmtree(folder / "images", ignore_errors=True)  # empty folders that LeRobot leaves behind
    for path in sorted((folder / "data").rglob("*.parquet")):
        _settle(path)
    (folder / META).write_text(meta.model_dump_json(indent=1))


def load(folder: Path) -> Dataset:
    """Read a dataset written by `write`; no image is read.

    Raises:
        DataError: A file is missing or damaged, or its content is not what the meta data promise.
    """
    recorded = LeRobotFolder(folder)
    meta = _read_meta(folder / META)
    for camera in meta.convention.cameras:
        recorded.check_camera(camera, meta.convention.image_size)
    numbers = recorded.numbers()
    _check_episodes(folder, meta, numbers)
    names = recorded.names("observation.state")
    return Dataset(meta, numbers.states, numbers.actions, numbers.starts, names, folder)


def _check_episodes(folder: Path, meta: DatasetMeta, numbers: Rows) -> None:
    """Raise DataError unless there is a seed an episode, and the task's own instruction."""
    episodes = len(numbers.sentences)
    if episodes != len(meta.seeds):
        raise DataError(f"{folder} has {episodes} episodes, {META} says {len(meta.seeds)}; {MAKE_AGAIN}")
    wanted = find(meta.task).sentence
    if other := set(numbers.sentences) - {wanted}:
        raise DataError(f"{folder} has the instruction {other.pop()!r}, {meta.task} has {wanted!r}; {MAKE_AGAIN}")


def with_states(dataset: Dataset, names: tuple[str, ...]) -> Dataset:
    """Return the dataset with the states that a policy is told, in that order; a dataset may hold more of them.

    Raises:
        DataError: The dataset lacks one.
    """
    if names == dataset.state_names:
        return dataset
    if missing := [name for name in names if name not in dataset.state_names]:
        raise DataError(
            f"the states of {dataset.folder} have no {', '.join(missing)}; they are {', '.join(dataset.state_names)}. "
            f"{MAKE_AGAIN.capitalize()}, or choose another convention.state"
        )
    columns = [dataset.state_names.index(name) for name in names]
    return replace(dataset, states=np.ascontiguousarray(dataset.states[:, columns]), state_names=names)


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


def _settle(path: Path) -> None:
    """Write a parquet file anew without what depends on where it was made, a fingerprint of paths; same row groups."""
    unsettled = path.rename(path.with_suffix(".unsettled"))
    with pyarrow.parquet.ParquetFile(unsettled) as file:
        features = json.loads(file.schema_arrow.metadata[b"huggingface"])
        schema = file.schema_arrow.with_metadata({"huggingface": json.dumps({"info": features["info"]})})
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for number in range(file.num_row_groups):
                writer.write_table(file.read_row_group(number).cast(schema))
    unsettled.unlink()


def _encoded(png: bytes) -> Any:
    """Return a PIL image that LeRobot does not encode again when it saves it (15 ms a frame)."""
    image: Any = PIL.Image.open(io.BytesIO(png))
    image.save = lambda path, **_options: Path(path).write_bytes(png)
    return image


def _create(folder: Path, name: str, convention: Convention, state_names: Sequence[str]) -> Any:
    """Return an empty LeRobotDataset; imports lerobot and with it torch (about 8 s)."""
    size = convention.image_size
    image = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
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
                **{f"{IMAGES}{camera}": image for camera in convention.cameras},
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


def _read_meta(path: Path) -> DatasetMeta:
    try:
        return DatasetMeta.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path} is not what this version writes: {explain(error)}; {MAKE_AGAIN}") from error
