"""What ended runs have left behind, and its removal: releases and Jobs in the cluster, work files, broken uploads.

Never a dataset, a checkpoint, a result, a record or a log. A run's leftovers are removed while its submission is locked
and it is not alive, so that one that somebody resumes meanwhile either keeps all of them or begins without.
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from pi05.config import DemosJob
from pi05.errors import DataError
from pi05.storage import RunPaths, Storage
from pi05ctl.errors import CtlError, UsageError
from pi05ctl.runs.facts import ABSENT
from pi05ctl.runs.records import Records
from pi05ctl.runs.status import Snapshot, fold, latest
from pi05ctl.spec.render import Rendered

_AT_ONCE = 16
_PROBES = 3600.0
"""Seconds after which a probe that `pi05ctl doctor` could not remove is nobody's."""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Target(Protocol):
    """Where runs run."""

    @property
    def storage(self) -> Storage: ...

    def load(self, name: str) -> Rendered: ...

    def snapshots(self) -> tuple[list[Snapshot], list[str]]: ...

    def alive(self, run: str) -> bool: ...


class Cluster(Target, Protocol):
    """A target where runs leave something beside what is in storage."""

    def installed(self) -> dict[str, float]:
        """Return when the release or Job of each run and probe that the cluster has was made."""
        ...

    def forget(self, run: str) -> None: ...


@dataclass(frozen=True)
class Leftover:
    """What one ended run, or nobody's run, has left.

    Attributes:
        run: Its name; empty for what belongs to no run.
        state: How it ended, with its age, for people.
        installed: Whether the cluster has a release or Job of it.
        folders: Keys of intermediate files.
        broken: Keys of artefacts that were never completed.
    """

    run: str
    state: str
    installed: bool = False
    folders: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """What is there, for people."""
        parts = ["its release and Job"] if self.installed else []
        return ", ".join([*parts, *self.folders, *(f"{key} (never completed)" for key in self.broken)])


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        leftovers: What may go.
        left: What stays, with the reason, one line each.
    """

    leftovers: tuple[Leftover, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What may go.

    Attributes:
        now: Seconds since 1970.
        older: Seconds since the end of a run before anything of it is touched.
        unfinished: Whether the intermediate files of failed and cancelled runs may go, too, from which a resumed run
            would go on.
    """

    now: float
    older: float
    unfinished: bool = False


def survey(target: Target, cluster: Cluster | None, rules: Rules) -> Survey:
    """Look at every run; changes nothing."""
    snapshots, problems = target.snapshots()
    installed = cluster.installed() if cluster else {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(_look, target, snapshot, installed, rules) for snapshot in snapshots]
        looked = [future.result() for future in futures]
    found = [leftover for leftover, _ in looked if leftover is not None]
    left = [*problems, *(line for _, line in looked if line)]
    found += _nobodys(target, installed.keys() - {one.run for one in snapshots}, installed, rules)
    found += _doctors(target.storage, rules)
    return Survey(tuple(found), tuple(left))


def remove(
    target: Target, cluster: Cluster | None, leftovers: Sequence[Leftover], sleep: Callable[[float], None]
) -> Iterator[tuple[Leftover, str]]:
    """Remove what a survey found, and yield each with the reason why it stayed; empty when it is gone."""
    for leftover in leftovers:
        try:
            yield leftover, _remove(target, cluster, leftover, sleep)
        except CtlError as error:
            yield leftover, str(error)


