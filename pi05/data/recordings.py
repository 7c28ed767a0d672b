"""ManiSkill's h5 and json files -> recordings: actions, and the course of the physics, by seed.

The planner writes them for a block of seeds; ManiSkill's own downloads have the same form, and so has whatever its
RecordEpisode writes. Steps no simulator.
"""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05.config import ACTION_NAMES, Convention
from pi05.data.dataset import Attempt
from pi05.errors import DataError
from pi05.simulator import CONVERTED_MODES
from pi05.storage import crc32c, expanded, is_pointer
from pi05.tasks import DEMO_SEEDS, Task

_SHOWN = 5
"""Files that an error names."""
_OF_H5PY = (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError)
"""What h5py, and numpy after it, raise about a damaged file."""
_LONGEST, _WIDEST = 100_000, 1_000
"""Steps of an episode, and numbers of a step, beyond which a file is no recording: an hour, and some seventy bodies."""


@dataclass(frozen=True)
class Recording:
    """An episode as it was recorded.

    Attributes:
        seed: Environment seed.
        actions: float32 (T, 8) of pd_joint_pos, (T, D) of another control mode.
        physics: float32 (T + 1, D) an actor or articulation, keyed as in `Simulator.physics`; perhaps empty.
        mode: Control mode of the actions.
    """

    seed: int
    actions: np.ndarray
    physics: dict[str, np.ndarray]
    mode: str = "pd_joint_pos"


@dataclass(frozen=True)
class Plan:
    """Consecutive seeds planned together: every attempt, and the recordings of the successful ones by seed."""

    attempts: tuple[Attempt, ...]
    recordings: dict[int, Recording]


class Recordings:
    """Demonstrations that others recorded, as ManiSkill's h5 file with its json beside it.

    Args:
        path: The h5 file.
        task, convention: What they must be of. The robot may be another Panda: a replay shows whether that matters.

    Episodes whose seeds demonstrations may not use are left out: `outside` says how many.

    Raises:
        DataError: A file is missing or damaged, of another task or a controller that cannot be converted, or has only
            seeds that demonstrations may not use.
    """

    def __init__(self, path: Path, task: Task, convention: Convention) -> None:
        self.path = path = expanded(path)
        content = _read_json(path)
        try:
            _check_source(path, content, task, convention)
            every = {_seed(one): one for one in reversed(content["episodes"])}
            self.twice = len(content["episodes"]) - len(every)
            told = content["env_info"].get("env_kwargs") or {}
            self.backend, self._robot = str(told.get("sim_backend") or ""), str(told.get("robot_uids") or "unknown")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path.with_suffix('.json')} is not what ManiSkill's recorder writes ({error})") from error
        self._episodes = {seed: one for seed, one in every.items() if seed in DEMO_SEEDS}
        self.seeds, self.outside = tuple(sorted(self._episodes)), len(every) - len(self._episodes)
        if not self.seeds:
            found = f"{min(every)} to {max(every)}" if every else "none"
            raise DataError(
                f"{path} has no episode that can be used: its seeds are {found}, demonstrations use "
                f"{DEMO_SEEDS.start} to {DEMO_SEEDS.stop - 1}, so that no evaluation meets one"
            )

    @functools.cached_property
    def identity(self) -> str:
        """Name and checksum of the h5 file: the same recordings, wherever they lie."""
        return f"{self.path.name} (crc32c {crc32c(self.path)})"

    def check(self) -> None:
        """Raise DataError unless every successful episode has actions of the robot; none of them is read."""
        with self._opened() as file:
            for seed in self.seeds:
                if _recorded(self._episodes[seed]).success:
                    _actions(file, self._episodes[seed], self._robot)

    def plan(self, seeds: Sequence[int]) -> Plan:
        """Return the recordings of some seeds."""
        with self._opened() as file:
            attempts = tuple(_recorded(self._episodes[seed]) for seed in seeds)
            wanted = [attempt.seed for attempt in attempts if attempt.success]
            recordings = {seed: _recording(file, self._episodes[seed], self._robot) for seed in wanted}
        return Plan(attempts, recordings)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Yield the h5 file (h5py.File); what h5py says of a damaged one becomes an error with words."""
        import h5py

        if is_pointer(self.path):
            raise DataError(f"{self.path} is a Git LFS pointer, not the recordings; fetch them with `git lfs pull`")
        try:
            with h5py.File(self.path, "r") as file:
                yield file
        except _OF_H5PY as error:
            raise DataError(f"{self.path} is damaged ({error}); fetch it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if path.is_dir():
        inside = [str(name) for name in sorted(path.rglob("*.h5"))[:_SHOWN]]
        there = f"there are {', '.join(inside)} in it" if inside else "there is no h5 file in it"
        raise DataError(f"demos.source: {path} is a folder; name ManiSkill's h5 file: {there}")
    for file in (path, beside):
        if not file.is_file():
            what = f"is a link to {file.readlink()}, which does not exist" if file.is_symlink() else "does not exist"
            raise DataError(f"demos.source: {file} {what}; name ManiSkill's h5 file with its json beside it")
    if is_pointer(beside):
        raise DataError(f"{beside} is a Git LFS pointer; fetch it with `git lfs pull`")
    try:
        return json.loads(beside.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{beside} is damaged ({error}); fetch it again") from error


def _check_source(path: Path, content: dict[str, Any], task: Task, convention: Convention) -> None:
    """Raise DataError naming both values when recordings are of another task or another controller."""
    info = content["env_info"]
    if info["env_id"] != task.env_id:
        raise DataError(f"{path} holds {info['env_id']}, {task.name} is {task.env_id}")
    modes = {episode["control_mode"] for episode in content["episodes"]} or {info["env_kwargs"]["control_mode"]}
    if other := modes - {convention.control_mode, *CONVERTED_MODES}:
        raise DataError(
            f"{path} holds actions of {other.pop()}, the job wants {convention.control_mode}; converted are "
            f"{', '.join(CONVERTED_MODES)}"
        )


def _seed(episode: dict[str, Any]) -> int:
    """Return the seed of an episode."""
    return int(_single(episode["episode_seed"]))


def _single(value: Any) -> Any:
    """Return a value; recorders of late 2024 write lists of one."""
    if isinstance(value, list):
        (value,) = value
    return value


def _recorded(episode: dict[str, Any]) -> Attempt:
    """Return what the recorder says of an episode; how many steps it has its actions say."""
    success = bool(_single(episode.get("success", True)))
    reason = "" if success else "it was recorded without success"
    steps = _single(episode.get("elapsed_steps", 0))
    steps = steps if isinstance(steps, int) else 0
    return Attempt(seed=_seed(episode), success=success, steps=steps, seconds=0, reason=reason)


def read_plan(path: Path, seeds: Sequence[int]) -> Plan | None:
    """Return what the planner wrote, or None when it is missing, damaged or of other seeds."""
    import h5py

    try:
        content = json.loads(path.with_suffix(".json").read_bytes())
        attempts = tuple(Attempt.model_validate(attempt) for attempt in content["attempts"])
        with h5py.File(path, "r") as file:
            recordings = [_recording(file, episode) for episode in content["episodes"]]
    except (DataError, *_OF_H5PY):
        return None
    by_seed = {recording.seed: recording for recording in recordings}
    planned = [attempt.seed for attempt in attempts if attempt.success]
    if [attempt.seed for attempt in attempts] != list(seeds) or list(by_seed) != planned:
        return None
    return Plan(attempts, by_seed)


def _recording(file: Any, episode: dict[str, Any], robot: str = "unknown") -> Recording:
    """Return an episode of ManiSkill's h5 file (h5py.File), recorded with a robot."""
    actions = _values(_actions(file, episode, robot)).astype(np.float32)
    return Recording(_seed(episode), actions, dict(_physics(_group(file, episode))), _mode(episode))


