"""A table of all runs of a cluster: what is read, what is left out because another answer makes it needless."""

import json
from collections.abc import Iterable

import pytest

from pi05.errors import Unreachable
from pi05.events import Event
from pi05.storage import FileStorage, RunPaths
from pi05ctl.cluster.target import ClusterTarget
from pi05ctl.errors import Forbidden
from pi05ctl.runs.records import Record, Records
from pi05ctl.runs.status import RunStatus, fold
from pi05ctl.spec.changes import Change
from pi05ctl.spec.render import to_json
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Cluster
from tests.fast.test_ctl_facts import NOW, RUNNING, STARTED, condition, ended, job, pod

TRAIN, EVAL = "train-pushcube-a8c1f0", "eval-pushcube-0be1d2"


class Kubernetes:
    """The objects of some runs and what their pods printed."""

    def __init__(self) -> None:
        self.objects: list[dict] = []
        self.all_pods: list[dict] = []
        self.printed: dict[str, list[str]] = {}
        self.told: list[dict] = []
        self.refused: list[str] = []

    def find(self, path: str, **_: str) -> dict | None:
        """Return that there is Kueue, and refuse to say what it does."""
        if path == "/apis/kueue.x-k8s.io":
            return {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta1"}}
        self.refused.append(path)
        raise Forbidden("workloads is forbidden")

    def events(self, names: Iterable[str]) -> list[dict]:
        return [{"involvedObject": {"name": name}, **event} for name in names for event in self.told]

    def add(self, run: str, own_job: dict, *pods: dict) -> None:
        for number, one in enumerate((own_job, *pods)):
            labels = one["metadata"].setdefault("labels", {})
            labels |= {"pi05.dev/run": run, "pi05.dev/kind": run.split("-")[0], "pi05.dev/task": run.split("-")[1]}
            one["metadata"]["name"] = run if number == 0 else f"{run}-{number - 1}"
        self.objects.append(own_job)
        self.all_pods += pods

    def load(self) -> None:
        pass

    def jobs(self) -> list[dict]:
        return self.objects

    def pods(self, fields: str) -> list[dict]:
        assert fields == "status.phase!=Succeeded"
        return [one for one in self.all_pods if one["status"]["phase"] != "Succeeded"]

    def log_request(self, pod: str, tailLines: int) -> tuple[str, int]:
        return pod, tailLines

    def together(self, requests: Iterable[tuple[str, int]]) -> list[bytes | None]:
        return ["\n".join(self.printed.get(name, [])[-lines:]).encode() for name, lines in requests]


class Counting(FileStorage):
    """Says what was read."""

    read_keys: list[str]

    def read(self, key: str) -> bytes:
        self.read_keys.append(key)
        return super().read(key)


@pytest.fixture
def kubernetes(monkeypatch) -> Kubernetes:
    kubernetes = Kubernetes()
    monkeypatch.setattr("pi05ctl.cluster.target.Kubernetes", lambda *_: kubernetes)
    return kubernetes


@pytest.fixture
def storage(tmp_path, monkeypatch) -> Counting:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = Counting((tmp_path / "bucket").as_uri())
    storage.read_keys = []
    monkeypatch.setattr("pi05ctl.cluster.target.connect", lambda _: storage)
    return storage


def put(storage: FileStorage, run: str) -> None:
    kind, task, _ = run.split("-")
    spec = RunSpec(kind=kind, task=task, preset="tiny", target="cluster")
    record = Record(run=run, spec=spec, digest="0", created=STARTED, command="pi05ctl submit")
    storage.write(RunPaths(run).spec, to_json(record))


def event(run: str, step: int, kind: str = "progress", shard: int | None = None, shards: int = 2) -> Event:
    extra = {} if shard is None else {"shard": shard, "shards": shards}
    return Event(run=run, kind=kind, time=STARTED + step, step=step, total=50, unit="steps", **extra)


def say(storage: FileStorage, said: Event, shard: int | None = None) -> None:
    storage.write(RunPaths(said.run, shard).status, said.model_dump_json(exclude_none=True).encode())


def table(storage: Counting) -> dict[str, RunStatus]:
    """Return how runs stand, as a laptop sees it that has just started."""
    storage.read_keys.clear()
    target = ClusterTarget(Cluster(storage="gs://bucket"), clock=lambda: NOW)
    found, problems = target.snapshots()
    assert problems == []
    return {snapshot.run: fold(snapshot, NOW) for snapshot in found}


def test_what_a_pod_prints_is_newer_than_what_it_wrote(kubernetes, storage):
    put(storage, TRAIN)
    say(storage, event(TRAIN, 5))
    kubernetes.add(TRAIN, job(), pod("Running", RUNNING))
    kubernetes.printed[f"{TRAIN}-0"] = [event(TRAIN, step).line() for step in range(1, 21)]
    now = table(storage)[TRAIN]
    assert (now.state, now.step, now.seconds_per_step) == ("Running", 20, pytest.approx(1))
    assert storage.read_keys == ["cache/done.json.zlib", RunPaths(TRAIN).spec]


def test_a_training_that_was_done_and_goes_on_is_read_again(kubernetes, storage):
    put(storage, TRAIN)
    say(storage, event(TRAIN, 50, "finished"))
    assert table(storage)[TRAIN].state == "Done"
    changed = Change(time=STARTED, step=50, values={"train.steps": 90}, before={"train.steps": 50})
    record = json.loads(storage.read(RunPaths(TRAIN).spec))
    storage.write(RunPaths(TRAIN).spec, json.dumps({**record, "changes": [changed.model_dump()]}).encode())
    kubernetes.add(TRAIN, job(), pod("Running", RUNNING))
    kubernetes.printed[f"{TRAIN}-0"] = [event(TRAIN, 60).model_copy(update={"total": 90}).line()]
    now = table(storage)[TRAIN]
    assert (now.state, now.step, now.total) == ("Running", 60, 90)
    (changed,) = now.changed
    assert changed.endswith("train.steps=90 instead of 50")


def test_a_queue_that_may_not_be_read_hides_nothing_else(kubernetes, storage):
    put(storage, TRAIN)
    kubernetes.add(TRAIN, job(spec={"suspend": True}))
    now = table(storage)[TRAIN]
    assert (now.state, now.why) == ("Queued", "its Job is suspended")
    assert kubernetes.refused


def test_a_pod_that_is_being_made_is_explained_by_its_events(kubernetes, storage):
    put(storage, TRAIN)
    kubernetes.add(TRAIN, job(), pod("Pending", {"waiting": {"reason": "ContainerCreating"}}))
    kubernetes.told = [{"reason": "FailedMount", "message": "no such secret"}]
    now = table(storage)[TRAIN]
    assert (now.state, now.why) == ("Pending", "FailedMount: no such secret")


def test_a_pod_that_prints_other_things_is_known_by_what_it_wrote(kubernetes, storage):
    put(storage, TRAIN)
    say(storage, event(TRAIN, 5))
    kubernetes.add(TRAIN, job(), pod("Running", RUNNING))
    kubernetes.printed[f"{TRAIN}-0"] = ["a traceback of a library"] * 50
    now = table(storage)[TRAIN]
    assert (now.state, now.step) == ("Running", 5)


def test_a_shard_that_has_ended_counts_while_others_print(kubernetes, storage):
    put(storage, EVAL)
    say(storage, event(EVAL, 25, "finished", shard=0), 0)
    say(storage, event(EVAL, 3, shard=1), 1)
    pods = pod("Succeeded", ended(0)), pod("Running", RUNNING, index=1)
    kubernetes.add(EVAL, job(spec={"completions": 2}), *pods)
    kubernetes.printed[f"{EVAL}-1"] = [event(EVAL, 10, shard=1).line()]
    now = table(storage)[EVAL]
    assert (now.state, now.step, now.total) == ("Running", 35, 100)


def test_a_shard_that_hangs_beside_busy_ones_is_stalled(kubernetes, storage):
    put(storage, EVAL)
    kubernetes.add(EVAL, job(spec={"completions": 3}), *(pod("Running", RUNNING, index=index) for index in range(3)))
    for shard, (kind, when) in enumerate((("progress", 660), ("progress", 5), ("finished", 1))):
        said = event(EVAL, 10, kind, shard=shard, shards=3).model_copy(update={"time": STARTED + when})
        kubernetes.printed[f"{EVAL}-{shard}"] = [said.line()]
    target = ClusterTarget(Cluster(storage="gs://bucket"))
    [snapshot], _ = target.snapshots()
    now = fold(snapshot, STARTED + 665)
    assert (now.state, now.why) == ("Stalled", "shard 1: no event for 11 min")


def test_a_run_that_is_done_is_read_once(kubernetes, storage):
    put(storage, EVAL)
    for shard in (0, 1):
        say(storage, event(EVAL, 25, "finished", shard=shard), shard)
    kubernetes.add(EVAL, job(condition("Complete"), spec={"completions": 2}))
    first = table(storage)[EVAL]
    assert (first.state, first.step) == ("Done", 50)
    assert len(storage.read_keys) >= 3
    assert table(storage)[EVAL] == first
    assert storage.read_keys == []
    kubernetes.objects.clear()  # after some days Kubernetes forgets the Job
    assert table(storage)[EVAL].state == "Done"


@pytest.mark.usefixtures("kubernetes")
def test_the_first_look_of_a_laptop_takes_what_another_one_has_read(storage, monkeypatch, tmp_path):
    put(storage, TRAIN)
    put(storage, EVAL)
    for shard in (0, 1):
        say(storage, event(EVAL, 25, "finished", shard=shard), shard)
    first = table(storage)[EVAL]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert table(storage)[EVAL] == first
    assert not [key for key in storage.read_keys if key.startswith(f"runs/{EVAL}")]
    assert "cache/done.json.zlib" in storage.read_keys
    storage.delete(f"runs/{EVAL}")  # and what is gone is gone for all
    assert [*table(storage)] == [TRAIN]
    storage.write("cache/done.json.zlib", b"damaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    assert [*table(storage)] == [TRAIN]


@pytest.mark.usefixtures("kubernetes")
def test_what_is_removed_is_forgotten_here_and_for_others(storage):
    put(storage, EVAL)
    for shard in (0, 1):
        say(storage, event(EVAL, 25, "finished", shard=shard), shard)
    table(storage)
    records = Records(storage)
    records.drop(EVAL)
    say(storage, event(EVAL, 25, "failed", shard=1), 1)
    assert table(storage)[EVAL].state == "Failed"


def test_a_cancelled_run_that_saves_says_so(kubernetes, storage):
    put(storage, TRAIN)
    storage.write(f"runs/{TRAIN}/cancel.json", b'{"time": 1, "now": false}')
    gone = {"deletionTimestamp": "2026-11-24T10:01:00Z"}
    kubernetes.add(TRAIN, job(metadata=dict(gone)), pod("Running", RUNNING, metadata=dict(gone)))
    kubernetes.printed[f"{TRAIN}-0"] = [event(TRAIN, 20).line()]
    now = table(storage)[TRAIN]
    assert (now.state, now.why) == ("Running", "cancelling; it saves first")


def test_without_the_bucket_the_cluster_alone_is_shown(kubernetes, storage, monkeypatch):
    def away(key: str) -> list[str]:
        raise Unreachable(f"gs://bucket: could not list {key}")

    monkeypatch.setattr(storage, "children", away)
    kubernetes.add(TRAIN, job(), pod("Running", RUNNING))
    kubernetes.printed[f"{TRAIN}-0"] = [event(TRAIN, 20).line()]
    target = ClusterTarget(Cluster(storage="gs://bucket"), clock=lambda: NOW)
    [snapshot], problems = target.snapshots()
    assert (fold(snapshot, NOW).state, fold(snapshot, NOW).step) == ("Running", 20)
    assert problems == ["gs://bucket: could not list runs (shown is what the cluster alone knows)"]


@pytest.mark.usefixtures("kubernetes")
def test_a_folder_without_a_record_is_no_run(storage):
    put(storage, TRAIN)
    storage.write("runs/train-pushcube-ffffff/status.json", b"{}")
    assert [*table(storage)] == [TRAIN]