def seconds(text: str) -> float:
    """Return the seconds in `7d`, `12h`, `30m` or `45s`; raise UsageError for something else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no age; use a number with s, m, h or d, such as 7d")
    return float(found[1]) * _UNITS[found[2]]


def _look(target: Target, snapshot: Snapshot, installed: Collection[str], rules: Rules) -> tuple[Leftover | None, str]:
    """Return what may go of a run, and what stays with the reason."""
    run, status = snapshot.run, fold(snapshot, rules.now)
    if not status.ended:
        return None, f"{run} is {status.state}"
    age = rules.now - latest(snapshot)
    here = run in installed
    if age < rules.older:
        return None, f"{run} ended {_age(age)} ago" if here else ""
    folders, broken = _folders(target.storage, run), _broken(target, snapshot)
    if here and fold(replace(snapshot, facts=ABSENT), rules.now).state != status.state:
        return None, f"{run}: only its Job tells that it is {status.state}"
    kept = "" if status.state == "Done" or rules.unfinished or not folders else ", ".join(folders)
    leftover = Leftover(run, f"{status.state} {_age(age)} ago", here, () if kept else folders, broken)
    why = f"{kept}: {run} is {status.state} and goes on from it when resumed (--unfinished removes it)" if kept else ""
    return leftover if leftover.what else None, why


def _folders(storage: Storage, run: str) -> tuple[str, ...]:
    """Return the folders of intermediate files that a run has."""
    shards = [int(name) for name in storage.children(RunPaths(run).shards) if name.isdigit()]
    works = [RunPaths(run).work, *(RunPaths(run, shard).work for shard in sorted(shards))]
    return tuple(key for key in works if storage.children(key))


def _broken(target: Target, snapshot: Snapshot) -> tuple[str, ...]:
    """Return the checkpoints, or the dataset, that a run began and never completed."""
    storage, paths = target.storage, RunPaths(snapshot.run)
    if snapshot.spec.kind == "train":
        return tuple(paths.checkpoint(int(step)) for step in storage.incomplete(paths.checkpoints) if step.isdigit())
    if snapshot.spec.kind != "demos":
        return ()
    try:
        job = target.load(snapshot.run).job
    except CtlError:
        return ()
    key = job.dataset if isinstance(job, DemosJob) else ""
    folder, _, name = key.rpartition("/")
    return (key,) if folder and name in storage.incomplete(folder) else ()


def _nobodys(target: Target, runs: Collection[str], installed: dict[str, float], rules: Rules) -> list[Leftover]:
    """Return what the cluster has of runs that storage does not know, and of probes, if nothing of it works."""
    found: list[Leftover] = []
    for run in sorted(runs):
        probe, age = run.startswith("probe-"), rules.now - installed[run]
        if age >= (min(_PROBES, rules.older) if probe else rules.older) and not target.alive(run):
            what = "a probe of pi05ctl doctor" if probe else "a run without a record"
            found.append(Leftover(run, f"{what}, {_age(age)} old", installed=True))
    return found


def _doctors(storage: Storage, rules: Rules) -> list[Leftover]:
    """Return the objects that a killed `pi05ctl doctor` has left."""
    keys: list[str] = []
    for name in storage.children("doctor"):
        try:
            if rules.now - storage.modified(f"doctor/{name}") >= min(_PROBES, rules.older):
                keys.append(f"doctor/{name}")
        except DataError:  # a doctor that works just now has deleted it
            continue
    return [Leftover("", "of a pi05ctl doctor", folders=tuple(keys))] if keys else []


def _remove(target: Target, cluster: Cluster | None, leftover: Leftover, sleep: Callable[[float], None]) -> str:
    """Remove one run's leftovers; return why they stay when it is alive again."""
    storage = target.storage
    if not leftover.run:
        _delete(storage, leftover)
        return ""
    with Records(storage).submitting(leftover.run, sleep):
        if target.alive(leftover.run):
            return "something of it works (was it resumed?)"
        _delete(storage, leftover)
        if leftover.installed and cluster is not None:
            cluster.forget(leftover.run)
    return ""


def _delete(storage: Storage, leftover: Leftover) -> None:
    for key in leftover.folders:
        storage.delete(key)
    for key in leftover.broken:
        storage.discard(key)


def _age(age: float) -> str:
    """Return an age in its largest unit."""
    for unit, length in reversed(_UNITS.items()):
        if age >= length:
            return f"{age / length:.0f} {unit}"
    return "0 s"
