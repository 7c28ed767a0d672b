"""Shards with real planners make the dataset that one process makes, bit for bit, whichever of them are killed."""

import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from pi05.config import DemosJob
from pi05.data.dataset import Dataset, load
from pi05.jobs.demos import make_demos
from pi05.jobs.runtime import Arguments, Context
from pi05.storage import FileStorage, RunPaths
from tests.sim.conftest import KEY, demos_job

ROWS = "data/chunk-000/file-000.parquet"


def start(job: DemosJob, shard: int, shards: int) -> subprocess.Popen[str]:
    """Start a shard as a pod would."""
    path = FileStorage(job.storage).root / "job.json"
    path.write_text(job.model_dump_json())
    command = [sys.executable, "-m", "pi05.jobs.demos", str(path), "--shard", str(shard), "--shards", str(shards)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(job: DemosJob, shard: int, shards: int) -> None:
    """Do a shard's work in this process."""
    arguments = Arguments(Path("job.json"), shard=shard, shards=shards)
    make_demos(job, Context(FileStorage(job.storage), RunPaths(job.run, shard), arguments))


def events(output: str) -> list[dict]:
    return [json.loads(line.removeprefix("PI05 ")) for line in output.splitlines() if line.startswith("PI05 ")]


def kill_when(process: subprocess.Popen[str], fact: Callable[[], object]) -> None:
    while not fact():
        assert process.poll() is None, "the shard ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def same(job: DemosJob, storage: FileStorage) -> bool:
    """Return whether a job made the dataset that one process made."""
    one, other = storage.open(KEY), FileStorage(job.storage).open(KEY)
    return (one / ROWS).read_bytes() == (other / ROWS).read_bytes() and facts(load(one)) == facts(load(other))


def facts(data: Dataset) -> tuple:
    attempts = [(attempt.seed, attempt.success, attempt.steps, attempt.reason) for attempt in data.meta.attempts]
    return data.meta.seeds, attempts, data.meta.inexact, data.meta.max_difference


def shelf(job: DemosJob) -> list[str]:
    return FileStorage(job.storage).children(f"{RunPaths(job.run).work}/blocks")


def planning_times(job: DemosJob, name: str) -> list[tuple[int, float]]:
    content = FileStorage(job.storage).read(f"{RunPaths(job.run).work}/blocks/{name}")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        attempts = json.loads(archive.read(name.replace(".zip", ".json")))["attempts"]
    return [(attempt["seed"], attempt["seconds"]) for attempt in attempts]


def test_three_shards_at_once_make_the_dataset_of_one_process(storage: FileStorage, tmp_path: Path) -> None:
    job = demos_job(tmp_path)
    shards = [start(job, shard, 3) for shard in range(3)]
    said = [events(process.communicate()[0]) for process in shards]
    assert [process.returncode for process in shards] == [0, 0, 0]
    assert same(job, storage)
    assert [(e["step"], e["total"]) for e in said[0] if e["kind"] == "progress"] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not any("step" in event for shard in said[1:] for event in shard), "the first one counts for all"
    assert shelf(job) == []
    assert not any((tmp_path / RunPaths(job.run, shard).work).exists() for shard in range(3))


def test_blocks_of_shards_that_never_came_are_planned_by_the_first(storage: FileStorage, tmp_path: Path) -> None:
    job = demos_job(tmp_path)
    run(job, 0, 3)
    assert same(job, storage)
    run(job.model_copy(update={"planner_python": "/nowhere"}), 2, 3)  # comes late, and finds that all is done


def test_a_killed_helper_and_a_killed_first_shard_leave_what_they_planned(storage: FileStorage, tmp_path: Path) -> None:
    job = demos_job(tmp_path)
    helper = start(job, 1, 2)
    kill_when(helper, lambda: shelf(job))
    assert shelf(job) == ["0000002-0000003.zip"]
    first = start(job, 0, 2)
    kill_when(first, lambda: len(shelf(job)) > 1)
    assert not FileStorage(job.storage).exists(KEY)
    planned = {seed: seconds for name in shelf(job) for seed, seconds in planning_times(job, name)}
    run(job, 0, 2)
    assert same(job, storage)
    found = {attempt.seed: attempt.seconds for attempt in load(FileStorage(job.storage).open(KEY)).meta.attempts}
    assert planned == {seed: found[seed] for seed in planned}, "another planning would have taken another time"
