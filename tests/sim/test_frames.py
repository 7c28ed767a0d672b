"""Demonstrations with frames: what is stored is what was seen, the same whatever the workers, kills and sources."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from pi05 import simulator, tasks
from pi05.config import DemosJob
from pi05.data.blocks import read_block
from pi05.data.dataset import load
from pi05.data.images import decode
from pi05.data.recordings import Recordings
from pi05.data.replay import origin
from pi05.data.verify import problems
from pi05.errors import ConfigError, DataError
from pi05.jobs.demos import make_demos
from pi05.simulator import Simulator
from pi05.storage import FileStorage
from tests.sim.conftest import CONVENTION, KEY, PLANNER, SEEING, context, demos_job

PUSHCUBE = tasks.find("pushcube")
ROWS = "data/chunk-000/file-000.parquet"
COUNT = 2


def seeing_job(root: Path, **demos: object) -> DemosJob:
    """Return a job that makes demonstrations of seeds 0 and 1 with frames."""
    job = demos_job(root, **{"count": COUNT, "block": 1, "workers": 2, **demos})
    return job.model_copy(update={"convention": SEEING})


def rows(storage: FileStorage) -> bytes:
    return (storage.open(KEY) / ROWS).read_bytes()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> FileStorage:
    job = seeing_job(tmp_path_factory.mktemp("seen"))
    make_demos(job, context(job))
    return FileStorage(job.storage)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ManiSkill's own RecordEpisode writes of seeds 0 to 4; seed 3 has no solution."""
    out = tmp_path_factory.mktemp("recorded") / "trajectory.h5"
    command = [PLANNER, "-m", "pi05.data.planner", "--task", "pushcube", "--seeds", "5", "--out", str(out)]
    subprocess.run([*command, "--first-seed", "0"], check=True, capture_output=True)
    beside = out.with_suffix(".json")
    content = json.loads(beside.read_bytes())
    del content["attempts"]  # which are ours
    beside.write_text(json.dumps(content))
    return out


def test_a_dataset_says_how_its_images_were_made(seen: FileStorage) -> None:
    data = load(seen.open(KEY))
    assert data.meta.seeds == (0, 1)
    assert (data.meta.convention, data.meta.goal_visible, data.meta.inexact) == (SEEING, True, 0)
    assert data.meta.renderer == simulator.renderer(SEEING.cameras)
    assert data.meta.replay_seconds > 0
    assert data.state_names == simulator.stored_names(PUSHCUBE)
    assert problems(seen.open(KEY)) == []


def test_frames_are_what_the_cameras_saw_before_each_action(seen: FileStorage) -> None:
    data = load(seen.open(KEY))
    table = pyarrow.parquet.read_table(seen.open(KEY) / ROWS)
    environment = Simulator(PUSHCUBE, SEEING)
    environment.reset(1)
    for row in range(data.starts[1], data.starts[2]):
        np.testing.assert_array_equal(environment.stored_state(), data.states[row])
        if row in (data.starts[1], data.starts[2] - 1):
            for camera, image in environment.images().items():
                stored = table[f"observation.images.{camera}"][row].as_py()["bytes"]
                np.testing.assert_array_equal(decode(stored, len(image)), image)
        info = environment.step(data.actions[row])
    assert info.success


def test_lerobot_opens_a_dataset_with_frames(seen: FileStorage) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("pi05/pushcube", root=seen.open(KEY))
    assert (data.num_episodes, tuple(data[0]["observation.images.hand_camera"].shape)) == (COUNT, (3, 64, 64))


