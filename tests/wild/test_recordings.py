"""ManiSkill recordings as people have them (demos.source): each is used, or refused in one line with exit code 65."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest

from pi05 import tasks
from pi05.config import Convention, DemosConfig, DemosJob
from pi05.data.demos import Collection, Wanted, _give_up
from pi05.data.pool import Planners
from pi05.data.recordings import Recordings
from pi05.data.replay import judge
from pi05.errors import DataError, JobError
from pi05.events import parse
from pi05.simulator import StepInfo
from pi05.tasks import DEMO_SEEDS

TASK = tasks.find("pushcube")
CONVENTION = Convention(cameras=(), state="joints_and_poses")
STEPS = (5, 6, 7)
"""Actions of each episode."""
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1064960\n"
Change = Callable[[h5py.File, dict], object]


def record(folder: Path, change: Change | None = None) -> Path:
    """Write recordings of seeds 0, 1, 2 as ManiSkill's recorder does, changed as some recorder, merge or robot does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trajectory.h5"
    info = {"env_id": TASK.env_id, "env_kwargs": {"control_mode": "pd_joint_pos", "sim_backend": "physx_cpu"}}
    episodes = [
        {"episode_id": i, "episode_seed": i, "control_mode": "pd_joint_pos", "elapsed_steps": n, "success": True}
        for i, n in enumerate(STEPS)
    ]
    told = {"env_info": info, "episodes": episodes}
    with h5py.File(path, "w") as file:
        for number, steps in enumerate(STEPS):
            group = file.create_group(f"traj_{number}")
            group["actions"] = np.full((steps, 8), number, np.float32)
            group["env_states/actors/cube"] = np.ones((steps + 1, 13), np.float32)
        if change:
            change(file, told)
    path.with_suffix(".json").write_text(json.dumps(told))
    return path


def opened(path: Path) -> Recordings:
    """Return recordings that the job has looked at before it starts anything."""
    source = Recordings(path, TASK, CONVENTION)
    source.check()
    return source


class Still:
    """A simulator in which nothing moves and every step succeeds."""

    def __init__(self) -> None:
        self.task, self.convention = TASK, CONVENTION

    def reset(self, seed: int) -> StepInfo:
        return StepInfo(False, {"seed": bool(seed)})

    def step(self, action: np.ndarray) -> StepInfo:
        return StepInfo(True, {"moved": bool(action.any())})

    def stored_state(self) -> np.ndarray:
        return np.zeros(9, np.float32)

    def physics(self) -> dict[str, np.ndarray]:
        return {"actors/cube": np.ones(13, np.float32)}

    def images(self) -> dict[str, np.ndarray]:
        return {}


