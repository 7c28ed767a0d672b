"""run.json, job.json, cancel.json and the last events of runs in storage: what is known of a run wherever it runs."""

import contextlib
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter, ValidationError

from pi05.config import AnyJob, EvalJob, Section, TrainJob
from pi05.errors import DataError, JobError, TemporaryError
from pi05.events import Event
from pi05.storage import RunPaths, Storage, user_cache
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.runs.process import begun_key, cancel_key
from pi05ctl.runs.status import finished
from pi05ctl.spec.changes import Change, changed
from pi05ctl.spec.render import PipelineJob, Rendered, digest_of, moved, named, to_json
from pi05ctl.spec.runspec import RunSpec, assign

_IN_SHARDS = ("demos-", "eval-")
_SHARED = "cache/done.json.zlib"
_POLL = 0.05
_LOCK_PATIENCE = 90.0
"""Seconds that a submission waits for another one of the same run; a killed one's lease expires after 60."""
_MUTE = 2.0
"""Seconds after which it says that it waits."""
_LOG = logging.getLogger(__name__)
_WAITS = "another pi05ctl is submitting %s, or was killed while it did; waiting for it, up to %.0f s"
_JOB: TypeAdapter[AnyJob | PipelineJob] = TypeAdapter(Annotated[AnyJob | PipelineJob, Field(discriminator="kind")])


class Record(Section):
    """run.json: what was asked for.

    Attributes:
        spec: As the user said it.
        digest: Of everything that can change the result; the name has only its first 6 digits.
        created, submitted: First and latest submission, in seconds since 1970.
        parent: The pipeline that submitted it.
        train_run: For an evaluation: whose checkpoint it takes.
        command: The command line that asks for it again.
        changes: What it went on with otherwise when it was resumed, oldest first.
    """

    run: str
    spec: RunSpec
    digest: str
    created: float
    submitted: float | None = None
    parent: str | None = None
    train_run: str | None = None
    command: str
    changes: tuple[Change, ...] = ()


