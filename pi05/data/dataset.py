"""Datasets on disk: turns demonstrations into a LeRobot v3.0 folder, and such a folder into plain arrays.

Writing goes through pi05.data.writer and reading through pi05.data.lerobot, in LeRobot's form but without lerobot,
which imports torch, keeps to one thread and decodes one row at a time. Beside LeRobot's files lies meta/pi05.json:
under which convention, from which seeds and by which versions the demonstrations were made.
Frames stay the PNG files they come as; one demonstration is in memory at a time.
Knows nothing of simulators, storage or training.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pi05.config import ACTION_NAMES, Convention, explain
from pi05.data.lerobot import ACTION, IMAGES, INFO, MAKE_AGAIN, STATE, LeRobotFolder, Rows, read_json
from pi05.data.shades import Shades
from pi05.data.writer import Form, Writer
from pi05.errors import DataError
from pi05.tasks import TASKS, Task, find

META = "meta/pi05.json"


@dataclass(frozen=True)
class Demo:
    """One demonstration of T steps.

    Attributes:
        seed: Environment seed of the reset it starts from.
        states: float32 (T, S), before each action.
        actions: float32 (T, 8), absolute joint targets in rad and the gripper in [-1, 1].
        frames: What each camera saw before each action, T PNG files a camera.
        shades: How often each shade is in a camera's frames (pi05.data.shades); a camera may lack.
    """

    seed: int
    states: np.ndarray
    actions: np.ndarray
    frames: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    shades: Mapping[str, Shades] = field(default_factory=dict)


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
        disturbed: Whether the demonstration was pushed off its course on the way.
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
    disturbed: bool = False


class DatasetMeta(BaseModel):
    """Where a dataset comes from.

    Attributes:
        task: Name of the task.
        convention: Of states, actions and cameras.
        renderer: What drew the images.
        goal_visible: Whether the goal is in them. Ours always show it; ManiSkill by itself hides PickCube's.
        source: Recordings of others that were replayed, or "" for our own planner.
        seeds: Environment seed of each episode, in order.
        seeds_known: Whether they are that; of imported episodes nobody knows them, and they are numbered.
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
    seeds_known: bool = True
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


def write(folder: Path, task: Task, state_names: Sequence[str], demos: Iterable[Demo], meta: DatasetMeta) -> None:
    """Write demonstrations as a LeRobot v3.0 dataset into `folder`, which must be empty or not exist."""
    convention = meta.convention
    form = Form(
        robot=convention.robot,
        rate=convention.control_rate,
        sentence=task.sentence,
        numbers={STATE: tuple(state_names), ACTION: ACTION_NAMES},
        cameras=tuple(f"{IMAGES}{camera}" for camera in convention.cameras),
        size=convention.image_size,
    )
    with Writer(folder, form) as writer:
        for demo in demos:
            frames = {f"{IMAGES}{camera}": demo.frames[camera] for camera in convention.cameras}
            shades = {f"{IMAGES}{camera}": counts for camera, counts in demo.shades.items()}
            writer.add({STATE: demo.states, ACTION: demo.actions}, frames, shades)
    (folder / META).write_text(meta.model_dump_json(indent=1))


def load(folder: Path, remedy: str = MAKE_AGAIN) -> Dataset:
    """Read a dataset written by `write`; no image is read.

    Args:
        folder: Where it is.
        remedy: What errors say that is to be done; "": whoever asks says that.

    Raises:
        DataError: A file is missing or damaged, its content is not what the meta data promise, or others made it.
    """
    meta = _read_meta(folder, remedy)
    recorded = LeRobotFolder(folder, remedy)
    for problem in _other_meaning(recorded, meta):
        raise DataError(f"{folder / INFO}: {problem}" + (f"; {remedy}" if remedy else ""))
    for camera in meta.convention.cameras:
        recorded.check_camera(camera, meta.convention.image_size)
    numbers = recorded.numbers()
    for problem in _other_episodes(meta, numbers):
        raise DataError(f"{folder} {problem}" + (f"; {remedy}" if remedy else ""))
    names = recorded.names(STATE)
    return Dataset(meta, numbers.states, numbers.actions, numbers.starts, names, folder)


def _other_meaning(recorded: LeRobotFolder, meta: DatasetMeta) -> Iterator[str]:
    """Yield where LeRobot's description gives the numbers another meaning than ours: whoever changed it knew one."""
    rate, wanted = recorded.info.get("fps"), meta.convention.control_rate
    if rate != wanted:
        yield f"fps is {rate}, {META} says control_rate {wanted}: a row a control step is required"
    names = recorded.names(ACTION)
    if names != ACTION_NAMES:
        yield f"the actions are {', '.join(names)}; required are, in this order, {', '.join(ACTION_NAMES)}"


def _other_episodes(meta: DatasetMeta, numbers: Rows) -> Iterator[str]:
    """Yield whether there is not a seed an episode, or another instruction than the task's own."""
    episodes = len(numbers.sentences)
    if episodes != len(meta.seeds):
        yield f"has {episodes} episodes, {META} says {len(meta.seeds)}"
    wanted = find(meta.task).sentence
    if other := set(numbers.sentences) - {wanted}:
        yield f"has the instruction {min(other)!r}, {meta.task} has {wanted!r}"


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
            f"Choose another convention.state, or, {MAKE_AGAIN}"
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


def _read_meta(folder: Path, remedy: str) -> DatasetMeta:
    path = folder / META
    if not path.exists() and (folder / INFO).exists():
        raise DataError(
            f"{folder} has no {META}, so it was made elsewhere and cannot be used as it is; import it: pi05ctl "
            f"datasets import {folder} --task TASK"
        )
    try:
        meta = DatasetMeta.model_validate(read_json(path, remedy))
    except ValidationError as error:
        after = f"; {remedy}" if remedy else ""
        raise DataError(f"{path} is not what this version writes: {explain(error)}{after}") from error
    if meta.task not in TASKS:
        raise DataError(f"{path}: task is {meta.task!r}, there are {', '.join(TASKS)}")
    return meta
