"""A job in a pod, as a real process: its log, its status and its last words, whatever happens to it and the bucket."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pi05.events import Event, parse
from pi05.storage import RunPaths
from pi05.storage.remote import BucketStorage
from tests.gcs.emulator import Line

ROOT = Path(__file__).parents[2]
RUN = "eval-pushcube-111111"
PATHS = RunPaths(RUN)
POD = "eval-pushcube-111111-0-x7k2p"
PRINTED = ["python says hello", "python complains", "descriptor 1", "descriptor 2", "child", "child complains"]


class Pod:
    """A process with the files that Kubernetes gives it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.last = folder, folder / "termination-log"
        self.last.touch()
        job = json.loads((ROOT / "tests/golden/ctl_eval_tiny_pushcube.job.json").read_text())
        self.job = folder / "job.json"
        self.job.write_text(json.dumps({**job, "run": RUN, "storage": url}))

    def start(self, action: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.gcs.program", action, str(self.last), str(self.job), *arguments]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, action: str, *arguments: str) -> tuple[int, str, str]:
        process = self.start(action, *arguments)
        out, err = process.communicate(timeout=100)
        return process.returncode, out.decode(), err.decode()

    @property
    def last_event(self) -> Event:
        event = parse(self.last.read_text())
        assert event is not None
        return event


@pytest.fixture
def pod(tmp_path: Path, url: str) -> Pod:
    return Pod(tmp_path, url)


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(storage: BucketStorage, paths: RunPaths = PATHS) -> Event:
    return Event.model_validate_json(storage.read(paths.status))


def test_what_a_pod_prints_goes_on_and_is_kept(pod: Pod, storage: BucketStorage) -> None:
    code, out, err = pod.run("finish", "--attempt", POD)
    log = storage.read(PATHS.attempt_log(POD)).decode()
    assert code == 0
    assert err == ""
    assert log == out
    assert [line for line in log.splitlines() if line in PRINTED] == PRINTED
    assert [event.kind for line in log.splitlines() if (event := parse(line))] == ["started", "progress", "finished"]
    assert status(storage) == pod.last_event
    assert pod.last_event.kind == "finished"
    assert not storage.leased(PATHS.lease)


def test_without_an_attempt_nothing_is_redirected(pod: Pod, storage: BucketStorage) -> None:
    code, out, err = pod.run("finish")
    assert code == 0
    assert "python complains" in err
    assert "python says hello" in out
    assert storage.children(PATHS.logs) == []


@pytest.mark.parametrize(
    ("action", "code", "message"),
    [("refuse", 65, "the dataset is damaged"), ("crash", 1, "unexpected ZeroDivisionError: unlucky")],
)
def test_the_log_is_kept_after_an_error_too(
    pod: Pod, storage: BucketStorage, action: str, code: int, message: str
) -> None:
    assert pod.run(action, "--attempt", POD)[0] == code
    assert message.rpartition(":")[2] in storage.read(PATHS.attempt_log(POD)).decode()
    assert (status(storage).kind, status(storage).exit_code, status(storage).message) == ("failed", code, message)
    assert pod.last_event == status(storage)


def test_a_shard_has_a_status_and_a_lease_of_its_own(pod: Pod, storage: BucketStorage) -> None:
    shard = RunPaths(RUN, shard=1)
    with storage.lease(PATHS.lease), storage.lease(RunPaths(RUN, shard=0).lease):
        assert pod.run("finish", "--shard", "1", "--shards", "4", "--attempt", POD)[0] == 0
    event = status(storage, shard)
    assert event.model_extra == {"shard": 1, "shards": 4}
    assert not storage.exists(PATHS.status)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shard", "4", "--shards", "4"], "--shard 4 is not one of 0 to 3"),
        (["--shard", "1"], "--shard and --shards come together"),
        (["--process", "0", "--processes", "2"], "--process and --coordinator come together"),
        (["--attempt", "../x"], "is not the name of a pod"),
        (["--shards", "x"], "invalid int value"),
        (["--what"], "unrecognized arguments: --what"),
    ],
)
def test_a_wrong_command_line_is_in_the_termination_log(tmp_path: Path, arguments: list[str], message: str) -> None:
    pod = Pod(tmp_path, "gs://of-no-matter")
    code, _, err = pod.run("finish", *arguments)
    assert code == 64
    assert message in err
    assert "usage: python -m pi05.jobs.<kind> [--shard SHARD]" in err
    assert pod.last_event.kind == "failed"
    assert pod.last_event.exit_code == 64
    assert message in str(pod.last_event.message)


