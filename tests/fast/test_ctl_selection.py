"""Which runs a table shows, what it says of the others, and which may be removed for good."""

import json

from pi05.events import Event
from pi05.storage import RunPaths
from pi05ctl.runs import removal
from pi05ctl.runs.records import Records
from pi05ctl.runs.selection import OLD, select, wanted
from pi05ctl.runs.status import RunStatus
from tests.fast.test_ctl_cli import command, here, put, spec
from tests.fast.test_ctl_needs import finish, storage

__all__ = ["here"]
NOW = 10_000_000.0
RUNS = [
    RunStatus("train-pushcube-1", "pushcube", "train", "Running", latest=NOW - OLD - 9),
    RunStatus("eval-pushcube-2", "pushcube", "eval", "Failed", latest=NOW - 9),
    RunStatus("train-pullcube-3", "pullcube", "train", "Done", latest=NOW - OLD - 9),
    RunStatus("train-pullcube-4", "pullcube", "train", "Done", latest=NOW - OLD + 9),
]


def numbers(**options) -> tuple[str, str]:
    """Return the last digits of the runs that are shown, and what is said of the others."""
    asked = {"states": (), "of_tasks": (), "kinds": (), "limit": None, "old": False} | options
    shown, left = select(RUNS, wanted(**asked), NOW)
    return "".join(one.run[-1] for one in shown), left


def test_what_ended_long_ago_is_left_out_and_counted():
    assert numbers() == ("124", "1 that ended more than 7 days ago (--all)")
    assert numbers(old=True) == ("1234", "")


def test_filters_are_combined_and_a_word_may_be_written_small():
    assert numbers(states=("running", "Failed")) == ("12", "")
    assert numbers(kinds=("train",), of_tasks=("pullcube",), old=True) == ("34", "")
    assert numbers(of_tasks=("stackcube",)) == ("", "")


def test_a_limit_takes_the_first_and_says_so():
    assert numbers(limit=1) == ("1", "1 that ended more than 7 days ago (--all) and 2 older ones (--limit 1)")


def test_a_table_says_how_many_it_leaves_out_and_json_has_all(capsys, here):
    old, young = put(here, spec("train"), created=1), put(here, spec("train", "pullcube"), created=2)
    finish(here, old)
    code, out, err = command(capsys, "status")
    assert (code, old in out, young in out) == (0, False, True)
    assert err == "pi05ctl: left out: 1 that ended more than 7 days ago (--all)\n"
    assert old in command(capsys, "status", "--all")[1]
    assert {row["run"] for row in json.loads(command(capsys, "status", "-o", "json")[1])} == {old, young}
    assert [row["run"] for row in json.loads(command(capsys, "status", "--task", "pullcube", "-o", "json")[1])] == [
        young
    ]
    assert command(capsys, "status", "--state", "Stalled")[2] == "pi05ctl: none of the 2 runs is so\n"


def test_a_run_is_removed_with_all_that_is_its_own(capsys, here):
    demos, train = put(here, spec("demos"), created=1), put(here, spec("train"), created=1)
    finish(here, train)
    with storage(here).stage("datasets/pushcube/1"), storage(here).stage(RunPaths(train).checkpoint(5)):
        pass
    code, out, _ = command(capsys, "delete", train, "--dry-run")
    assert (code, out) == (0, f"would remove: {train}  Done  record, log, 1 checkpoints\n")
    assert command(capsys, "delete", train)[0] == 2  # nobody can be asked here
    assert storage(here).exists(RunPaths(train).checkpoint(5))
    assert command(capsys, "delete", train, "-y")[:2] == (0, f"removed: {train}  Done  record, log, 1 checkpoints\n")
    assert storage(here).children("runs") == [demos]
    assert not (here / f"pi05-data/runs/{train}").exists()
    assert storage(here).exists("datasets/pushcube/1")


def test_what_others_build_on_stays_unless_they_go_too(capsys, here):
    pipeline = put(here, spec("pipeline"), created=1)
    evaluation, train = put(here, spec("eval"), created=1), put(here, spec("train"), created=1)
    code, _, err = command(capsys, "delete", train, "-y")
    assert code == 2
    assert f"{pipeline} builds on {train}" in err or f"{evaluation}, {pipeline} build on {train}" in err
    names = removal.check(storage(here), [train, evaluation, pipeline])
    assert names == [pipeline, evaluation, train]
    assert command(capsys, "delete", train, evaluation, pipeline, "-y")[0] == 0
    assert storage(here).children("runs") == []


def test_a_run_that_works_is_not_removed(capsys, here):
    run = put(here, spec("train"), created=1)
    said = Event(run=run, kind="progress", time=1, step=1)
    storage(here).write(RunPaths(run).status, said.model_dump_json(exclude_none=True).encode())
    with storage(here).lease(RunPaths(run).lease):
        code, _, err = command(capsys, "delete", run, "-y")
    assert (code, f"{run} is running; end it first: pi05ctl cancel {run}" in err) == (2, True)
    assert storage(here).exists(RunPaths(run).spec)


def test_a_run_whose_record_is_damaged_can_be_removed(capsys, here):
    run = put(here, spec("train"), created=1)
    storage(here).write(RunPaths(run).spec, b"{")
    assert command(capsys, "delete", run, "-y")[:2] == (0, f"removed: {run}  damaged  record, log\n")
    assert storage(here).children("runs") == []


def test_a_submission_that_waits_for_another_one_says_so(here, monkeypatch, caplog):
    monkeypatch.setattr("pi05ctl.runs.records._MUTE", 0.0)
    other = storage(here).lease("local/submit/train-pushcube-1")
    other.__enter__()
    with Records(storage(here)).submitting("train-pushcube-1", lambda _: other.__exit__(None, None, None)):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "another pi05ctl is submitting train-pushcube-1, or was killed while it did; waiting for it, up to 90 s"
    ]
