"""The local target with real processes: what is submitted runs once, survives, ends, and says why.

The jobs are stand-ins that take a second instead of minutes; their frame (pi05.jobs.runtime: lease, events, signals) is
the real one, and so is everything of pi05ctl.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pi05.storage import FileStorage, RunPaths
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.local.target import LocalTarget
from pi05ctl.runs import status
from pi05ctl.runs.process import identity, record_key
from pi05ctl.runs.status import RunStatus
from pi05ctl.spec.render import Local, Rendered, render, stages
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings

INTERPRETER = """#!{python}
'''Called as `python -m pi05.jobs.KIND job.json`; behaviour.json beside it says how the job behaves.'''
import json, os, subprocess, sys, time
from pathlib import Path
from pi05.config import DemosJob, EvalJob, TrainJob
from pi05.errors import DataError
from pi05.jobs import runtime
from pi05.storage import RunPaths

HOW = json.loads(Path(__file__).with_name("behaviour.json").read_text())

def work(job, context):
    kept = f"{{context.paths.work}}/step"
    done = int(context.storage.read(kept)) if context.storage.exists(kept) else 0
    if HOW.get("child"):
        child = subprocess.Popen(["sleep", "600"])
        context.storage.write("child", str(child.pid).encode())
    for step in range(done + 1, HOW.get("steps", 5) + 1):
        time.sleep(HOW.get("pause", 0.02))
        print(f"Step {{step}}: loss={{1 / step}}", flush=True)
        told = {{"step": step, "total": HOW.get("steps", 5), "unit": "steps", "metrics": {{"loss": 1 / step}}}}
        context.events.emit("progress", **told)
        if context.stopping:
            context.storage.write(kept, str(step).encode())
        context.check_stop()
        if HOW.get("crash") == job.kind:
            os._exit(7)
        if HOW.get("fail") == job.kind:
            raise DataError("the dataset is of another convention")
    finish(job, context)

def finish(job, context):
    if isinstance(job, DemosJob):
        with context.storage.stage(job.dataset) as folder:
            (folder / "data").write_text("data")
    elif isinstance(job, TrainJob):
        with context.storage.stage(context.paths.checkpoint(job.train.steps)) as folder:
            (folder / "params").write_text("params")
    else:
        episodes = [{{"seed": n, "success_once": n > 0, "success_at_end": n > 0, "steps": 9}} for n in range(10)]
        result = {{"policy": "checkpoint", "checkpoint": f"runs/{{job.train_run}}/checkpoints/1", "episodes": episodes}}
        context.storage.write(f"{{context.paths.results}}/0.json", json.dumps(result).encode())
        metrics = {{"success_once": 0.9, "wilson_low": 0.6, "wilson_high": 0.98, "episodes": 10}}
        context.events.emit("result", metrics=metrics)

