"""run.json, job.json, cancel.json and the last events of runs in storage: what is known of a run wherever it runs."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter, ValidationError

from pi05.config import AnyJob, EvalJob, Section, TrainJob
from pi05.errors import DataError, TemporaryError
from pi05.events import Event
from pi05.storage import RunPaths, Storage, user_cache
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.runs.process import cancel_key
from pi05ctl.runs.status import finished
from pi05ctl.spec.changes import Change, changed
from pi05ctl.spec.render import PipelineJob, Rendered, moved, to_json
from pi05ctl.spec.runspec import RunSpec

_IN_SHARDS = ("demos-", "eval-")
_POLL = 0.05
_LOCK_PATIENCE = 90.0
"""Seconds that a submission waits for another one of the same run; in a bucket a killed one's expires after 60."""
_JOB: TypeAdapter[AnyJob | PipelineJob] = TypeAdapter(Annotated[AnyJob | PipelineJob, Field(discriminator="kind")])


class Record(Section):
    """run.json: what was asked for.

    Attributes:
        spec: As the user said it.
        digest: Of everything that can change the result; the name has only its first 6 digits.
        created: First submission, in seconds since 1970.
        parent: The pipeline that submitted it.
        train_run: For an evaluation: whose checkpoint it takes.
        command: The command line that asks for it again.
        changes: What it went on with otherwise when it was resumed, oldest first.
    """

    run: str
    spec: RunSpec
    digest: str
    created: float
    parent: str | None = None
    train_run: str | None = None
    command: str
    changes: tuple[Change, ...] = ()


class Records:
    """The records of all runs in one storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._done = DoneRuns(storage.url)

    def names(self) -> list[str]:
        """Return the names of all runs."""
        names = self.storage.children("runs")
        found = self.asked(names)
        return [run for run in names if RunPaths(run).spec in found]

    def exists(self, run: str) -> bool:
        """Return whether there is a run of this name."""
        return self.storage.exists(RunPaths(run).spec)

    def read(self, run: str) -> Record:
        """Return run.json; raise TargetError when it is damaged or of a newer version."""
        try:
            data = self.storage.read(RunPaths(run).spec)
        except DataError as error:
            raise TargetError(f"there is no run {run} in {self.storage.url}") from error
        return self.parse(run, data)

    def files(self, run: str) -> dict[str, bytes]:
        """Return what a run has of run.json, cancel.json and status.json, its own or its shards', by key."""
        return self.last_words([run], RunPaths(run).spec)

    def asked(self, runs: Iterable[str]) -> dict[str, bytes]:
        """Return run.json of those runs that have one, by key."""
        return self.storage.read_all(RunPaths(run).spec for run in runs)

    def last_words(self, runs: Sequence[str], *more: str) -> dict[str, bytes]:
        """Return what runs have of cancel.json and status.json, their own or their shards', and `more`, by key."""
        own = [key for run in runs for key in (RunPaths(run).status, cancel_key(run))]
        firsts = {run: RunPaths(run, shard=0).status for run in runs if run.startswith(_IN_SHARDS)}
        found = self.storage.read_all([*own, *firsts.values(), *more])
        others = [key for run, first in firsts.items() if first in found for key in _other_shards(run, found[first])]
        return found | self.storage.read_all(others)

    def all_asked(self) -> tuple[dict[str, bytes], list[str]]:
        """Return everything of the runs that are done, and run.json of the others, with their names.

        The files of a run that is done are read once (see `keep`) and then kept on this machine.
        """
        runs = set(self.storage.children("runs"))
        done = {run: files for run, files in self._done.load().items() if run in runs}
        others = sorted(runs - done.keys())
        return {key: data for own in done.values() for key, data in own.items()} | self.asked(others), others

    def keep(self, files: Mapping[str, Mapping[str, bytes]], others: Iterable[str]) -> None:
        """Keep the files (by run and key) of runs that are done on this machine; `others` were not when last seen."""
        new = {run for run in others if finished(verdicts(files.get(run, {})))}
        if new:
            self._done.save({run: own for run, own in files.items() if run in new or run not in others})

    def parse(self, run: str, data: bytes) -> Record:
        """Return the record in the bytes of a run's run.json; raise TargetError when they are none."""
        try:
            return Record.model_validate_json(data)
        except ValidationError as error:
            where = f"{self.storage.url}/{RunPaths(run).spec}"
            raise TargetError(f"{where} cannot be read (damaged, or of a newer version)") from error

    def load(self, run: str) -> Rendered:
        """Return a run as it was submitted; raise TargetError when its files are damaged."""
        record = self.read(run)
        try:
            job = _JOB.validate_json(self.storage.read(RunPaths(run).job))
        except (DataError, ValidationError) as error:
            raise TargetError(f"{RunPaths(run).job} is damaged; submit it again") from error
        return Rendered(record.spec, moved(job, self.storage.url), record.digest, record.changes)

    def current(self, run: Rendered) -> Rendered:
        """Return a run that somebody submits with the changes that it has had before, unless it comes with its own."""
        if run.changes or not isinstance(run.job, TrainJob) or not self.exists(run.run):
            return run
        changes = self.read(run.run).changes
        return replace(run, job=changed(run.job, changes), changes=changes) if changes else run

    def write(self, run: Rendered, now: float, parent: str | None) -> None:
        """Write run.json and job.json; a run that exists keeps its age, and one asked for by hand stays so."""
        before = self.read(run.run) if self.exists(run.run) else None
        record = Record(
            run=run.run,
            spec=run.spec,
            digest=run.digest,
            created=before.created if before else now,
            parent=parent if before is None or before.parent else None,
            train_run=run.job.train_run if isinstance(run.job, EvalJob) else None,
            command=run.spec.command(),
            changes=run.changes,
        )
        paths = RunPaths(run.run)
        self.storage.write(paths.job, run.job_json)
        self.storage.write(paths.spec, to_json(record))
        self.storage.delete(cancel_key(run.run))

    def forget(self, run: str) -> None:
        """Remove the record of a run that could not be started and never has been."""
        for key in (RunPaths(run).spec, RunPaths(run).job):
            self.storage.delete(key)

    def refuse_other(self, run: Rendered) -> None:
        """Raise UsageError when the stored run of this name is another one."""
        if self.read(run.run).digest != run.digest:
            raise UsageError(
                f"{run.run} exists with other values (the first 6 digits agree by chance); use --again for another name"
            )

    @contextlib.contextmanager
    def submitting(self, run: str, sleep: Callable[[float], None]) -> Generator[None]:
        """Hold the right to submit this run; wait for another submission of it to finish."""
        until = time.monotonic() + _LOCK_PATIENCE
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self.storage.lease(f"local/submit/{run}"))
                    break
                except TemporaryError as error:
                    if time.monotonic() > until:
                        raise TargetError(f"another pi05ctl is still submitting {run}") from error
                    sleep(_POLL)
            yield

    def cancel(self, run: str, at: float, now: bool) -> None:
        """Keep that somebody asked to cancel a run."""
        self.storage.write(cancel_key(run), json.dumps({"time": at, "now": now}).encode() + b"\n")