class Records:
    """The records of all runs in one storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._done = DoneRuns(storage)

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

        The files of a run that is done are read once (see `keep`) and then kept on this machine; one that has kept
        nothing yet takes what the latest other one has kept.
        """
        runs = set(self.storage.children("runs"))
        kept = self._done.load() or self._done.shared()
        done = {run: files for run, files in kept.items() if run in runs}
        others = sorted(runs - done.keys())
        return {key: data for own in done.values() for key, data in own.items()} | self.asked(others), others

    def keep(self, files: Mapping[str, Mapping[str, bytes]], others: Iterable[str]) -> None:
        """Keep the files (by run and key) of runs that are done; `others` were not when last seen."""
        new = {run for run in others if finished(verdicts(files.get(run, {})))}
        if new or not self._done.here():
            self._done.save(
                {run: own for run, own in files.items() if run in new or run not in others}, share=bool(new)
            )

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

    def jobs(self, runs: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return what job.json of runs says, in one round; of those that have a whole one."""
        found: dict[str, dict[str, Any]] = {}
        for key, data in self.storage.read_all(RunPaths(run).job for run in runs).items():
            with contextlib.suppress(ValueError):
                found[key.split("/")[1]] = json.loads(data)
        return found

    def verified(self, run: str, told: PipelineJob | None = None) -> Rendered:
        """Return a run that shall be started, after a look whether its job is the one that its name stands for.

        Args:
            run: Its name.
            told: Its job, where that does not come from storage: a pod has been told it.

        Raises:
            TargetError: Its files are damaged, or its job.json is another job's; nothing may run under this name.
        """
        record, key = self.read(run), RunPaths(run).job
        try:
            content = to_json(told) if told is not None else self.storage.read(key)
            job = told or _JOB.validate_json(content)
            fits = _fits(record, json.loads(content))
        except (DataError, ValidationError, ValueError) as error:
            raise TargetError(f"{key} is damaged; submit it again: {record.command}") from error
        if not fits or job.run != run:
            raise TargetError(
                f"{self.storage.url}/{key} is not the job that {run} stands for: a run's name is the digest of its "
                f"values, and these have another (was it edited?). To write it anew: {record.command}; for other "
                "values submit another run"
            )
        return Rendered(record.spec, moved(job, self.storage.url), record.digest, record.changes)

    def recorded(self, runs: Iterable[str]) -> dict[str, bytes]:
        """Return run.json of those runs that have one, by run, in one round; those of done runs are kept here."""
        wanted = {RunPaths(run).spec: run for run in runs}
        kept = {key: data for own in self._done.load().values() for key, data in own.items() if key in wanted}
        found = kept | self.storage.read_all(wanted.keys() - kept.keys())
        return {wanted[key]: data for key, data in found.items()}

    def told(self, runs: Iterable[str]) -> dict[str, Record]:
        """Return the records of those runs that have a whole one, in one round."""
        records: dict[str, Record] = {}
        for run, data in self.recorded(runs).items():
            with contextlib.suppress(TargetError):
                records[run] = self.parse(run, data)
        return records

    def begun(self, pipeline: str) -> list[str]:
        """Return the stages that a pipeline has begun since somebody last asked for it."""
        try:
            content: Any = json.loads(self.storage.read(begun_key(pipeline)))
            return [str(stage) for stage in content]
        except (DataError, ValueError, TypeError):
            return []

    def begin(self, pipeline: str, stage: str) -> None:
        """Keep that a pipeline has begun a stage."""
        before = self.begun(pipeline)
        if stage not in before:
            self.storage.write(begun_key(pipeline), json.dumps([*before, stage]).encode() + b"\n")

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
            submitted=now,
            parent=parent if before is None or before.parent else None,
            train_run=run.job.train_run if isinstance(run.job, EvalJob) else None,
            command=run.spec.command(),
            changes=run.changes,
        )
        paths = RunPaths(run.run)
        self.storage.write(paths.job, run.job_json)
        self.storage.write(paths.spec, to_json(record))
        for key in (cancel_key(run.run), *([begun_key(run.run)] if run.spec.kind == "pipeline" else ())):
            self.storage.delete(key)

    def forget(self, run: str) -> None:
        """Remove the record of a run that could not be started and never has been."""
        for key in (RunPaths(run).spec, RunPaths(run).job):
            self.storage.delete(key)

    def drop(self, run: str) -> None:
        """Forget what is kept of a run that was done and is removed."""
        for kept, save in ((self._done.load(), self._done.save), (self._done.shared(), self._done.share)):
            if kept.pop(run, None) is not None:
                save(kept)

    def refuse_other(self, run: Rendered) -> None:
        """Raise UsageError when the stored run of this name is another one."""
        if self.read(run.run).digest != run.digest:
            raise UsageError(
                f"{run.run} exists with other values (the first 6 digits agree by chance); use --again for another name"
            )

    @contextlib.contextmanager
    def submitting(self, run: str, sleep: Callable[[float], None]) -> Generator[None]:
        """Hold the right to submit this run; wait, and say so, for another submission of it to finish."""
        begin = time.monotonic()
        told = False
        with contextlib.ExitStack() as held:
            while True:
                try:
                    held.enter_context(self.storage.lease(f"local/submit/{run}"))
                    break
                except TemporaryError as error:
                    waited = time.monotonic() - begin
                    if waited > _LOCK_PATIENCE:
                        raise TargetError(f"another pi05ctl is still submitting {run}") from error
                    if waited >= _MUTE and not told:
                        _LOG.warning(_WAITS, run, _LOCK_PATIENCE)
                        told = True
                    sleep(_POLL)
            yield

    def cancel(self, run: str, at: float, now: bool) -> None:
        """Keep that somebody asked to cancel a run."""
        self.storage.write(cancel_key(run), json.dumps({"time": at, "now": now}).encode() + b"\n")


def _fits(record: Record, told: dict[str, Any]) -> bool:
    """Return whether job.json is of the values that a run was named by; what it went on with since is undone first."""
    for change in reversed(record.changes):
        for path, value in change.before.items():
            assign(told, path, value)
    own = told["run"] == named(told, record.spec.again) and digest_of(told, record.spec.again) == record.digest
    stages = told["stages"] if told["kind"] == "pipeline" else ()
    return own and all(
        stage["run"] == named(stage, record.spec.again if stage["kind"] == "train" else 0) for stage in stages
    )


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
    """The files of runs that are done, by run and key: they never change, and most runs are done.

    They are kept on this machine and, for the first look of others, as one object in storage.

    Args:
        storage: Where the runs are.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._path = user_cache() / "done" / f"{hashlib.sha256(storage.url.encode()).hexdigest()[:32]}.json"

    def here(self) -> bool:
        """Return whether this machine has kept anything."""
        return self._path.exists()

    def load(self) -> dict[str, dict[str, bytes]]:
        """Return what this machine has kept; nothing when it cannot be read."""
        try:
            return _parsed(self._path.read_bytes())
        except OSError:
            return {}

    def shared(self) -> dict[str, dict[str, bytes]]:
        """Return what another machine has kept for all; nothing when it cannot be read."""
        try:
            return _parsed(zlib.decompress(self._storage.read(_SHARED)))
        except (JobError, zlib.error):
            return {}

    def save(self, runs: Mapping[str, Mapping[str, bytes]], share: bool = False) -> None:
        """Keep the files of runs, `share`d or not; where that is impossible, they are read again next time."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(f".{os.getpid()}")
            part.write_bytes(_content(runs))
            part.replace(self._path)
        if share:
            self.share(runs)

    def share(self, runs: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep the files of runs for other machines; of several that do so at once the last one counts."""
        with contextlib.suppress(JobError):  # who may only look at the bucket has no part in it
            self._storage.write(_SHARED, zlib.compress(_content(runs)))


def _content(runs: Mapping[str, Mapping[str, bytes]]) -> bytes:
    return json.dumps(
        {run: {key: data.decode() for key, data in files.items()} for run, files in runs.items()}
    ).encode()


def _parsed(content: bytes) -> dict[str, dict[str, bytes]]:
    """Return the files in what was kept; none when it is of another form."""
    try:
        told: dict[str, dict[str, str]] = json.loads(content)
        return {run: {key: text.encode() for key, text in files.items()} for run, files in told.items()}
    except (ValueError, AttributeError):
        return {}