def test_a_refusal_before_the_start_names_its_run_and_leaves_the_status_alone(pod: Pod, storage: BucketStorage) -> None:
    storage.write(PATHS.status, b"of another pod")
    pod.job.write_text(json.dumps({**json.loads(pod.job.read_text()), "dataste": 1}))
    assert pod.run("finish", "--attempt", POD)[0] == 64
    assert (pod.last_event.run, pod.last_event.exit_code) == (RUN, 64)
    assert "dataste" in str(pod.last_event.message)
    assert storage.read(PATHS.status) == b"of another pod"


def test_a_missing_bucket_is_told_in_the_termination_log(pod: Pod) -> None:
    pod.job.write_text(pod.job.read_text().replace("://", "://no-"))
    assert pod.run("finish", "--attempt", POD)[0] == 64
    assert "there is no such bucket" in str(pod.last_event.message)


def test_a_second_pod_is_turned_away_and_says_so_in_its_own_log(pod: Pod, storage: BucketStorage) -> None:
    with storage.lease(PATHS.lease):
        assert pod.run("finish", "--attempt", POD)[0] == 75
        assert "another process" in storage.read(PATHS.attempt_log(POD)).decode()
    assert "is writing runs/eval-pushcube-111111" in str(pod.last_event.message)
    assert not storage.exists(PATHS.status)


def test_sigterm_stops_a_job_and_its_log_is_whole(pod: Pod, storage: BucketStorage) -> None:
    process = pod.start("wait", "--attempt", POD)
    until(lambda: storage.exists(PATHS.attempt_log(POD)))
    assert "python says hello" in storage.read(PATHS.attempt_log(POD)).decode()  # while it runs
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert storage.read(PATHS.attempt_log(POD)) == out
    assert status(storage).exit_code == 143


def test_a_second_sigterm_ends_a_job_at_once_and_what_it_printed_is_not_lost(pod: Pod) -> None:
    code, out, _ = pod.run("twice", "--attempt", POD)
    assert code == 143
    assert out.splitlines()[-1].endswith("said last")


def test_a_killed_pod_leaves_its_log_and_the_next_one_takes_over(pod: Pod, storage: BucketStorage) -> None:
    process = pod.start("wait", "--attempt", POD)
    until(lambda: storage.exists(PATHS.attempt_log(POD)))
    process.kill()
    process.communicate()
    assert pod.run("finish", "--attempt", "second")[0] == 0
    assert storage.children(PATHS.logs) == [f"{POD}.txt", "second.txt"]


def test_a_bucket_out_of_reach_does_not_stop_a_job(pod: Pod, storage: BucketStorage, line: Line) -> None:
    process = pod.start("wait", "--attempt", POD)
    until(lambda: storage.exists(PATHS.status) and status(storage).kind == "progress")
    line.cut()
    before = pod.last.stat().st_mtime
    time.sleep(5)
    assert process.poll() is None
    assert pod.last.stat().st_mtime > before + 4  # it went on meanwhile
    line.mend()
    seen = status(storage).step or 0
    until(lambda: (status(storage).step or 0) > seen)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert storage.read(PATHS.attempt_log(POD)) == out
    assert status(storage).kind == "failed"


def test_a_result_is_written_when_the_bucket_is_there_again(pod: Pod, storage: BucketStorage, line: Line) -> None:
    process = pod.start("write", "--attempt", POD)
    until(lambda: storage.exists(PATHS.status))
    line.cut()
    time.sleep(3)
    line.mend()
    assert process.wait(100) == 0
    assert storage.read(f"{PATHS.results}/0.json") == RUN.encode()
    process.communicate()


def test_a_job_whose_run_was_taken_over_ends_and_writes_no_more(pod: Pod, storage: BucketStorage) -> None:
    process = pod.start("wait", "--attempt", POD)
    until(lambda: storage.exists(PATHS.status))
    process.send_signal(signal.SIGSTOP)
    with storage.lease(PATHS.lease):
        storage.write(PATHS.status, b"of the next pod")
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=30)
        assert process.returncode == 75
        assert storage.read(PATHS.status) == b"of the next pod"
        assert storage.leased(PATHS.lease)
    assert "another process has taken over this run" in str(pod.last_event.message)