def cancelled(files: Mapping[str, bytes], run: str) -> float | None:
    """Return when somebody asked to cancel a run; None when nobody did."""
    try:
        content: Any = json.loads(files[cancel_key(run)])
        return float(cast("dict[str, Any]", content)["time"])
    except (KeyError, ValueError, TypeError):
        return None


def verdicts(files: Mapping[str, bytes]) -> tuple[Event, ...]:
    """Return the last event of the run that these files are of, or of each of its shards; damaged ones are left out.

    A run that was resumed with another number of shards has those of its latest start.
    """
    found: list[Event] = []
    for key in sorted(key for key in files if key.endswith("/status.json")):
        try:
            found.append(Event.model_validate_json(files[key]))
        except ValidationError:
            continue
    if not found:
        return ()
    shards = (max(found, key=lambda event: event.time).model_extra or {}).get("shards")
    return tuple(event for event in found if (event.model_extra or {}).get("shards") == shards)


def by_run(files: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """Return files of runs by run and key."""
    found: dict[str, dict[str, bytes]] = {}
    for key, data in files.items():
        found.setdefault(key.split("/")[1], {})[key] = data
    return found


def _other_shards(run: str, first: bytes) -> list[str]:
    """Return where the other shards of a run have their status, given that of the first one."""
    try:
        shards = int((Event.model_validate_json(first).model_extra or {}).get("shards", 1))
    except (ValidationError, ValueError):
        return []
    return [RunPaths(run, shard=shard).status for shard in range(1, shards)]


class DoneRuns:
    """The files of runs that are done, on this machine: they never change, and most runs are done.

    Args:
        url: The storage they are of.
    """

    def __init__(self, url: str) -> None:
        self._path = user_cache() / "done" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"

    def load(self) -> dict[str, dict[str, bytes]]:
        """Return the files of every run that was kept, by run and key; none when they cannot be read."""
        try:
            content: dict[str, dict[str, str]] = json.loads(self._path.read_bytes())
            return {run: {key: text.encode() for key, text in files.items()} for run, files in content.items()}
        except (OSError, ValueError, AttributeError):
            return {}

    def save(self, runs: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep the files of runs; where that is impossible, they are read again next time."""
        content = {run: {key: data.decode() for key, data in files.items()} for run, files in runs.items()}
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(content))
            part.replace(self._path)
