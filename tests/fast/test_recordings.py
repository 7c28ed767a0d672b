"""Recordings of others: what a file may hold, and that it leads nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pi05 import tasks
from pi05.config import Convention
from pi05.data.recordings import Recordings
from pi05.errors import DataError

TASK, CONVENTION = tasks.find("pushcube"), Convention()
ACTIONS, STATES = np.ones((5, 8), np.float32), np.ones((6, 13), np.float32)
Change = Callable[[h5py.Group, Path], None]


def recorded(folder: Path, change: Change | None = None, episode_id: object = 0) -> Recordings:
    """Return a recording of one episode, whose h5 group something has changed, or whose json names another one."""
    path = folder / "trajectory.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("traj_0")
        group["actions"] = ACTIONS
        group["env_states/actors/cube"] = STATES
        if change:
            change(group, folder)
    episode = {"episode_id": episode_id, "episode_seed": 3, "control_mode": "pd_joint_pos", "elapsed_steps": 5}
    info = {"env_id": TASK.env_id, "env_kwargs": {}}
    path.with_suffix(".json").write_text(json.dumps({"env_info": info, "episodes": [episode]}))
    return Recordings(path, TASK, CONVENTION)


def replaced(name: str, **how: object) -> Change:
    """Return a change that makes an array anew."""

    def change(group: h5py.Group, folder: Path) -> None:
        del folder, group[name]
        group.create_dataset(name, **how)

    return change


def outside(group: h5py.Group, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(5 * 8 * 4))
    replaced("actions", shape=(5, 8), dtype="f4", external=[(str(folder / "secret"), 0, 160)])(group, folder)


def virtual(group: h5py.Group, folder: Path) -> None:
    layout = h5py.VirtualLayout((5, 8), "f4")
    layout[:] = h5py.VirtualSource(folder / "other.h5", "secret", (5, 8))
    del group["actions"]
    group.create_virtual_dataset("actions", layout)


def link(name: str) -> Change:
    def change(group: h5py.Group, folder: Path) -> None:
        with h5py.File(folder / "other.h5", "w") as other:
            other["secret"] = ACTIONS
        del group[name]
        group[name] = h5py.ExternalLink(folder / "other.h5", "secret")

    return change


def roundabout(group: h5py.Group, folder: Path) -> None:
    """Lead out by way of a link that stays in the file itself."""
    link("actions")(group, folder)
    group["elsewhere"] = h5py.ExternalLink(folder / "other.h5", "/")
    del group["actions"]
    group["actions"] = h5py.SoftLink("elsewhere/secret")


def test_an_episode_is_read(tmp_path: Path) -> None:
    recording = recorded(tmp_path).plan([3]).recordings[3]
    np.testing.assert_array_equal(recording.actions, ACTIONS)
    np.testing.assert_array_equal(recording.physics["actors/cube"], STATES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (outside, "actions takes its values from another file"),
        (virtual, "actions takes its values from another file"),
        (link("actions"), "actions is a link"),
        (link("env_states/actors/cube"), "cube is a link"),
        (link("env_states/actors"), "actors is a link"),
        (roundabout, "actions is a link"),
        (replaced("actions", shape=(10**9, 8), dtype="f4", chunks=(1, 8)), r"shape \(1000000000, 8\), at most \("),
        (replaced("env_states/actors/cube", shape=(6, 10**9), dtype="f4", chunks=(6, 1)), r"shape \(6, 1000000000\)"),
        (replaced("actions", shape=(5, 8, 1), dtype="f4"), r"shape \(5, 8, 1\)"),
    ],
)
def test_what_leads_out_of_the_file_or_is_no_episode_is_refused(tmp_path: Path, change: Change, words: str) -> None:
    with pytest.raises(DataError, match=rf"trajectory.h5 is damaged \(.*{words}.*\); fetch it again"):
        recorded(tmp_path, change).plan([3])


def test_an_episode_whose_number_is_a_way_into_another_file_is_refused(tmp_path: Path) -> None:
    def elsewhere(group: h5py.Group, folder: Path) -> None:
        with h5py.File(folder / "other.h5", "w") as other:
            other["secret/actions"] = ACTIONS
        group["elsewhere"] = h5py.ExternalLink(folder / "other.h5", "/")

    with pytest.raises(DataError, match="traj_0/elsewhere/secret is no name"):
        recorded(tmp_path, elsewhere, "0/elsewhere/secret").plan([3])


def test_states_as_one_flat_array_are_left_out(tmp_path: Path) -> None:
    def flat(group: h5py.Group, folder: Path) -> None:
        del folder, group["env_states"]
        group["env_states"] = STATES

    assert recorded(tmp_path, flat).plan([3]).recordings[3].physics == {}
