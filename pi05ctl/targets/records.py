"""run.json, job.json, cancel.json and the last events of runs in storage: what is known of a run wherever it runs."""

import contextlib
import json
import time
from collections.abc import Callable, Generator, Mapping
from typing import Annotated, Any, cast

from pydantic import Field, TypeAdapter, ValidationError

from pi05.config import AnyJob, EvalJob, Section
from pi05.errors import DataError, TemporaryError
from pi05.events import Event
from pi05.storage import RunPaths, Storage
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.process import cancel_key
from pi05ctl.render import PipelineJob, Rendered, moved, to_json
from pi05ctl.spec import RunSpec

NAMES = ("run.json", "status.json", "shards/*/status.json", "cancel.json")
"""What a table of all runs needs to read of each."""
_POLL = 0.05
_LOCK_PATIENCE = 90.0
"""Seconds that a submission waits for another one of the same run; on gs:// that of a killed one expires after 60."""
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
    """

    run: str
    spec: RunSpec
    digest: str
    created: float
    parent: str | None = None
    train_run: str | None = None
    command: str


class Records:
    """The records of all runs in one storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def names(self) -> list[str]:
        """Return the names of all runs."""
        return [key.split("/")[1] for key in self.storage.scan("runs", ("run.json",))]

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
        """Return the files of NAMES that a run has, by key."""
        root = RunPaths(run).root
        found = self.storage.scan(f"{root}/shards", ("status.json",))
        for name in NAMES:
            with contextlib.suppress(DataError):
                if "*" not in name:
                    found[f"{root}/{name}"] = self.storage.read(f"{root}/{name}")
        return found

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
        return Rendered(record.spec, moved(job, self.storage.url), record.digest)

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


def verdicts(files: Mapping[str, bytes], run: str) -> tuple[Event, ...]:
    """Return the last event of a run, or of each of its shards; what is damaged is left out."""
    root = f"{RunPaths(run).root}/"
    found: list[Event] = []
    for key in sorted(key for key in files if key.startswith(root) and key.endswith("/status.json")):
        try:
            found.append(Event.model_validate_json(files[key]))
        except ValidationError:
            continue
    return tuple(found)