types = {{"demos": DemosJob, "train": TrainJob, "evaluate": EvalJob}}
kind = sys.argv[2].rpartition(".")[2]
sys.argv = sys.argv[2:]
runtime.main(types[kind], work)
"""


class Bench:
    """A folder with a storage, settings and an interpreter whose jobs behave as told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "interpreter"
        self.python.write_text(INTERPRETER.format(python=sys.executable))
        self.python.chmod(0o755)
        text = 'python = "interpreter"\nplanner_python = "interpreter"\nstorage = "data"\njobs_at_once = 2\n'
        (folder / "pi05.toml").write_text(text)
        self.storage = FileStorage((folder / "data").as_uri())
        self.target = self.make_target()
        self.jobs_do()

    def make_target(self, jobs_at_once: int = 2) -> LocalTarget:
        return LocalTarget(self.storage, Local(python=str(self.python), jobs_at_once=jobs_at_once))

    def jobs_do(self, **behaviour) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps(behaviour))

    def run(self, kind: str = "demos", task: str = "pushcube", **fields) -> Rendered:
        spec = RunSpec.model_validate({"kind": kind, "task": task, "preset": "tiny", **fields})
        return render(spec, Settings(self.storage.url, str(self.python), str(self.python), jobs_at_once=2))

    def command(self, *words: str, **options) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "pi05ctl", *words]
        return subprocess.run(line, cwd=self.folder, capture_output=True, text=True, check=False, **options)

    def status(self, run: str) -> RunStatus:
        snapshot = self.target.snapshot(run)
        assert snapshot is not None
        return status.fold(snapshot, time.time())

    def until(self, fact: Callable[[], object], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not fact():
            assert time.monotonic() < end, "it did not come to pass"
            time.sleep(0.02)

    def until_state(self, run: str, *states: str) -> RunStatus:
        self.until(lambda: self.target.snapshot(run) is not None and self.status(run).state in states)
        return self.status(run)

    def until_ended(self, run: str) -> RunStatus:
        return self.until_state(run, *status.ENDED)

    def process(self, run: str) -> dict:
        return json.loads(self.storage.read(record_key(run)))

    def pid(self, run: str) -> int:
        self.until(lambda: self.storage.exists(record_key(run)) and self.process(run)["pid"])
        return self.process(run)["pid"]

    def events(self, run: str, kind: str) -> int:
        return self.target.log(run).decode().count(f'"kind":"{kind}"')


@pytest.fixture
def bench(tmp_path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for run in made.target.runs():  # what a failed test leaves
        if made.target.alive(run):
            made.target.cancel(run, now=True)


def test_submit_returns_at_once_and_the_run_outlives_who_submitted_it(bench):
    bench.jobs_do(pause=0.2)
    done = bench.command("submit", "demos", "pushcube")
    run = bench.run().run
    assert done.returncode == 0, done.stderr
    assert f"{run}  started" in done.stdout
    assert f"pi05ctl logs {run} -f" in done.stdout
    assert bench.target.alive(run)
    assert bench.until_ended(run).state == "Done"
    assert os.getsid(0) != bench.process(run)["pid"]


def test_a_run_has_a_session_of_its_own_and_no_input(bench):
    bench.jobs_do(pause=0.2)
    run = bench.target.submit(bench.run()).run
    pid = bench.pid(run)
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
    bench.until_ended(run)


def test_submitting_again_finds_the_run_and_then_its_end(bench):
    bench.jobs_do(pause=0.1)
    run = bench.run()
    outcomes = [bench.target.submit(run).outcome]
    outcomes.append(bench.target.submit(run).outcome)
    bench.until_ended(run.run)
    outcomes.append(bench.target.submit(run).outcome)
    assert outcomes == ["started", "running", "done"]
    assert bench.events(run.run, "started") == 1
    assert bench.process(run.run)["attempt"] == 1


def test_two_submits_at_the_same_moment_are_one_run(bench):
    bench.jobs_do(pause=0.3)
    line = [sys.executable, "-m", "pi05ctl", "submit", "demos", "pushcube", "-o", "json"]
    both = [subprocess.Popen(line, cwd=bench.folder, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outcomes = sorted(json.loads(one.communicate()[0])[0]["outcome"] for one in both)
    assert outcomes == ["running", "running", "running", "started"]
    run = bench.run().run
    assert bench.until_ended(run).state == "Done"
    assert bench.events(run, "started") == 1


def test_what_was_made_and_is_gone_is_made_again(bench):
    run = bench.run()
    bench.target.submit(run)
    bench.until_ended(run.run)
    assert bench.target.submit(run).outcome == "done"
    bench.storage.delete(run.job.dataset)
    assert bench.target.submit(run).outcome == "resumed"
    assert bench.until_ended(run.run).state == "Done"


def test_a_job_that_is_killed_says_so_and_resumes(bench):
    bench.jobs_do(pause=0.1)
    run = bench.target.submit(bench.run()).run
    bench.until(lambda: bench.events(run, "progress"))
    os.kill(bench.pid(run), signal.SIGKILL)
    ended = bench.until_ended(run)
    assert (ended.state, ended.why) == ("Failed", "killed (no verdict; signal 9 (SIGKILL))")
    assert ended.remedy == f"pi05ctl resume {run}"
    assert bench.target.submit(bench.target.load(run)).outcome == "resumed"
    assert bench.until_ended(run).state == "Done"
    assert bench.process(run)["attempt"] == 2


def test_what_a_killed_job_started_is_ended_too(bench):
    bench.jobs_do(pause=0.1, child=True)
    run = bench.target.submit(bench.run()).run
    bench.until(lambda: bench.storage.exists("child"))
    child = int(bench.storage.read("child"))
    assert identity(child)
    os.kill(bench.pid(run), signal.SIGKILL)
    bench.until_ended(run)
    bench.until(lambda: identity(child) is None)


def test_a_job_whose_supervisor_is_killed_goes_on(bench):
    bench.jobs_do(pause=0.2)
    run = bench.target.submit(bench.run()).run
    bench.until(lambda: bench.events(run, "progress"))
    supervisor = int(Path(f"/proc/{bench.pid(run)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    bench.until(lambda: identity(supervisor) is None)
    assert bench.status(run).state == "Running"
    assert bench.target.submit(bench.run()).outcome == "running"
    assert bench.until_ended(run).state == "Done"


def test_a_job_whose_supervisor_is_killed_can_be_cancelled(bench):
    bench.jobs_do(pause=0.2)
    run = bench.target.submit(bench.run()).run
    supervisor = int(Path(f"/proc/{bench.pid(run)}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    bench.until(lambda: identity(supervisor) is None)
    assert bench.target.alive(run)  # although nobody has a lease yet
    assert bench.target.cancel(run)
    assert bench.status(run).state == "Cancelled"


def test_an_exit_without_a_word_is_a_failure_with_its_code(bench):
    bench.jobs_do(crash="demos")
    run = bench.target.submit(bench.run()).run
    ended = bench.until_ended(run)
    assert (ended.state, ended.exit_code) == ("Failed", 7)
    assert ended.why == "ended without a verdict (exit code 7): Step 1: loss=1.0"


def test_a_job_that_says_why_is_quoted(bench):
    bench.jobs_do(fail="demos")
    run = bench.target.submit(bench.run()).run
    ended = bench.until_ended(run)
    assert (ended.state, ended.why, ended.exit_code) == ("Failed", "the dataset is of another convention", 65)


def test_an_interpreter_that_is_not_there_is_named(bench):
    run = bench.run()
    target = LocalTarget(bench.storage, Local(python="/nowhere/python", jobs_at_once=1))
    target.submit(run)
    assert "cannot start /nowhere/python: No such file or directory" in bench.until_ended(run.run).why


def test_cancel_saves_first_and_resume_goes_on_from_there(bench):
    bench.jobs_do(pause=0.1, steps=8)
    run = bench.target.submit(bench.run()).run
    bench.until(lambda: bench.events(run, "progress") >= 2)
    assert bench.target.cancel(run)
    assert not bench.target.alive(run)
    assert bench.status(run).state == "Cancelled"
    assert bench.storage.exists(f"{RunPaths(run).work}/step")
    before = bench.events(run, "progress")
    assert bench.command("resume", run).returncode == 0
    assert bench.until_ended(run).state == "Done"
    assert bench.events(run, "progress") == 8
    assert before >= 2


def test_a_training_that_is_done_is_resumed_with_more_steps_and_another_seed(bench):
    bench.until_ended(bench.target.submit(bench.run()).run)
    run = bench.target.submit(bench.run("train")).run
    assert bench.until_ended(run).state == "Done"
    refused = bench.command("resume", run, "--set", "train.seed=1")
    assert (refused.returncode, "add --set train.steps=" in refused.stderr) == (2, True)
    assert bench.command("resume", run, "--set", "train.steps=5000", "--set", "train.seed=1").returncode == 0
    assert bench.until_ended(run).state == "Done"
    assert bench.storage.exists(RunPaths(run).checkpoint(5000))
    line = bench.command("status", run).stdout.splitlines()[1]
    assert line.endswith("train.steps=5000 instead of 4000, train.seed=1 instead of 0")
    assert json.loads(bench.command("status", run, "-o", "json").stdout)[0]["changed"]
    assert bench.command("submit", "train", "pushcube").stdout.startswith(f"{run}  is done already")
    assert json.loads(bench.storage.read(RunPaths(run).job))["train"]["steps"] == 5000


def test_a_training_that_runs_cannot_be_resumed_otherwise(bench):
    bench.until_ended(bench.target.submit(bench.run()).run)
    bench.jobs_do(pause=0.2, steps=100)
    run = bench.target.submit(bench.run("train")).run
    refused = bench.command("resume", run, "--set", "train.seed=1")
    assert (refused.returncode, f"pi05ctl cancel {run} lets it save" in refused.stderr) == (2, True)
    bench.target.cancel(run, now=True)


def test_cancel_now_does_not_wait_for_saving(bench):
    bench.jobs_do(pause=0.5, steps=100)
    run = bench.target.submit(bench.run()).run
    bench.until(lambda: bench.events(run, "progress"))
    done = bench.command("cancel", run, "--now")
    assert done.returncode == 0
    assert f"{run} is Cancelled; to go on: pi05ctl resume {run}" in done.stderr
    assert not bench.storage.exists(f"{RunPaths(run).work}/step")
    assert bench.status(run).exit_code == -signal.SIGKILL


def test_cancel_of_what_is_not_running_changes_nothing(bench):
    run = bench.target.submit(bench.run()).run
    bench.until_ended(run)
    done = bench.command("cancel", run)
    assert (done.returncode, f"{run} is not running: it is Done" in done.stderr) == (0, True)
    assert bench.status(run).state == "Done"


def test_a_stranger_with_the_same_pid_is_not_signalled(bench):
    bench.jobs_do(pause=0.2)
    run = bench.target.submit(bench.run()).run
    bench.pid(run)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        record = bench.process(run)
        bench.storage.write(record_key(run), json.dumps({**record, "pid": stranger.pid}).encode())
        assert bench.target.cancel(run, now=True)  # returns when the job has ended by itself
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_job_started_by_hand_is_seen_and_left_alone(bench):
    bench.jobs_do(pause=0.2)
    run = bench.run()
    bench.target.submit(run)
    bench.until_ended(run.run)
    bench.storage.delete(run.job.dataset)
    job = bench.storage.path(RunPaths(run.run).job)
    with bench.storage.path(RunPaths(run.run).log).open("ab") as log:
        by_hand = subprocess.Popen([bench.python, "-m", "pi05.jobs.demos", job], stdout=log, stderr=log)
    bench.until(lambda: bench.target.alive(run.run))
    assert bench.target.submit(run).outcome == "running"
    with pytest.raises(TargetError, match="did not start"):
        bench.target.cancel(run.run)
    assert by_hand.wait() == 0
    assert bench.status(run.run).state == "Done"


def test_more_runs_than_slots_wait_for_their_turn(bench):
    bench.jobs_do(pause=0.15)
    target = bench.make_target(jobs_at_once=1)
    first = target.submit(bench.run()).run
    bench.pid(first)
    second = target.submit(bench.run(task="pullcube")).run
    waiting = bench.until_state(second, "Queued")
    assert "jobs_at_once" in waiting.why
    assert bench.status(first).state in ("Starting", "Running")
    assert bench.until_ended(first).state == "Done"
    assert bench.until_ended(second).state == "Done"
    assert bench.process(second)["started"] >= bench.process(first)["ended"] - 0.1


def test_a_run_that_waits_can_be_cancelled_and_never_starts(bench):
    bench.jobs_do(pause=0.3)
    target = bench.make_target(jobs_at_once=1)
    first = target.submit(bench.run()).run
    bench.pid(first)
    second = target.submit(bench.run(task="pullcube")).run
    bench.until_state(second, "Queued")
    assert target.cancel(second)
    assert bench.status(second).state == "Cancelled"
    assert bench.process(second)["pid"] is None
    assert bench.status(first).state in ("Starting", "Running")
    target.cancel(first, now=True)


def test_again_is_another_run_on_purpose(bench):
    first = bench.command("submit", "demos", "pushcube", "-o", "json")
    run = json.loads(first.stdout)[0]["run"]
    bench.until_ended(run)
    again = json.loads(bench.command("submit", "demos", "pushcube", "--again", "-o", "json").stdout)[0]
    assert again["outcome"] == "started"
    assert again["run"] != run
    assert bench.until_ended(again["run"]).state == "Done"
    third = json.loads(bench.command("submit", "demos", "pushcube", "--again", "-o", "json").stdout)[0]
    assert third["run"] not in (run, again["run"])
    bench.until_ended(third["run"])


def test_a_name_taken_by_other_values_is_refused(bench):
    run = bench.run()
    bench.target.submit(run)
    bench.until_ended(run.run)
    record = json.loads(bench.storage.read(RunPaths(run.run).spec))
    bench.storage.write(RunPaths(run.run).spec, json.dumps({**record, "digest": "0" * 64}).encode())
    with pytest.raises(UsageError, match="exists with other values"):
        bench.target.submit(run)


def test_a_moved_folder_of_runs_goes_on(bench, tmp_path):
    bench.jobs_do(pause=0.1)
    run = bench.target.submit(bench.run()).run
    bench.until(lambda: bench.events(run, "progress"))
    bench.target.cancel(run)
    before, moved = bench.storage, FileStorage((tmp_path / "moved").as_uri())
    before.root.rename(moved.root)
    bench.storage, bench.target = moved, LocalTarget(moved, Local(python=str(bench.python), jobs_at_once=1))
    bench.target.submit(bench.target.load(run))
    assert bench.until_ended(run).state == "Done"
    assert moved.exists(bench.run().job.dataset)
    assert not before.root.exists()


def test_wait_and_follow_tell_the_ends_apart(bench):
    bench.jobs_do(pause=0.3, steps=30)
    run = bench.target.submit(bench.run()).run
    assert bench.command("wait", run, "--timeout", "0.2").returncode == 124
    done = bench.command("wait", run)
    assert (done.returncode, run in done.stdout) == (0, True)
    bench.jobs_do(fail="train")
    failed = bench.command("submit", "train", "pushcube", "--follow")
    assert failed.returncode == 1
    assert "the dataset is of another convention" in failed.stderr.splitlines()[-1]
    assert bench.command("wait", bench.run("train").run).returncode == 125


def test_ctrl_c_while_following_leaves_the_run_going(bench):
    bench.jobs_do(pause=0.2, steps=60)
    line = [sys.executable, "-m", "pi05ctl", "submit", "demos", "pushcube", "--follow"]
    with subprocess.Popen(
        line,
        cwd=bench.folder,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        run = bench.run().run
        bench.until_state(run, "Running")
        time.sleep(0.5)  # so that it is following by now
        os.killpg(following.pid, signal.SIGINT)  # as a terminal does: to the whole group
        _, said = following.communicate()
    assert following.returncode == 130
    assert f"{run} goes on" in said
    assert f"pi05ctl cancel {run}" in said
    assert "Traceback" not in said
    assert bench.until_ended(run).state == "Done"


def test_logs_are_what_was_printed(bench):
    bench.jobs_do(pause=0.1)
    run = bench.target.submit(bench.run()).run
    followed = bench.command("logs", run, "-f")
    assert followed.stdout == bench.target.log(run).decode()
    assert followed.stdout.count("Step ") == 5
    assert '"kind":"finished"' in followed.stdout.splitlines()[-1]
    assert bench.command("logs", run).stdout == followed.stdout


def test_watching_one_run_ends_with_it(bench):
    bench.jobs_do(pause=0.1)
    run = bench.target.submit(bench.run()).run
    watched = bench.command("status", run, "-w", "-o", "json", timeout=60)
    assert watched.returncode == 0
    assert '"state": "Done"' in watched.stdout


def pipeline(bench: Bench, **fields) -> tuple[str, list[str]]:
    rendered = bench.run("pipeline", **fields)
    return rendered.run, [stage.run for stage in stages(rendered)]


def test_a_pipeline_runs_its_stages_and_reports(bench):
    run, below = pipeline(bench)
    done = bench.command("submit", "pipeline", "pushcube", "--follow")
    assert done.returncode == 0, done.stderr
    assert f"{run}  Done  success 90 % [60, 98] of 10" in done.stdout
    assert f"runs/{run}/report/index.html" in done.stdout
    assert [line.split()[0] for line in done.stderr.splitlines() if " Done" in line] == below
    assert "90 %" in bench.storage.read(f"runs/{run}/report/index.html").decode()
    assert [bench.status(stage).parent for stage in below] == [run] * 3
    rows = json.loads(bench.command("results", "-o", "json").stdout)
    assert rows[0]["metrics"]["success_once"] == pytest.approx(0.9)
    again = bench.command("submit", "pipeline", "pushcube", "--follow")
    assert "is done already" in again.stdout
    assert bench.process(run)["attempt"] == 1


def test_a_killed_pipeline_goes_on_where_its_stages_are(bench):
    bench.jobs_do(pause=0.3)
    run, (demos, train, evaluation) = pipeline(bench)
    bench.target.submit(bench.run("pipeline"))
    bench.until_state(demos, "Running")
    os.kill(bench.pid(run), signal.SIGKILL)
    assert bench.until_ended(run).why == "killed (no verdict; signal 9 (SIGKILL))"
    assert bench.target.alive(demos)
    bench.jobs_do()
    assert bench.target.submit(bench.run("pipeline")).outcome == "resumed"
    assert bench.until_ended(run).state == "Done"
    for stage in (demos, train, evaluation):
        assert bench.events(stage, "started") == 1


def test_cancelling_a_pipeline_cancels_its_stage(bench):
    bench.jobs_do(pause=0.2)
    run, (demos, train, _) = pipeline(bench)
    bench.target.submit(bench.run("pipeline"))
    bench.until_state(demos, "Running")
    assert bench.target.cancel(run)
    assert (bench.status(run).state, bench.status(demos).state) == ("Cancelled", "Cancelled")
    assert bench.storage.exists(f"{RunPaths(demos).work}/step")
    assert bench.target.snapshot(train) is None
    bench.jobs_do()
    assert bench.command("resume", "pushcube", "--follow").returncode == 0
    assert bench.status(run).state == "Done"


def test_killing_a_pipeline_now_kills_its_stage(bench):
    bench.jobs_do(pause=0.2)
    run, (demos, *_) = pipeline(bench)
    bench.target.submit(bench.run("pipeline"))
    bench.until_state(demos, "Running")
    assert bench.target.cancel(run, now=True)
    assert (bench.status(run).state, bench.status(demos).state) == ("Cancelled", "Cancelled")
    assert bench.status(demos).exit_code == -signal.SIGKILL


def test_a_pipeline_ends_with_a_stage_that_somebody_cancels(bench):
    bench.jobs_do(pause=0.1, steps=600)
    run, (demos, *_) = pipeline(bench)
    bench.target.submit(bench.run("pipeline"))
    bench.until_state(demos, "Running")
    assert bench.command("cancel", demos).returncode == 0
    bench.until_state(run, "Failed")
    assert (bench.status(run).exit_code, bench.status(demos).state) == (67, "Cancelled")
    assert f"{demos} is Cancelled" in bench.status(run).why


def test_a_stage_that_was_cancelled_while_its_pipeline_was_away_is_not_started_again(bench):
    bench.jobs_do(pause=0.1, steps=600)
    run, (demos, *_) = pipeline(bench)
    bench.target.submit(bench.run("pipeline"))
    bench.until_state(demos, "Running")
    bench.until(lambda: bench.storage.exists(f"runs/{run}/stages.json"))
    os.kill(bench.pid(run), signal.SIGKILL)
    bench.until_ended(run)
    assert bench.target.cancel(demos)
    job = bench.storage.path(RunPaths(run).job)  # as the successor of its pod begins
    line = [sys.executable, "-m", "pi05ctl.pipeline", str(job)]
    successor = subprocess.run(line, cwd=bench.folder, capture_output=True, text=True, check=False)
    assert (successor.returncode, f"{demos} is Cancelled" in successor.stderr) == (67, True)
    assert bench.events(demos, "started") == 1
    bench.jobs_do()
    assert bench.command("resume", run, "--follow").returncode == 0
    assert bench.events(demos, "started") == 2


def test_a_pipeline_that_goes_on_takes_the_interpreter_of_today(bench):
    settings = bench.folder / "pi05.toml"
    right = settings.read_text()
    settings.write_text(right.replace('python = "interpreter"\nplanner', 'python = "nowhere"\nplanner'))
    run, (demos, *_) = pipeline(bench)
    failed = bench.command("submit", "pipeline", "pushcube", "--follow")
    assert failed.returncode == 1
    assert "cannot start" in bench.status(demos).why
    settings.write_text(right)
    assert bench.command("resume", run, "--follow").returncode == 0
    assert bench.status(run).state == "Done"


def test_an_edited_pipeline_does_not_run(bench):
    run, _ = pipeline(bench)
    bench.until_ended(bench.target.submit(bench.run("pipeline")).run)
    job = bench.storage.path(RunPaths(run).job)
    told = json.loads(job.read_text())
    told["stages"][1]["train"]["steps"] = 7
    job.write_text(json.dumps(told))
    line = [sys.executable, "-m", "pi05ctl.pipeline", str(job)]
    done = subprocess.run(line, cwd=bench.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, f"is not the job that {run} stands for" in done.stderr) == (3, True)
    assert bench.command("resume", run).returncode == 3


def test_a_training_on_nothing_makes_its_data_first_and_is_one_run(bench):
    bench.jobs_do(pause=0.1, steps=600)
    demos, train = bench.run("demos").run, bench.run("train").run
    first = bench.command("submit", "train", "pushcube", "-o", "json")
    assert f"{train} comes with what it needs" in first.stderr
    [submission] = json.loads(first.stdout)
    bench.until_state(demos, "Running")
    assert bench.command("cancel", "pushcube").returncode == 0
    assert bench.status(demos).state == "Cancelled"
    bench.jobs_do()
    again = bench.command("submit", "train", "pushcube", "--follow")
    assert again.returncode == 0, again.stderr
    assert f"{submission['run']}  started again" in again.stdout
    assert [line.split()[0] for line in again.stderr.splitlines() if " Done" in line] == [demos, train]
    assert bench.storage.exists(f"runs/{submission['run']}/report/index.html")
    rows = json.loads(bench.command("status", "pushcube", "-o", "json").stdout)
    assert [(row["run"], row["state"]) for row in rows] == [(n, "Done") for n in (submission["run"], demos, train)]
    assert f"{submission['run']}  is done already" in bench.command("submit", "train", "pushcube").stdout
    removed = bench.command("delete", "-y", submission["run"], train)
    assert removed.returncode == 0, removed.stderr
    assert (
        bench.command("submit", "train", "pushcube", "-o", "json").stdout.count(train) > 0
    )  # its data are still there
    bench.until_ended(train)


def test_six_tasks_are_six_policies_and_one_table(bench):
    done = bench.command("submit", "pipeline", "all", "--follow")
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()[-7:]
    assert table[0].split()[:2] == ["TASK", "SUCCESS"]
    assert all("90 %" in row and "60 to 98 %" in row and "Done" in row for row in table[1:])
    assert bench.command("results", "all").stdout.splitlines() == table


def test_a_pipeline_fails_with_its_stage_and_resumes(bench):
    bench.jobs_do(fail="train")
    run, (demos, train, evaluation) = pipeline(bench)
    done = bench.command("submit", "pipeline", "pushcube", "--follow")
    assert done.returncode == 1
    assert f"{train} is Failed: the dataset is of another convention" in done.stderr
    assert bench.status(run).exit_code == 65
    assert bench.target.snapshot(evaluation) is None
    bench.jobs_do()
    assert bench.command("submit", "pipeline", "pushcube", "--follow").returncode == 0
    assert bench.events(demos, "started") == 1
    assert bench.status(run).state == "Done"


def test_a_pipeline_waits_for_a_stage_that_somebody_else_started(bench):
    bench.jobs_do(pause=0.2)
    run, (demos, *_) = pipeline(bench)
    bench.target.submit(bench.run("demos"))
    bench.target.submit(bench.run("pipeline"))
    assert bench.until_ended(run).state == "Done"
    assert bench.events(demos, "started") == 1
    assert bench.status(demos).parent is None