def _mode(episode: dict[str, Any]) -> str:
    return str(episode.get("control_mode", "pd_joint_pos"))


def _group(file: Any, episode: dict[str, Any]) -> Any:
    """Return the group of an episode; raise DataError when the json speaks of one that is not there."""
    name = f"traj_{episode['episode_id']}"
    if "/" not in name and name not in file:
        raise DataError(
            f"{file.filename} has no {name}, which its json says is the episode of seed {_seed(episode)}: the two do "
            "not belong together, or a merge broke off; fetch both again"
        )
    return _member(file, name)


def _actions(file: Any, episode: dict[str, Any], robot: str) -> Any:
    """Return the actions of an episode (h5py.Dataset); raise DataError when they are of another robot."""
    import h5py

    where = f"{file.filename}: traj_{episode['episode_id']}"
    actions = _member(_group(file, episode), "actions")
    if isinstance(actions, h5py.Group):
        raise DataError(
            f"{where} has actions of several robots ({', '.join(map(str, actions))}); recordings of one Panda are "
            "required"
        )
    if _mode(episode) == "pd_joint_pos" and actions.ndim == 2 and actions.shape[1] != len(ACTION_NAMES):
        raise DataError(
            f"{where} has actions of {actions.shape[1]} numbers, those of pd_joint_pos of a Panda have "
            f"{len(ACTION_NAMES)} (seven joints and the gripper): it was recorded with another robot (robot_uids: "
            f"{robot}); use recordings of a Panda"
        )
    return actions


def _physics(group: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the course of every body, which replays are only compared with.

    Nothing of a file that has none, or has it in another form, as one flat array in old ones.
    """
    import h5py

    states = _member(group, "env_states") if "env_states" in group else None
    for kind in list(states) if isinstance(states, h5py.Group) else []:
        actors = _member(states, str(kind))
        for name in list(actors) if isinstance(actors, h5py.Group) else []:
            values = _member(actors, str(name))
            if isinstance(values, h5py.Dataset) and values.ndim == 2 and values.dtype.kind in "fiu":
                yield f"{kind}/{name}", _values(values)


def _member(group: Any, name: str) -> Any:
    """Return what lies under a name; raise ValueError when it need not lie there.

    A link, also one that stays in the file, may go on through another that leads out of it, and so may a path.
    """
    import h5py

    if "/" in name:
        raise ValueError(f"{name} is no name of a member, which has no /")
    if isinstance(group.get(name, getlink=True), h5py.ExternalLink | h5py.SoftLink):
        raise ValueError(f"{name} is a link; recordings are one file and its json, and the recorder makes none")
    return group[name]


def _values(dataset: Any) -> np.ndarray:
    """Return the rows of a dataset; raise ValueError when they lie in another file or are too many for an episode."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} takes its values from another file; recordings are one file and its json")
    if dataset.ndim != 2 or dataset.shape[0] > _LONGEST or dataset.shape[1] > _WIDEST:
        raise ValueError(f"{dataset.name} has shape {dataset.shape}, at most ({_LONGEST}, {_WIDEST}) is an episode")
    return np.asarray(dataset)
