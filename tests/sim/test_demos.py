"""Demonstrations from the real planner, replayed in this environment; and planners that fail in every way."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pi05 import tasks
from pi05.config import DemosConfig
from pi05.data.dataset import load
from pi05.data.demos import Wanted, collect
from pi05.data.pool import Planners, check_planner
from pi05.data.recordings import Plan, read_plan
from pi05.data.replay import judge, replay
from pi05.errors import ConfigError, DataError, TemporaryError
from pi05.jobs.demos import make_demos
from pi05.jobs.runtime import Stopped
from pi05.simulator import Simulator
from pi05.storage import FileStorage
from tests.sim.conftest import CONVENTION, KEY, PLANNER, context, demos_job

PUSHCUBE = tasks.find("pushcube")
ROWS = "data/chunk-000/file-000.parquet"

FAILING_SOLVER = """
import sys
from pi05.data import planner

def solver(task, real=planner._solver):
    def solve(env, seed):
        if seed == 0:
            raise RuntimeError("inverse kinematics diverged")
        return -1 if seed == 1 else real(task)(env, seed=seed)
    return solve

planner._solver = solver
planner.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeds 0 to 2 planned by a solver that raises on seed 0 and finds no plan for seed 1."""
    out = tmp_path_factory.mktemp("plans") / "0000000-0000002-plan.h5"
    arguments = ["--task", "pushcube", "--first-seed", "0", "--seeds", "3", "--out", str(out)]
    subprocess.run([PLANNER, "-c", FAILING_SOLVER, *arguments], check=True, capture_output=True)
    return out.parent


@pytest.fixture(scope="module")
def plan(plans: Path) -> Plan:
    found = read_plan(plans / "0000000-0000002-plan.h5", range(3))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(PUSHCUBE, CONVENTION)


def rows(storage: FileStorage) -> bytes:
    return (storage.open(KEY) / ROWS).read_bytes()


def do_nothing(*_: object) -> None:
    pass


# ---- The real planner ------------------------------------------------------------------------------------------------


def test_a_dataset_holds_the_first_seeds_that_succeed_and_every_attempt(storage: FileStorage) -> None:
    data = load(storage.open(KEY))
    assert data.meta.seeds == (0, 1, 2, 4)
    assert [(attempt.seed, attempt.success) for attempt in data.meta.attempts] == [
        *((0, True), (1, True), (2, True), (3, False), (4, True))
    ]
    assert data.meta.attempts[3].reason == "the plan was executed without success"
    assert len(data.states) == sum(attempt.steps for attempt in data.meta.attempts if attempt.success)
    assert (data.meta.convention, data.meta.renderer, data.meta.task) == (CONVENTION, "none", "pushcube")
    assert set(data.meta.versions) == {"mani_skill", "sapien", "lerobot"}


def test_replays_have_the_bits_that_the_planner_recorded(storage: FileStorage) -> None:
    meta = load(storage.open(KEY)).meta
    assert (meta.inexact, meta.max_difference) == (0, 0.0)


def test_the_work_folder_is_gone_when_the_dataset_is_complete(storage: FileStorage) -> None:
    assert not storage.exists("runs/demos-pushcube-000000/work")
    assert storage.children("runs/demos-pushcube-000000") == ["status.json"]


def test_lerobot_opens_the_dataset(storage: FileStorage) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("pi05/pushcube", root=storage.open(KEY))
    assert (data.num_episodes, data.fps, data[0]["task"]) == (4, 20, PUSHCUBE.sentence)


def test_a_second_start_finds_the_dataset_and_plans_nothing(
    storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    job = demos_job(storage.root).model_copy(update={"planner_python": "/nowhere"})
    make_demos(job, context(job))
    kinds = [json.loads(line.removeprefix("PI05 "))["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["result"]


def test_a_dataset_of_another_convention_is_refused(storage: FileStorage) -> None:
    convention = CONVENTION.model_copy(update={"state": "joints"})
    job = demos_job(storage.root).model_copy(update={"convention": convention})
    with pytest.raises(DataError, match="state is 'joints_and_poses', the job wants 'joints'"):
        make_demos(job, context(job))


def test_two_workers_and_other_blocks_make_the_same_dataset(
    storage: FileStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = demos_job(tmp_path, workers=2, block=3)
    make_demos(job, context(job))
    assert rows(FileStorage(job.storage)) == rows(storage)
    events = [json.loads(line.removeprefix("PI05 ")) for line in capsys.readouterr().out.splitlines()]
    assert [(event["step"], event["total"]) for event in events if event["kind"] == "progress"] == [
        *((1, 4), (2, 4), (3, 4), (4, 4))
    ]


def test_a_killed_job_goes_on_from_its_complete_blocks_and_makes_the_same_dataset(
    storage: FileStorage, tmp_path: Path
) -> None:
    job = demos_job(tmp_path)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    first_block = tmp_path / "runs/demos-pushcube-000000/work/blocks/0000000-0000001.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "pi05.jobs.demos", str(tmp_path / "job.json")], stdout=subprocess.DEVNULL
    )
    while not first_block.exists():
        assert process.poll() is None, "the job ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not FileStorage(job.storage).exists(KEY)

    planned = first_block.read_bytes()  # with its planning times: another planning would differ
    seconds = [attempt["seconds"] for attempt in json.loads(planned)["attempts"]]
    make_demos(job, context(job))
    assert rows(FileStorage(job.storage)) == rows(storage)
    meta = load(FileStorage(job.storage).open(KEY)).meta
    assert [attempt.seconds for attempt in meta.attempts[:2]] == seconds


def test_a_solver_that_raises_or_finds_nothing_is_a_counted_failure(plan: Plan) -> None:
    assert [(attempt.seed, attempt.success, attempt.reason) for attempt in plan.attempts] == [
        (0, False, "RuntimeError: inverse kinematics diverged"),
        (1, False, "no plan found"),
        (2, True, ""),
    ]
    assert list(plan.recordings) == [2]


def test_a_replay_that_differs_or_fails_is_told(plan: Plan, simulator: Simulator) -> None:
    recording = plan.recordings[2]
    good = replay(simulator, recording)
    assert (good.success, good.exact, good.difference) == (True, True, 0.0)
    turned = recording.actions.copy()
    turned[10:, 0] += 0.2
    bad = replay(simulator, dataclasses.replace(recording, actions=turned))
    assert (bad.success, bad.exact) == (False, False)
    assert bad.difference > 0.01
    assert replay(simulator, recording).exact, "the bad episode must leave nothing behind"
    attempt, demo = judge(simulator, plan.attempts[2], dataclasses.replace(recording, actions=turned))
    assert (attempt.success, attempt.reason, demo) == (False, "the replay did not succeed", None)


def test_recordings_that_are_no_demonstrations_are_counted_failures(plan: Plan, simulator: Simulator) -> None:
    recording = plan.recordings[2]
    holes = recording.actions.copy()
    holes[5, 3] = np.nan
    for actions, reason in ((recording.actions[:1], "it has 1 steps, two are required"), (holes, "not finite")):
        attempt, demo = judge(simulator, plan.attempts[2], dataclasses.replace(recording, actions=actions))
        assert (attempt.success, demo) == (False, None)
        assert reason in attempt.reason


def test_a_disturbed_demonstration_leaves_the_course_and_shows_the_way_back(plan: Plan, simulator: Simulator) -> None:
    recording = plan.recordings[2]
    straight = replay(simulator, recording).demo
    attempt, demo = judge(simulator, plan.attempts[2], recording, disturb=0.02)
    assert attempt.success
    assert attempt.disturbed
    assert attempt.exact, "what is compared with the recording is the undisturbed replay"
    assert demo is not None
    assert np.array_equal(demo.actions, recording.actions), "the intention, not what was executed"
    strayed = np.abs(demo.states[:, :7] - straight.states[:, :7]).max(axis=1)
    assert strayed.max() > 0.01
    assert (strayed < 0.005).mean() > 0.3
    again = judge(simulator, plan.attempts[2], recording, disturb=0.02)[1]
    assert again is not None
    assert np.array_equal(demo.states, again.states)


def test_a_push_that_spoils_a_demonstration_is_left_out(plan: Plan, simulator: Simulator) -> None:
    recording = plan.recordings[2]
    attempt, demo = judge(simulator, plan.attempts[2], recording, disturb=0.5)
    assert (attempt.success, attempt.disturbed) == (True, False)
    assert demo is not None
    assert np.array_equal(demo.states, replay(simulator, recording).demo.states)


def test_at_the_end_a_demonstration_stays_where_it_is(plan: Plan, simulator: Simulator) -> None:
    recording = plan.recordings[2]
    attempt, demo = judge(simulator, plan.attempts[2], recording, hold=5)
    assert attempt.exact
    assert demo is not None
    assert len(demo.states) == len(demo.actions) == len(recording.actions) + 5
    assert np.array_equal(demo.actions[-6:], np.repeat(recording.actions[-1:], 6, axis=0))


# ---- Planners that fail ----------------------------------------------------------------------------------------------


def fake_planner(path: Path, body: str) -> str:
    """Write an interpreter that passes the check and then runs `body`, a shell script."""
    path.write_text(f"#!/bin/sh\n[ $1 = -c ] && exit 0\n{body}\n")
    path.chmod(0o755)
    return str(path)


def pool(python: str, folder: Path) -> Planners:
    return Planners(python, PUSHCUBE, CONVENTION, folder, workers=1)


def test_a_planner_that_is_killed_once_is_replaced(plans: Path, tmp_path: Path) -> None:
    body = f"""
    [ -e {tmp_path}/died ] || {{ touch {tmp_path}/died; kill -9 $$; }}
    while read first count out; do cp {plans}/*.h5 $out; cp {plans}/*.json ${{out%.h5}}.json; echo $out; done
    """
    with pool(fake_planner(tmp_path / "python", body), tmp_path / "work") as maker:
        block = maker.block(range(3), do_nothing)
    assert (len(block.attempts), block.kept) == (3, (2,))
    assert (tmp_path / "died").exists()


def test_a_planner_that_is_killed_twice_ends_the_job_with_its_last_words(tmp_path: Path) -> None:
    python = fake_planner(tmp_path / "python", "echo seed 7: planned >&2; echo std::bad_alloc >&2; kill -9 $$")
    with (
        pool(python, tmp_path / "work") as planner,
        pytest.raises(TemporaryError, match=r"code -9\) at seeds 0 to 2: std::bad_alloc. Memory ran out"),
    ):
        planner.block(range(3), do_nothing)


def test_a_planner_that_cannot_import_is_a_setup_error(tmp_path: Path) -> None:
    python = fake_planner(tmp_path / "python", "echo 'ImportError: libgomp.so.1' >&2; exit 1")
    with (
        pool(python, tmp_path / "work") as planner,
        pytest.raises(
            ConfigError, match=r"libgomp.so.1. The planner's environment is not whole; run scripts/quickstart"
        ),
    ):
        planner.block(range(3), do_nothing)


def test_waiting_for_a_planner_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise Stopped("stopped")

    begin = time.monotonic()
    with pool(fake_planner(tmp_path / "python", "exec sleep 60"), tmp_path / "work") as planner, pytest.raises(Stopped):
        planner.block(range(3), stop)
    assert time.monotonic() - begin < 10


def test_a_missing_interpreter_is_a_setup_error() -> None:
    with pytest.raises(ConfigError, match=r"planner_python '/nowhere/python' does not run.*scripts/quickstart"):
        check_planner("/nowhere/python")


def test_an_interpreter_without_the_planner_is_a_setup_error() -> None:
    with pytest.raises(ConfigError, match=r"lacks numpy<2; run scripts/quickstart"):
        check_planner(sys.executable)


def test_a_job_gives_up_with_the_reasons(plans: Path, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for path in plans.iterdir():
        shutil.copy(path, folder)
    config = DemosConfig(count=2, block=3, workers=1, max_attempts_per_demo=2)
    wanted = dataclasses.replace(Wanted.of(PUSHCUBE, config), seeds=range(3))
    python = fake_planner(tmp_path / "python", "exec sleep 60")
    with (
        pool(python, folder) as maker,
        pytest.raises(
            DataError,
            match=r"3 seeds of pushcube gave 1 of 2 demonstrations: "
            r"1 times RuntimeError: inverse kinematics diverged; 1 times no plan found. Raise demos.max_attempts",
        ),
    ):
        collect(wanted, maker, do_nothing, do_nothing)


def test_seeds_of_the_evaluation_are_refused() -> None:
    config = DemosConfig(count=10, first_seed=tasks.DEMO_SEEDS.stop - 20)
    with pytest.raises(ConfigError, match=r"first_seed 999980 with up to 50 attempts leaves .* use a lower first_seed"):
        Wanted.of(PUSHCUBE, config)


@pytest.mark.parametrize("damage", ["truncated h5", "no h5", "other seeds", "damaged json"])
def test_a_damaged_plan_is_as_good_as_none(plans: Path, tmp_path: Path, damage: str) -> None:
    h5, meta = tmp_path / "0000000-0000002-plan.h5", tmp_path / "0000000-0000002-plan.json"
    shutil.copytree(plans, tmp_path, dirs_exist_ok=True)
    match damage:
        case "truncated h5":
            h5.write_bytes(h5.read_bytes()[:5000])
        case "no h5":
            h5.unlink()
        case "damaged json":
            meta.write_bytes(meta.read_bytes()[:-9])
    assert read_plan(h5, range(1, 4) if damage == "other seeds" else range(3)) is None


def test_a_recording_can_be_read_by_maniskill_itself(plans: Path) -> None:
    import h5py

    content = json.loads((plans / "0000000-0000002-plan.json").read_bytes())
    assert content["env_info"]["env_id"] == "PushCube-v1"
    assert content["episodes"][0]["reset_kwargs"]["seed"] == content["episodes"][0]["episode_seed"] == 2
    with h5py.File(plans / "0000000-0000002-plan.h5") as file:
        assert set(file["traj_0"]) >= {"actions", "env_states", "success", "terminated", "truncated"}
        assert np.asarray(file["traj_0/success"])[-1]
