"""Runs in a bucket: found by name in few requests, removed for good, known to every laptop once one has looked."""

import time
from typing import Any

import pytest

from pi05.events import Event
from pi05.storage import RunPaths, Storage
from pi05ctl.errors import UsageError
from pi05ctl.runs import removal
from pi05ctl.runs.records import Records
from pi05ctl.spec.render import render, stages
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Cluster, Settings


class Place:
    """A target in which nothing works."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def alive(self, run: str) -> bool:
        return run == "nobody's"


def put(storage: Storage) -> list[str]:
    """Write a pipeline and its stages, with all that such runs leave; return their names."""
    spec = RunSpec(kind="pipeline", task="pushcube", preset="tiny", target="cluster")
    pipeline = render(spec, Settings("", "python", "python", cluster=Cluster(storage=storage.url)))
    runs = [pipeline, *stages(pipeline)]
    for run in runs:
        Records(storage).write(run, time.time(), None if run is pipeline else pipeline.run)
        for name in ("status.json", "logs/pod.txt", "shards/0/status.json", "results/0.json"):
            storage.write(f"{RunPaths(run.run).root}/{name}", b"{}")
    with storage.stage(RunPaths(runs[2].run).checkpoint(5)) as folder:
        (folder / "params").write_text("x")
    storage.write(f"{RunPaths(runs[2].run).checkpoints}/10/params", b"half")
    return [run.run for run in runs]


def test_a_run_is_removed_with_everything_below_it(storage: Storage) -> None:
    names = put(storage)
    with pytest.raises(UsageError, match=f"{names[0]} build"):
        removal.check(storage, [names[2]])
    for run in removal.check(storage, names):
        removal.remove(Place(storage), None, run, time.sleep)
    assert storage.children("runs") == []
    assert storage.read_all(RunPaths(run).spec for run in names) == {}


def test_what_one_laptop_has_read_another_one_takes_from_the_bucket(
    storage: Storage, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, evaluation = put(storage)
    shard: dict[str, Any] = {"shard": 0, "shards": 1}
    said = Event(run=evaluation, kind="finished", time=1, **shard)
    storage.write(RunPaths(evaluation, 0).status, said.model_dump_json(exclude_none=True).encode())
    first = Records(storage)
    _, others = first.all_asked()
    files = first.last_words([evaluation], RunPaths(evaluation).spec)
    first.keep({evaluation: files}, others)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/another")
    known, left = Records(storage).all_asked()
    assert evaluation not in left
    assert known.items() >= files.items()