def demos(folder: Path, source: object) -> tuple[int, str]:
    """Run the demos job on recordings; return its exit code and last words."""
    job = DemosJob(
        run="demos-pushcube-000000",
        task="pushcube",
        storage=(folder / "store").as_uri(),
        convention=CONVENTION,
        dataset="datasets/pushcube/0123456789ab",
        demos=DemosConfig(count=3, source=str(source), workers=1),
        planner_python="/no/python",
    )
    (folder / "job.json").write_text(job.model_dump_json())
    command = [sys.executable, "-m", "pi05.jobs.demos", str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    events = [event for line in done.stdout.splitlines() if (event := parse(line))]
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, str(events[-1].message)


# ---- What is used ----------------------------------------------------------------------------------------------------


def test_seeds_and_successes_in_lists_of_one_are_what_they_hold(tmp_path: Path) -> None:  # M01
    def listed(_: h5py.File, told: dict) -> None:
        for episode in told["episodes"]:
            episode |= {"episode_seed": [episode["episode_seed"]], "success": [episode["episode_id"] != 1]}
            episode["elapsed_steps"] = [episode["elapsed_steps"]]

    source = opened(record(tmp_path, listed))
    assert source.seeds == (0, 1, 2)
    assert list(source.plan([0, 1, 2]).recordings) == [0, 2], "the recorder says that episode 1 failed"


@pytest.mark.parametrize("form", ["flat", "deep", "none", "no group"])
def test_states_are_only_compared_so_any_form_of_them_will_do(tmp_path: Path, form: str) -> None:  # M02
    def old(file: h5py.File, told: dict) -> None:
        del told
        for group in (file[f"traj_{i}"] for i in range(3)):
            assert isinstance(group, h5py.Group)
            del group["env_states"]
            match form:
                case "flat":
                    group["env_states"] = np.ones((6, 70), np.float32)
                case "deep":
                    group["env_states/actors/cube"] = np.ones((6, 1, 13), np.float32)
                case "no group":
                    group["env_states/actors"] = np.ones((6, 13), np.float32)

    plan = opened(record(tmp_path, old)).plan([0])
    attempt, demo = judge(cast(Any, Still()), plan.attempts[0], plan.recordings[0])
    assert (attempt.success, attempt.exact) == (True, False)
    assert demo is not None


@pytest.mark.parametrize("said", [99, 4.5, None, "missing"])
def test_steps_are_counted_whatever_the_json_says(tmp_path: Path, said: object) -> None:  # M07
    def off(_: h5py.File, told: dict) -> None:
        for episode in told["episodes"]:
            episode["elapsed_steps"] = said
            if said == "missing":
                del episode["elapsed_steps"]

    plan = opened(record(tmp_path, off)).plan([0])
    attempt, demo = judge(cast(Any, Still()), plan.attempts[0], plan.recordings[0])
    assert demo is not None
    assert attempt.steps == len(demo.actions) == STEPS[0]


def test_seeds_that_demonstrations_may_not_use_are_left_out_and_counted(tmp_path: Path) -> None:  # M09
    def large(_: h5py.File, told: dict) -> None:
        told["episodes"][1]["episode_seed"] = 1_791_095_845

    source = opened(record(tmp_path, large))
    assert (source.seeds, source.outside) == ((0, 2), 1)

    def all_large(_: h5py.File, told: dict) -> None:
        for episode in told["episodes"]:
            episode["episode_seed"] += DEMO_SEEDS.stop

    with pytest.raises(DataError, match=r"its seeds are \d+ to \d+, demonstrations use 0 to"):
        opened(record(tmp_path, all_large))


def test_a_home_inside_an_option_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # M10
    record(tmp_path / ".maniskill")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Recordings(Path("~/.maniskill/trajectory.h5"), TASK, CONVENTION).seeds == (0, 1, 2)


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:  # M13
    path = record(tmp_path)
    beside = path.with_suffix(".json")
    beside.write_bytes(b"\xef\xbb\xbf" + beside.read_bytes())
    assert opened(path).seeds == (0, 1, 2)


def test_the_backend_is_named_when_replays_of_a_gpu_recording_fail(tmp_path: Path) -> None:  # M14
    def on_gpu(_: h5py.File, told: dict) -> None:
        told["env_info"]["env_kwargs"]["sim_backend"] = "physx_cuda"

    wanted = Wanted.of(TASK, DemosConfig(count=3), opened(record(tmp_path, on_gpu)))
    assert "trajectory.h5 (recorded in physx_cuda) gave 0 of 3" in _give_up(wanted, Collection())


# ---- What is refused -------------------------------------------------------------------------------------------------


def narrow(file: h5py.File, told: dict) -> None:
    told["env_info"]["env_kwargs"]["robot_uids"] = "xarm6_robotiq"
    for number in range(3):
        del file[f"traj_{number}/actions"]
        file[f"traj_{number}/actions"] = np.zeros((5, 7), np.float32)


def two_robots(file: h5py.File, told: dict) -> None:
    del told, file["traj_0/actions"]
    for robot in ("panda_wristcam-0", "panda_wristcam-1"):
        file[f"traj_0/actions/{robot}"] = np.zeros((5, 8), np.float32)


def broken_merge(file: h5py.File, told: dict) -> None:
    del told, file["traj_1"]


def other_mode(_: h5py.File, told: dict) -> None:
    for episode in told["episodes"]:
        episode["control_mode"] = "pd_joint_vel"


def no_kwargs(_: h5py.File, told: dict) -> None:
    told["env_info"]["env_kwargs"] = ["physx_cpu"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (narrow, "traj_0 has actions of 7 numbers, .* another robot \\(robot_uids: xarm6_robotiq\\)"),  # M03
        (two_robots, "traj_0 has actions of several robots \\(panda_wristcam-0, panda_wristcam-1\\)"),  # M04
        (broken_merge, "has no traj_1, which its json says is the episode of seed 1: .* a merge broke off"),  # M06
        (other_mode, "holds actions of pd_joint_vel, the job wants pd_joint_pos"),  # M12
        (no_kwargs, "trajectory.json is not what ManiSkill's recorder writes"),
        (lambda _, told: told["episodes"][0].pop("episode_id"), "is damaged \\('episode_id'\\)"),
        (lambda _, told: told.update(episodes=[]), "has no episode that can be used"),
        (lambda file, _: file.pop("traj_0/actions"), "is damaged \\(.*actions"),
    ],
)
def test_recordings_of_another_form_are_refused_before_anything_starts(
    tmp_path: Path, change: Change, words: str
) -> None:
    with pytest.raises(DataError, match=words) as error:
        opened(record(tmp_path, change))
    assert "memory" not in str(error.value)


