"""The rules that make a state of facts, and the table that shows it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pi05.events import Event
from pi05ctl.runs.process import Process
from pi05ctl.runs.status import STALLED_AFTER, RunStatus, Snapshot, annotate, fold, success
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.views import tables

GOLDEN = Path(__file__).parents[1] / "golden"
NOW = 10_000.0
RUN = "train-pushcube-a8c1f0"


def event(kind: str, ago: float, **fields) -> Event:
    return Event(run=RUN, kind=kind, time=NOW - ago, **fields)


def process(ago: float = 100.0, **fields) -> Process:
    return Process(**{"attempt": 1, "submitted": NOW - ago, "started": NOW - ago, "pid": 7, **fields})


def seen(**fields) -> Snapshot:
    spec = RunSpec(kind="train", task="pushcube", preset="tiny")
    return Snapshot(**{"run": RUN, "spec": spec, "created": NOW - 3000, **fields})


PROGRESS = event("progress", 5, step=50, total=100)
FINISHED = event("finished", 1)
FAILED = event("failed", 1, message="the loss is not finite", exit_code=66)
OLD_FINISHED = event("finished", 500)
OLD_FAILED = event("failed", 500, message="old", exit_code=75)
GONE = process(ended=NOW, exit_code=0)
KILLED = process(ended=NOW, exit_code=-9)

CASES = {
    "nothing was ever started": (seen(), "Pending", "never started"),
    "waiting for a slot": (seen(alive=True, process=process(started=None, waiting=True)), "Queued", "free slot"),
    "taken, not yet a process": (seen(alive=True, process=process(started=None, pid=None)), "Starting", ""),
    "no event yet": (seen(alive=True, process=process()), "Starting", ""),
    "no event yet, second attempt": (seen(alive=True, process=process(attempt=2)), "Retrying", "attempt 2"),
    "an older attempt's events do not count": (
        seen(alive=True, process=process(attempt=2), events=(OLD_FAILED,)),
        "Retrying",
        "attempt 2",
    ),
    "alive and talking": (seen(alive=True, process=process(), events=(PROGRESS,)), "Running", ""),
    "alive and warned": (
        seen(alive=True, process=process(), events=(event("warning", 3, message="bucket away"),)),
        "Running",
        "bucket away",
    ),
    "started by hand": (seen(alive=True, events=(PROGRESS,)), "Running", ""),
    "no process is known yet": (seen(alive=True), "Starting", ""),
    "finished but not gone": (seen(alive=True, process=process(), events=(FINISHED,)), "Running", ""),
    "silent for long": (
        seen(alive=True, process=process(3000), events=(event("progress", 700, step=1, total=2),)),
        "Stalled",
        "no event for 12 min",
    ),
    "silent from the start": (seen(alive=True, process=process(STALLED_AFTER + 60)), "Stalled", "no event for 11 min"),
    "finished and gone": (seen(process=GONE, events=(FINISHED,)), "Done", ""),
    "finished and gone, by hand": (seen(events=(FINISHED,)), "Done", ""),
    "finished, exit unknown": (seen(process=process(), events=(FINISHED,)), "Done", ""),
    "the log is lost, status.json is not": (seen(process=GONE, verdicts=(FINISHED,)), "Done", ""),
    "finished although cancelled": (seen(process=GONE, events=(FINISHED,), cancelled=NOW), "Done", ""),
    "cancelled": (seen(process=KILLED, events=(PROGRESS,), cancelled=NOW), "Cancelled", ""),
    "cancelled, saved and said so": (
        seen(process=process(exit_code=143), events=(event("failed", 1, exit_code=143),), cancelled=NOW),
        "Cancelled",
        "",
    ),
    "cancelled in the queue": (seen(process=process(started=None, ended=NOW), cancelled=NOW), "Cancelled", ""),
    "could not be started": (
        seen(process=process(started=None, problem="cannot start /x: No such file or directory")),
        "Failed",
        "cannot start /x",
    ),
    "said finished, exited otherwise": (
        seen(process=process(exit_code=1), events=(FINISHED,)),
        "Failed",
        "said finished, but ended with exit code 1",
    ),
    "said why it failed": (seen(process=process(exit_code=66), events=(FAILED,)), "Failed", "loss is not finite"),
    "killed": (
        seen(process=KILLED, events=(PROGRESS,), last_line="Step 50"),
        "Failed",
        "killed (no verdict; signal 9 (SIGKILL))",
    ),
    "exited without a word": (
        seen(process=process(exit_code=1), last_line="ImportError: no jax"),
        "Failed",
        "ended without a verdict (exit code 1): ImportError: no jax",
    ),
    "the machine went down": (seen(process=process(), events=(PROGRESS,)), "Failed", "ended without a verdict"),
    "an old attempt's success is not this one's": (
        seen(process=process(exit_code=-9, attempt=2), events=(OLD_FINISHED,)),
        "Failed",
        "killed",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rules(case):
    snapshot, state, why = CASES[case]
    status = fold(snapshot, NOW)
    assert status.state == state
    assert why in status.why
    assert bool(status.why) == bool(why)


@pytest.mark.parametrize("state", ["Failed", "Cancelled", "Stalled"])
def test_what_is_not_well_has_a_remedy(state):
    cases = [snapshot for snapshot, of, _ in CASES.values() if of == state]
    assert cases
    for snapshot in cases:
        assert fold(snapshot, NOW).remedy


@pytest.mark.parametrize(("code", "remedy"), [(64, "options"), (66, "seed"), (75, "pi05ctl resume"), (1, "resume")])
def test_the_remedy_follows_the_exit_code(code, remedy):
    failed = event("failed", 1, message="x", exit_code=code)
    assert remedy in fold(seen(process=process(exit_code=code), events=(failed,)), NOW).remedy


def progress(*points: tuple[float, int], total: int = 100, **extra) -> tuple[Event, ...]:
    return tuple(event("progress", NOW - at, step=step, total=total, **extra) for at, step in points)


def running(events: tuple[Event, ...]) -> RunStatus:
    return fold(seen(alive=True, process=process(5000, submitted=0, started=1.0), events=events), NOW)


def test_speed_and_time_left():
    status = running(progress((9980, 10), (9985, 20), (9990, 30)))
    assert status.seconds_per_step == pytest.approx(0.5)
    assert status.left == pytest.approx(35)


def test_speed_is_of_the_latest_events():
    slow = [(9000 + 10 * number, number) for number in range(20)]
    fast = [(9200 + number, 20 + number) for number in range(1, 30)]
    assert running(progress(*slow, *fast)).seconds_per_step == pytest.approx(1)


def test_episodes_that_end_together_do_not_count_as_fast():
    waves = [(9900 + 10 * wave + 0.01 * one, 10 * wave + one) for wave in range(3) for one in range(1, 11)]
    assert running(progress(*waves)).seconds_per_step == pytest.approx(1)


def test_speed_does_not_reach_over_stages_or_restarts():
    events = (*progress((9900, 5), (9910, 6), stage="demos-x-1"), *progress((9990, 50), stage="train-x-1"))
    assert running(events).seconds_per_step is None
    assert running(progress((9900, 50), (9950, 60), (9990, 40))).seconds_per_step is None


def test_progress_of_a_cancelled_run_is_kept_and_its_time_left_is_not():
    status = fold(seen(process=KILLED, events=progress((9000, 1), (9990, 30)), cancelled=NOW), NOW)
    assert (status.step, status.total, status.left) == (30, 100, None)


def evaluation(**fields) -> RunStatus:
    metrics = {"success_once": 0.98, "wilson_low": 0.93, "wilson_high": 0.994, "episodes": 100.0}
    return RunStatus(
        **{"run": "eval-x", "task": "pushcube", "kind": "eval", "state": "Done", "metrics": metrics, **fields}
    )


def test_a_training_run_is_told_what_its_latest_evaluation_found():
    train = RunStatus(run=RUN, task="pushcube", kind="train", state="Done", checkpoint=30_000)
    older = evaluation(created=1.0, train_run=RUN, metrics={"success_once": 0.5})
    newer = evaluation(created=2.0, train_run=RUN)
    other = evaluation(created=3.0, train_run="train-y", metrics={"success_once": 0.1})
    assert annotate([newer, older, other, train])[-1].why == "checkpoint 30000; evaluated: 98 % [93, 99] of 100"
    assert annotate([train])[0].why == "checkpoint 30000"
    assert annotate([replace(train, state="Running"), newer])[0].why == ""


def test_success_says_as_much_as_it_knows():
    assert success({}) == ""
    assert success({"success_once": 0.87}) == "87 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (42, "42 s"),
        (185, "3 m"),
        (3600, "1 h 00"),
        (4210, "1 h 10"),
        (32400, "9 h"),
        (172800, "2 d"),
    ],
)
def test_durations_are_as_precise_as_a_table_needs(seconds, text):
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, ""), (0.2412, "0.24 s"), (1.34, "1.3 s"), (75.2, "75 s")])
def test_speeds(seconds, text):
    assert tables.speed(seconds) == text


TABLE = [
    RunStatus(
        run="train-stackcube-3f2a91",
        task="stackcube",
        kind="train",
        state="Running",
        step=12_500,
        total=30_000,
        unit="steps",
        seconds_per_step=0.24,
        metrics={"loss": 0.00712, "grad_norm": 0.1},
        left=4210,
        age=3000,
    ),
    RunStatus(
        run="train-pullcube-77b0c4",
        task="pullcube",
        kind="train",
        state="Queued",
        age=180,
        why="waits for a free slot (jobs_at_once in pi05.toml)",
    ),
    RunStatus(
        run="eval-pickcube-0be1d2",
        task="pickcube",
        kind="eval",
        state="Running",
        step=31,
        total=50,
        unit="episodes",
        seconds_per_step=12.6,
        metrics={"success_once": 0.87},
        left=240,
        age=720,
    ),
    RunStatus(
        run="pipeline-pickcube-11aa22",
        task="pickcube",
        kind="pipeline",
        state="Running",
        step=31,
        total=50,
        unit="episodes",
        stage="eval-pickcube-0be1d2",
        metrics={"loss": 0.02, "success_once": 0.87},
        age=9000,
    ),
    RunStatus(
        run="train-pushcube-a8c1f0",
        task="pushcube",
        kind="train",
        state="Done",
        step=30_000,
        total=30_000,
        unit="steps",
        metrics={"loss": 0.0039},
        age=32_400,
        why="checkpoint 30000; evaluated: 98 % [93, 99] of 100",
    ),
    RunStatus(
        run="demos-placesphere-00ff00",
        task="placesphere",
        kind="demos",
        state="Failed",
        step=12,
        total=188,
        unit="demos",
        metrics={"yield": 0.51},
        age=100_000,
        why="killed (no verdict;\nsignal 9 (SIGKILL))",
        remedy="pi05ctl resume demos-placesphere-00ff00",
    ),
]


def test_the_status_table_is_golden():
    path = GOLDEN / "ctl_status.txt"
    text = tables.text_table(tables.HEADER, [tables.row(status) for status in TABLE])
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"UPDATE_GOLDEN=1 scripts/test fast rewrites {path.name}"


ROWS = [tables.row(status) for status in TABLE]


def test_a_wide_terminal_shows_the_same():
    assert tables.terminal_table(tables.HEADER, ROWS, 300, colour=False) == tables.text_table(tables.HEADER, ROWS)


@pytest.mark.parametrize("width", [80, 100, 120, 140, 160])
def test_a_narrow_terminal_leaves_columns_out_and_cuts_nothing(width):
    text = tables.terminal_table(tables.HEADER, ROWS, width, colour=False)
    rows = [line for line in text.splitlines() if not line.startswith(" ")]
    assert max(map(len, rows)) <= width
    for status in TABLE:
        assert any(line.startswith(status.run) and status.state in line for line in rows)
        assert " ".join(status.why.split()) in text


def test_a_wider_terminal_shows_more():
    headers = [tables.terminal_table(tables.HEADER, ROWS, width).splitlines()[0] for width in (80, 120, 160, 300)]
    counts = [len(header.split()) for header in headers]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_columns_that_nobody_fills_are_left_out():
    text = tables.terminal_table(tables.HEADER, [tables.row(TABLE[1])], 300, colour=False)
    assert text.split("\n")[0].split() == ["RUN", "TASK", "KIND", "STATE", "AGE", "WHY"]


def test_a_state_is_in_colour():
    assert "\033[1;31mFailed\033[0m" in tables.terminal_table(tables.HEADER, ROWS, 300)


def test_json_has_every_field_and_every_run():
    rows = json.loads(tables.status_json(TABLE))
    assert [row["run"] for row in rows] == [status.run for status in TABLE]
    assert rows[0]["metrics"]["loss"] == 0.00712
    assert rows[0]["left"] == 4210
