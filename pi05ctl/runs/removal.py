"""Whole runs go: record, log, checkpoints, results, and what the cluster has of them. Datasets and weights stay.

What others build on is refused: a training that was evaluated, a stage of a pipeline. So what is left can always be
explained by what is left. The record goes last; a removal that was cut off can be repeated.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pi05.storage import RunPaths, Storage
from pi05ctl.errors import UsageError
from pi05ctl.runs.records import Record, Records

_ORDER = ("pipeline", "eval", "train", "demos")
"""Who builds on others goes first."""


class Target(Protocol):
    """Where runs run."""

    @property
    def storage(self) -> Storage: ...

    def alive(self, run: str) -> bool: ...


class Cluster(Target, Protocol):
    """A target where runs leave something beside what is in storage."""

    def forget(self, run: str) -> None: ...


def check(storage: Storage, runs: Iterable[str]) -> list[str]:
    """Return runs in the order in which they may go; raise UsageError when others build on one of them."""
    doomed = sorted(set(runs), key=lambda run: (_ORDER.index(run.partition("-")[0]), run))
    records = Records(storage)
    above = _above(storage, records.told(storage.children("runs")))
    for run in doomed:
        if others := [other for other in above.get(run, ()) if other not in doomed]:
            raise UsageError(
                f"{', '.join(others)} {'build' if len(others) > 1 else 'builds'} on {run}; to remove all of it: "
                f"pi05ctl delete {' '.join([*others, *doomed])}"
            )
    return doomed


def size(storage: Storage, run: str) -> str:
    """Return what goes with a run, for people."""
    steps = len(storage.numbered(RunPaths(run).checkpoints))
    return "record, log" + (f", {steps} checkpoints" if steps else "")


def remove(target: Target, cluster: Cluster | None, run: str, sleep: Callable[[float], None]) -> None:
    """Remove all of one run; raise UsageError while it works."""
    storage, root = target.storage, RunPaths(run).root
    records = Records(storage)
    with records.submitting(run, sleep):
        if target.alive(run):
            raise UsageError(f"{run} is running; end it first: pi05ctl cancel {run}")
        if cluster is not None:
            cluster.forget(run)
        for name in storage.children(root):
            if f"{root}/{name}" != RunPaths(run).spec:
                storage.delete(f"{root}/{name}")
        storage.delete(root)
        records.drop(run)


def _above(storage: Storage, told: Mapping[str, Record]) -> dict[str, list[str]]:
    """Return which runs build on a run: evaluations on their training, pipelines on their stages."""
    pipelines = {RunPaths(run).job: run for run in told if run.startswith("pipeline-")}
    below = {run: [record.train_run] for run, record in told.items() if record.train_run}
    below |= {pipelines[key]: _stages(data) for key, data in storage.read_all(pipelines).items()}
    found: dict[str, list[str]] = {}
    for run, names in sorted(below.items()):
        for name in names:
            found.setdefault(name, []).append(run)
    return found


def _stages(job: bytes) -> Sequence[str]:
    """Return the names of a pipeline's stages; none when its job.json is damaged."""
    try:
        content: Any = json.loads(job)
        return [str(stage["run"]) for stage in content["stages"]]
    except (ValueError, KeyError, TypeError):
        return []
