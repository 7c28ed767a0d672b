"""What gc takes, and what it leaves alone, over runs in storage and what a cluster says of them."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pi05.events import Event
from pi05.storage import FileStorage, RunPaths
from pi05ctl.cli import main as cli
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.runs import gc
from pi05ctl.runs.facts import ABSENT, Facts
from pi05ctl.runs.gc import Leftover, Rules
from pi05ctl.runs.records import Records
from pi05ctl.runs.status import Snapshot
from pi05ctl.spec.render import Rendered, render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Settings

NOW = 1_000_000.0
DAY = 86_400.0
RULES = Rules(NOW, 7 * DAY)


class Place:
    """A cluster: what it has installed, and what runs look like in it."""

    def __init__(self, storage: FileStorage):
        self.storage = storage
        self.seen: list[Snapshot] = []
        self.working: set[str] = set()
        self.made: dict[str, float] = {}
        self.forgotten: list[str] = []

    def put(
        self, kind: str = "train", days: float = 8, verdict: str = "finished", facts: Facts = ABSENT, seed: int = 0
    ):
        """Add a run that ended so many days ago, with all that a run can have in storage."""
        spec = RunSpec.model_validate(
            {"kind": kind, "task": "pushcube", "preset": "tiny", "overrides": {"train.seed": seed}}
        )
        run = render(spec, Settings(self.storage.url, "python", "python"))
        Records(self.storage).write(run, NOW - 9 * DAY, None)
        words = Event(run=run.run, kind=verdict, time=NOW - days * DAY)
        verdicts = (words,) if verdict in ("finished", "failed") else ()
        self.seen.append(
            Snapshot(run=run.run, spec=spec, created=NOW - 9 * DAY, facts=facts, verdicts=verdicts, events=verdicts)
        )
        self._fill(run)
        return run.run

    def _fill(self, run: Rendered) -> None:
        paths, storage = RunPaths(run.run), self.storage
        for key in (paths.work, RunPaths(run.run, 0).work, RunPaths(run.run, 1).work):
            storage.write(f"{key}/block", b"x")
        for name in ("status.json", "logs/pod.txt", "log.txt", "results/0.json", "report/index.html"):
            storage.write(f"{paths.root}/{name}", b"x")
        if run.spec.kind == "train":
            with storage.stage(paths.checkpoint(10)) as folder:
                (folder / "params").write_text("x")
            storage.write(f"{paths.checkpoints}/20/params", b"half")
            storage.write(f"{paths.checkpoints}/.30.incomplete/params", b"half")

    def load(self, name):
        return Records(self.storage).load(name)

    def snapshots(self):
        return self.seen, []

    def alive(self, run):
        return run in self.working

    def installed(self):
        return self.made

    def forget(self, run):
        self.forgotten.append(run)


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(FileStorage(tmp_path.as_uri()))


def files(place: Place) -> set[str]:
    root = place.storage.root
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "local" not in path.parts}


def collect(place: Place, rules: Rules = RULES) -> gc.Survey:
    """Survey and remove."""
    found = gc.survey(place, place, rules)
    assert [why for _, why in gc.remove(place, place, found.leftovers, time.sleep)] == [""] * len(found.leftovers)
    return found


def test_a_run_that_is_done_loses_what_nobody_needs_and_nothing_else(place):
    run = place.put()
    place.made[run] = NOW - 9 * DAY
    before = files(place)
    (leftover,) = collect(place).leftovers
    assert leftover.what == (
        f"its release and Job, runs/{run}/work, runs/{run}/shards/0/work, runs/{run}/shards/1/work, "
        f"runs/{run}/checkpoints/20 (never completed), runs/{run}/checkpoints/30 (never completed)"
    )
    assert place.forgotten == [run]
    gone = before - files(place)
    assert gone == {
        f"runs/{run}/{name}"
        for name in (
            *("work/block", "shards/0/work/block", "shards/1/work/block"),
            *("checkpoints/20/params", "checkpoints/.30.incomplete/params"),
        )
    }
    assert place.storage.verify(RunPaths(run).checkpoint(10)) == []
    place.made = {}
    assert collect(place).leftovers == ()


@pytest.mark.parametrize(
    ("verdict", "facts", "days", "left"),
    [
        ("progress", Facts("running", started=NOW - 60), 0, "is Starting"),
        ("progress", Facts("queued"), 8, "is Queued"),
        ("progress", Facts("pending", "Unschedulable: no"), 8, "is Pending"),
        ("finished", Facts("complete"), 6, "ended 6 d ago"),
        ("progress", Facts("complete"), 8, "only its Job tells that it is Done"),
    ],
)
def test_what_still_matters_stays(place, verdict, facts, days, left):
    run = place.put(verdict=verdict, facts=facts, days=days)
    place.seen[0] = replace(place.seen[0], events=())
    place.made[run] = NOW - 9 * DAY
    before = files(place)
    found = collect(place)
    assert found.leftovers == ()
    assert [left in line for line in found.left] == [True], found.left
    assert (files(place), place.forgotten) == (before, [])


def test_what_a_failed_run_would_go_on_from_stays_unless_asked_for(place):
    run = place.put(verdict="failed")
    found = collect(place)
    assert [leftover.folders for leftover in found.leftovers] == [()]
    assert "goes on from it when resumed (--unfinished removes it)" in found.left[0]
    assert place.storage.exists(f"runs/{run}/work/block")
    (leftover,) = collect(place, replace(RULES, unfinished=True)).leftovers
    assert len(leftover.folders) == 3
    assert not place.storage.exists(f"runs/{run}/work/block")


def test_a_dataset_that_was_never_completed_goes_and_others_stay(place):
    run = place.put("demos", verdict="failed")
    dataset = place.load(run).job.dataset
    folder = dataset.rpartition("/")[0]
    place.storage.write(f"{dataset}/data/x", b"half")
    place.storage.write(f"{folder}/foreign/data/x", b"half")
    with place.storage.stage(f"{folder}/whole") as staged:
        (staged / "x").write_text("x")
    (leftover,) = collect(place).leftovers
    assert leftover.broken == (dataset,)
    assert place.storage.children(folder) == ["foreign", "whole"]
    with place.storage.stage(dataset) as staged:
        (staged / "x").write_text("x")
    assert all(dataset not in leftover.broken for leftover in collect(place).leftovers)
    assert place.storage.verify(dataset) == []


def test_what_nobody_knows_and_old_probes_go_when_nothing_of_them_works(place):
    place.made = {
        "train-pushcube-old": NOW - 8 * DAY,
        "train-pushcube-new": NOW - 6 * DAY,
        "train-pushcube-busy": NOW - 8 * DAY,
        "probe-train-old": NOW - 2 * 3600,
        "probe-train-new": NOW - 60,
    }
    place.working = {"train-pushcube-busy"}
    collect(place)
    assert place.forgotten == ["probe-train-old", "train-pushcube-old"]


def test_what_a_killed_doctor_wrote_goes(place):
    place.storage.write("doctor/abc", b"x")
    assert collect(place, Rules(time.time() + 60, 7 * DAY)).leftovers == ()
    (leftover,) = collect(place, Rules(time.time() + 2 * 3600, 7 * DAY)).leftovers
    assert (leftover.run, leftover.folders) == ("", ("doctor/abc",))
    assert not place.storage.exists("doctor/abc")


def test_a_run_that_is_resumed_meanwhile_keeps_everything(place):
    run = place.put()
    place.made[run] = NOW - 9 * DAY
    found = gc.survey(place, place, RULES)
    place.working = {run}
    before = files(place)
    assert [why for _, why in gc.remove(place, place, found.leftovers, time.sleep)] == [
        "something of it works (was it resumed?)"
    ]
    assert (files(place), place.forgotten) == (before, [])


def test_a_submission_under_way_comes_first(place):
    run = place.put()
    found = gc.survey(place, place, RULES)
    submitted = threading.Event()

    def submit():
        with Records(place.storage).submitting(run, time.sleep):
            submitted.set()
            time.sleep(0.5)
            place.working = {run}

    thread = threading.Thread(target=submit)
    thread.start()
    submitted.wait()
    assert [why for _, why in gc.remove(place, place, found.leftovers, time.sleep)] != [""]
    thread.join()
    assert place.storage.exists(f"runs/{run}/work/block")


def test_one_that_cannot_be_removed_does_not_hold_the_others_up(place):
    first, second = place.put(seed=1), place.put(seed=2)
    place.made = dict.fromkeys((first, second), 0.0)

    class Half(Place):
        def forget(self, run):
            if run == first:
                raise TargetError("no right")
            super().forget(run)

    half = Half(place.storage)
    half.seen, half.made = place.seen, place.made
    found = gc.survey(half, half, RULES)
    assert [why for _, why in gc.remove(half, half, found.leftovers, time.sleep)] == ["no right", ""]


@pytest.mark.parametrize(("text", "seconds"), [("7d", 7 * DAY), ("12h", 43_200), ("0s", 0), ("1.5m", 90)])
def test_ages_are_read(text, seconds):
    assert gc.seconds(text) == seconds


@pytest.mark.parametrize("text", ["7", "d", "7 weeks", "-1d", ""])
def test_other_ages_are_refused(text):
    with pytest.raises(UsageError, match="is no age; use a number with s, m, h or d, such as 7d"):
        gc.seconds(text)


# ---- The command, on this machine ------------------------------------------------------------------------------------
@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PI05_STORAGE", raising=False)
    place = Place(FileStorage((tmp_path / "pi05-data").as_uri()))
    run = place.put()
    words = Event(run=run, kind="finished", time=2.0)
    place.storage.write(RunPaths(run).status, words.model_dump_json().encode())
    record = json.loads(place.storage.read(RunPaths(run).spec)) | {"created": 1.0}
    place.storage.write(RunPaths(run).spec, json.dumps(record).encode())
    return tmp_path


def test_the_command_asks_shows_and_removes(capsys, here):
    assert cli.run(["gc", "--dry-run"]) == 0
    assert "would remove: train-pushcube-" in capsys.readouterr().out
    work = next((here / "pi05-data/runs").iterdir()) / "work"
    assert cli.run(["gc"]) == 2  # pytest's stdin is no terminal
    assert "-y removes it, --dry-run shows it" in capsys.readouterr().err
    assert work.exists()
    assert cli.run(["gc", "-y", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["leftovers"]
    assert [row["removed"] for row in rows] == [True]
    assert not work.exists()
    assert cli.run(["gc", "-y"]) == 0
    assert capsys.readouterr() == ("", "pi05ctl: nothing to remove\n")


def test_leftovers_are_told_in_a_line():
    assert Leftover("a", "Done 8 d ago", True, ("runs/a/work",), ("x",)).what == (
        "its release and Job, runs/a/work, x (never completed)"
    )