def test_a_killed_job_goes_on_and_makes_the_same_frames(seen: FileStorage, tmp_path: Path) -> None:
    job = seeing_job(tmp_path, workers=1)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    first_block = tmp_path / "runs/demos-pushcube-000000/work/blocks/0000000-0000000.json"
    command = [sys.executable, "-m", "pi05.jobs.demos", str(tmp_path / "job.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not first_block.exists():
        assert process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rendered = [attempt["replay_seconds"] for attempt in json.loads(first_block.read_bytes())["attempts"]]
    make_demos(job, context(job))
    assert rows(FileStorage(job.storage)) == rows(seen)
    meta = load(FileStorage(job.storage).open(KEY)).meta
    assert [attempt.replay_seconds for attempt in meta.attempts[:1]] == rendered, "it was rendered again"


def test_a_block_made_under_something_else_is_made_again(tmp_path: Path) -> None:
    from pi05.data.blocks import write_block
    from pi05.data.dataset import Attempt

    ours = origin(PUSHCUBE, CONVENTION)
    attempts = [(Attempt(seed=3, success=False, steps=0, seconds=1.0, reason="no plan found"), None)]
    path = tmp_path / "0000003-0000003.parquet"
    write_block(path, ours, attempts)
    assert read_block(path, range(3, 4), ours) is not None
    for change in ({"renderer": "lavapipe 99.0"}, {"versions": {"sapien": "4"}}, {"convention": SEEING}):
        assert read_block(path, range(3, 4), ours.model_copy(update=change)) is None
    assert read_block(path, range(4, 5), ours) is None
    path.write_bytes(path.read_bytes()[:-20])
    assert read_block(path, range(3, 4), ours) is None


# ---- Recordings of others --------------------------------------------------------------------------------------------


def source_job(root: Path, recorded: Path, **demos: object) -> DemosJob:
    job = demos_job(root, source=str(recorded), **demos)
    return job.model_copy(update={"planner_python": "/nowhere"})


def test_recordings_of_others_make_the_dataset_that_our_planner_makes(
    storage: FileStorage, recorded: Path, tmp_path: Path
) -> None:
    job = source_job(tmp_path, recorded)
    make_demos(job, context(job))
    data = load(FileStorage(job.storage).open(KEY))
    assert rows(FileStorage(job.storage)) == rows(storage)
    assert data.meta.source.startswith("trajectory.h5 (crc32c ")
    assert [attempt.seed for attempt in data.meta.attempts] == [0, 1, 2, 4]


def test_a_recording_that_does_not_replay_is_left_out(recorded: Path, tmp_path: Path) -> None:
    import h5py

    for file in (recorded, recorded.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    with h5py.File(tmp_path / "trajectory.h5", "r+") as file:
        actions: Any = file["traj_1/actions"]
        actions[20:, 0] += 0.3
        del file["traj_0/env_states"]  # older files have none
    job = source_job(tmp_path, tmp_path / "trajectory.h5", count=3)
    make_demos(job, context(job))
    meta = load(FileStorage(job.storage).open(KEY)).meta
    assert meta.seeds == (0, 2, 4)
    assert [(attempt.seed, attempt.reason) for attempt in meta.attempts if not attempt.success] == [
        (1, "the replay did not succeed")
    ]
    assert meta.inexact == 1, "nothing says what seed 0 should have been"


def changed(recorded: Path, folder: Path, change: dict, episode: dict) -> Path:
    """Return a copy of the recordings whose json says something else."""
    content = json.loads(recorded.with_suffix(".json").read_bytes())
    content["env_info"].update(change)
    content["episodes"][1].update(episode)
    shutil.copy(recorded, folder / "other.h5")
    (folder / "other.json").write_text(json.dumps(content))
    return folder / "other.h5"


@pytest.mark.parametrize(
    ("change", "episode", "words"),
    [
        ({"env_id": "PickCube-v1"}, {}, r"holds PickCube-v1, pushcube is PushCube-v1"),
        ({}, {"control_mode": "pd_joint_vel"}, r"holds actions of pd_joint_vel, the job wants pd_joint_pos"),
        ({}, {"episode_seed": None}, r"is not what ManiSkill's recorder writes"),
    ],
)
def test_recordings_of_something_else_are_refused(
    recorded: Path, tmp_path: Path, change: dict, episode: dict, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        Recordings(changed(recorded, tmp_path, change, episode), PUSHCUBE, CONVENTION)


def test_recordings_that_are_not_there_too_few_or_damaged_are_refused(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.h5 does not exist; name ManiSkill's h5 file"):
        Recordings(tmp_path / "nowhere.h5", PUSHCUBE, CONVENTION)
    job = source_job(tmp_path, recorded, count=9)
    with pytest.raises(ConfigError, match=r"has 4 episodes, 9 demonstrations are wanted; use demos.count=4 or fewer"):
        make_demos(job, context(job))
    copy = changed(recorded, tmp_path, {}, {})
    copy.write_bytes(copy.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"other.h5 is damaged .*; fetch it again"):
        Recordings(copy, PUSHCUBE, CONVENTION).plan([0])


def test_a_seed_that_is_there_twice_is_used_once(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = source_job(tmp_path, changed(recorded, tmp_path, {}, {"episode_seed": 0}), count=2)
    make_demos(job, context(job))
    assert load(FileStorage(job.storage).open(KEY)).meta.seeds == (0, 2)
    assert "has 1 episodes of a seed that it has already; one is used" in capsys.readouterr().out
