"""ManiSkill's recordings of other control modes become joint targets, which replay as what was recorded."""

import json
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pi05 import simulator, tasks
from pi05.data.dataset import Dataset, load
from pi05.data.recordings import Recordings
from pi05.data.verify import problems
from pi05.errors import DataError
from pi05.jobs.demos import make_demos
from pi05.simulator import JointTargets
from pi05.storage import FileStorage
from tests.sim.conftest import CONVENTION, KEY, context, demos_job

PUSHCUBE = tasks.find("pushcube")
CONVERTED = ["pd_joint_delta_pos", "pd_joint_target_delta_pos", "pd_ee_delta_pose", "pd_ee_pose"]


class Tap:
    """ManiSkill's environment, whose actions are kept."""

    def __init__(self, env: Any) -> None:
        self.unwrapped, self.actions = env, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unwrapped, name)

    def step(self, action: Any) -> Any:
        self.actions.append(np.asarray(action, np.float32).reshape(-1))
        return self.unwrapped.step(action)


def in_mode(mode: str, data: Dataset, number: int) -> np.ndarray:
    """Return the actions of a demonstration in another control mode, by ManiSkill's own converter."""
    from mani_skill.trajectory.utils.actions import conversion

    envs = [Tap(simulator.make(PUSHCUBE, CONVENTION, one).unwrapped) for one in ("pd_joint_pos", mode)]
    rows = slice(data.starts[number], data.starts[number + 1])
    with simulator.inert_materials(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy functions on tensors
        for env in envs:
            env.reset(seed=data.meta.seeds[number], options={"reconfigure": True})
        info = conversion.from_pd_joint_pos(mode, data.actions[rows], *envs)
    assert bool(info["success"][0])
    return np.stack(envs[1].actions)


def write(folder: Path, mode: str, episodes: dict[int, np.ndarray], **said: object) -> Path:
    """Write recordings as ManiSkill's recorder does; `said` is of every episode."""
    path = folder / "trajectory.h5"
    listed = []
    with h5py.File(path, "w") as file:
        for number, (seed, actions) in enumerate(episodes.items()):
            file[f"traj_{number}/actions"] = actions
            episode = {"episode_id": number, "episode_seed": seed, "control_mode": mode, "success": True}
            listed.append({**episode, "elapsed_steps": len(actions), **said})
    info = {"env_id": PUSHCUBE.env_id, "env_kwargs": {"sim_backend": "physx_cuda"}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": listed}))
    return path


def replayed(source: Path, root: Path, **demos: object) -> tuple[Dataset, Path]:
    job = demos_job(root, source=str(source), **demos)
    make_demos(job, context(job))
    folder = FileStorage(job.storage).open(KEY)
    return load(folder), folder


@pytest.fixture(scope="module")
def data(storage: FileStorage) -> Dataset:
    return load(storage.open(KEY))


@pytest.mark.parametrize("mode", CONVERTED)
def test_another_control_mode_becomes_demonstrations(mode: str, data: Dataset, tmp_path: Path) -> None:
    actions = in_mode(mode, data, 0)
    seed = data.meta.seeds[0]
    made, folder = replayed(write(tmp_path, mode, {seed: actions}), tmp_path / "store", count=1)
    assert made.meta.seeds == (seed,)
    assert made.actions.shape == (len(actions), 8)
    assert problems(folder) == []
    expected = JointTargets(PUSHCUBE, CONVENTION, mode).of(seed, actions)
    np.testing.assert_array_equal(made.actions, expected)


def test_actions_that_a_controller_does_not_take_are_a_counted_failure(data: Dataset, tmp_path: Path) -> None:
    good, bad = data.meta.seeds[:2]
    episodes = {good: in_mode("pd_joint_delta_pos", data, 0), bad: np.zeros((9, 7), np.float32)}
    source = write(tmp_path, "pd_joint_delta_pos", episodes)
    made, _ = replayed(source, tmp_path / "store", count=2, fewer=True)
    reasons = [attempt.reason for attempt in made.meta.attempts]
    assert reasons == ["", "actions of 7 numbers, the controller takes 8"]
    with pytest.raises(DataError, match=r"recorded in physx_cuda\) gave 1 of 2 demonstrations"):
        replayed(source, tmp_path / "other", count=2)


def test_velocities_are_refused_by_name(tmp_path: Path) -> None:
    source = write(tmp_path, "pd_joint_vel", {3: np.zeros((9, 8), np.float32)})
    with pytest.raises(
        DataError, match="holds actions of pd_joint_vel, the job wants pd_joint_pos; converted are pd_jo"
    ):
        Recordings(source, PUSHCUBE, CONVENTION)


def test_steps_are_counted_and_seeds_in_a_list_are_taken(data: Dataset, tmp_path: Path) -> None:
    seed, actions = data.meta.seeds[0], data.actions[: data.starts[1]]
    source = write(tmp_path, "pd_joint_pos", {seed: actions}, elapsed_steps=99, episode_seed=[seed])
    made, folder = replayed(source, tmp_path / "store", count=1)
    assert (made.meta.seeds, made.meta.attempts[0].steps) == ((seed,), len(actions))
    assert problems(folder) == []


def test_what_is_longer_than_an_evaluation_is_no_demonstration(data: Dataset, tmp_path: Path) -> None:
    first, second = data.meta.seeds[:2]
    actions = data.actions[: data.starts[1]]
    long = np.concatenate([actions, np.repeat(actions[-1:], PUSHCUBE.eval_limit, axis=0)])
    source = write(tmp_path, "pd_joint_pos", {first: actions, second: long})
    made, _ = replayed(source, tmp_path / "store", count=2, fewer=True)
    assert made.meta.attempts[1].reason == "it is longer than an evaluation allows (150 steps)"


def test_seeds_of_the_evaluation_are_left_out_and_told(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    actions = data.actions[: data.starts[1]]
    source = write(tmp_path, "pd_joint_pos", {data.meta.seeds[0]: actions, 1_791_095_845: actions})
    made, _ = replayed(source, tmp_path / "store", count=1)
    assert len(made.meta.seeds) == 1
    assert "has 1 episodes whose seeds demonstrations may not use" in capsys.readouterr().out
    only = write(tmp_path, "pd_joint_pos", {1_791_095_845: actions})
    with pytest.raises(DataError, match="its seeds are 1791095845 to 1791095845, demonstrations use 0 to 999999"):
        Recordings(only, PUSHCUBE, CONVENTION)