def test_a_pointer_is_called_one(tmp_path: Path) -> None:  # M05
    path = record(tmp_path)
    path.write_bytes(POINTER)
    with pytest.raises(DataError, match="is a Git LFS pointer, not the recordings; fetch them with `git lfs pull`"):
        opened(path)
    path.with_suffix(".json").write_bytes(POINTER)
    with pytest.raises(DataError, match=r"trajectory.json is a Git LFS pointer"):
        opened(path)


def test_a_folder_and_a_link_that_leads_nowhere_are_called_so(tmp_path: Path) -> None:  # M11
    path = record(tmp_path / "PushCube-v1/motionplanning")
    with pytest.raises(DataError, match=rf"is a folder; name ManiSkill's h5 file: there are {path} in it"):
        opened(tmp_path / "PushCube-v1")
    path.rename(tmp_path / "moved.h5")
    path.symlink_to(tmp_path / "gone.h5")
    with pytest.raises(DataError, match=r"is a link to .*gone.h5, which does not exist"):
        opened(path)


@pytest.mark.parametrize(("change", "words"), [(narrow, "another robot"), (broken_merge, "has no traj_1")])
def test_the_job_says_it_in_one_line_and_ends_with_65(tmp_path: Path, change: Change, words: str) -> None:
    code, said = demos(tmp_path, record(tmp_path, change))
    assert code == 65
    assert words in said
    assert "\n" not in said


# ---- What a child says -----------------------------------------------------------------------------------------------


def test_what_the_replayer_refuses_keeps_its_words_and_its_exit_code(tmp_path: Path) -> None:
    path = record(tmp_path)
    source = opened(path)
    path.write_bytes(POINTER)
    with (
        Planners("/no/python", TASK, CONVENTION, tmp_path / "work", 1, source=source) as pool,
        pytest.raises(DataError, match="is a Git LFS pointer") as error,
    ):
        pool.block((0, 1), lambda: None)
    assert "ended twice" not in str(error.value)
    assert len(list((tmp_path / "work").glob("replayer-*.log"))) == 1, "a second one would say the same"


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("raise ValueError('no such thing')", 1, "ValueError: no such thing. Its log: "),
        ("raise MemoryError", 75, "Memory ran out: run the same command again with fewer demos.workers"),
        ("import os; os.kill(os.getpid(), 9)", 75, "Memory ran out"),
        ("import os; os.kill(os.getpid(), 11)", 75, "(code -11)"),
        ("import nothing_of_that_name", 64, "environment is not whole"),
    ],
)
def test_a_replayer_that_dies_is_blamed_for_what_it_was(tmp_path: Path, program: str, code: int, words: str) -> None:
    (tmp_path / "dies.py").write_text(f"import sys; sys.stdin.readline()\n{program}\n")
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/dies.py\n")
    (tmp_path / "python").chmod(0o755)
    source = opened(record(tmp_path))
    with (
        Planners("", TASK, CONVENTION, tmp_path / "work", 1, source=source, replayer=str(tmp_path / "python")) as pool,
        pytest.raises(JobError) as error,
    ):
        pool.block((0, 1), lambda: None)
    assert error.value.exit_code == code
    assert words in str(error.value)
    assert ("emory" in str(error.value)) == ("emory" in words)
    assert "|" not in str(error.value)
