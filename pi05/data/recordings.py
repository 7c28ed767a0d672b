"""ManiSkill's h5 and json files -> recordings: actions, and the course of the physics, by seed.

The planner writes them for a block of seeds; ManiSkill's own downloads have the same form, and so has whatever its
RecordEpisode writes. Steps no simulator.
"""

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
from pi05.storage import crc32c
from pi05.tasks import DEMO_SEEDS, Task

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
        self.path = path
        content = _read_json(path)
        try:
            _check_source(path, content, task, convention)
            every = {_seed(one): one for one in reversed(content["episodes"])}
            self.twice = len(content["episodes"]) - len(every)
            self.backend = str(content["env_info"].get("env_kwargs", {}).get("sim_backend", ""))
        except (KeyError, TypeError, ValueError) as error:
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

    def plan(self, seeds: Sequence[int]) -> Plan:
        """Return the recordings of some seeds."""
        import h5py

        attempts = tuple(_recorded(self._episodes[seed]) for seed in seeds)
        wanted = [attempt.seed for attempt in attempts if attempt.success]
        try:
            with h5py.File(self.path, "r") as file:
                recordings = {seed: _recording(file, self._episodes[seed]) for seed in wanted}
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # h5py raises any of them
            raise DataError(f"{self.path} is damaged ({error}); fetch it again") from error
        return Plan(attempts, recordings)


def _read_json(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise DataError(f"demos.source: {file} does not exist; name ManiSkill's h5 file with its json beside it")
    try:
        return json.loads(beside.read_bytes())
    except ValueError as error:
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
    """Return the seed of an episode; recorders of late 2024 write a list of one."""
    seed = episode["episode_seed"]
    if isinstance(seed, list):
        (seed,) = seed
    return int(seed)


def _recorded(episode: dict[str, Any]) -> Attempt:
    """Return what the recorder says of an episode."""
    success = bool(episode.get("success", True))
    reason = "" if success else "it was recorded without success"
    return Attempt(seed=_seed(episode), success=success, steps=episode["elapsed_steps"], seconds=0, reason=reason)


def read_plan(path: Path, seeds: Sequence[int]) -> Plan | None:
    """Return what the planner wrote, or None when it is missing, damaged or of other seeds."""
    import h5py

    try:
        content = json.loads(path.with_suffix(".json").read_bytes())
        attempts = tuple(Attempt.model_validate(attempt) for attempt in content["attempts"])
        with h5py.File(path, "r") as file:
            recordings = [_recording(file, episode) for episode in content["episodes"]]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # h5py raises any of them
        return None
    by_seed = {recording.seed: recording for recording in recordings}
    planned = [attempt.seed for attempt in attempts if attempt.success]
    if [attempt.seed for attempt in attempts] != list(seeds) or list(by_seed) != planned:
        return None
    return Plan(attempts, by_seed)


def _recording(file: Any, episode: dict[str, Any]) -> Recording:
    """Return an episode of ManiSkill's h5 file (h5py.File)."""
    group = _member(file, f"traj_{episode['episode_id']}")
    actions = _values(_member(group, "actions")).astype(np.float32)
    mode = str(episode.get("control_mode", "pd_joint_pos"))
    if mode == "pd_joint_pos" and actions.shape[1] != len(ACTION_NAMES):
        raise ValueError(f"actions of shape {actions.shape}, required are (T, {len(ACTION_NAMES)})")
    return Recording(_seed(episode), actions, dict(_physics(group)), mode)


def _physics(group: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the course of every body; nothing of a file that has none, or as one flat array, as old ones do."""
    import h5py

    states = _member(group, "env_states") if "env_states" in group else None
    for kind in list(states) if isinstance(states, h5py.Group) else []:
        actors = _member(states, str(kind))
        for name in actors:
            yield f"{kind}/{name}", _values(_member(actors, name))


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
