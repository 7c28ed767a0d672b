"""Runs as child processes of this machine, detached from the terminal, with everything they say and leave in storage.

A submission is exclusive by a lock, and a run is alive while its supervisor (or, should that be killed, its job) holds
a lease: no decision rests on a pid alone.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError

from pi05.config import AnyJob, Section
from pi05.errors import DataError, TemporaryError
from pi05.events import PREFIX, Event, parse
from pi05.storage import FileStorage, RunPaths, Storage
from pi05ctl import inputs
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.process import Process, alive_key, cancel_key, from_json, record_key
from pi05ctl.render import Local, PipelineJob, Rendered, moved, stages, to_json
from pi05ctl.spec import RunSpec
from pi05ctl.status import Snapshot, fold

PROGRAMS = {
    "demos": "pi05.jobs.demos",
    "train": "pi05.jobs.train",
    "eval": "pi05.jobs.evaluate",
    "pipeline": "pi05ctl.pipeline",
}
_TAIL, _LAST_WORDS = 1 << 17, 1 << 14
"""Bytes of a log's end that a snapshot reads of a run that is alive, and of one that is not."""
_POLL = 0.05
_LOCK_PATIENCE = 30.0
"""Seconds that a submission waits for another one of the same run to finish."""
_JOB: TypeAdapter[AnyJob | PipelineJob] = TypeAdapter(Annotated[AnyJob | PipelineJob, Field(discriminator="kind")])

Outcome = Literal["started", "resumed", "running", "done"]


class Record(Section):
    """run.json: what was asked for.

    Attributes:
        spec: As the user said it.
        digest: Of everything that can change the result; the name has only its first 6 digits.
        created: First submission, in seconds since 1970.
        parent: The pipeline that submitted it.
        command: The command line that asks for it again.
    """

    run: str
    spec: RunSpec
    digest: str
    created: float
    parent: str | None = None
    command: str


@dataclass(frozen=True)
class Submission:
    """What became of a submission.

    Attributes:
        run: The run's name.
        outcome: started anew, resumed after an end without success, found running, or found done.
    """

    run: str
    outcome: Outcome


class LocalTarget:
    """This machine.

    Args:
        storage: Where runs live.
        local: Interpreter and number of jobs at once.
        clock: Seconds since 1970.
        sleep: Waits for seconds.
    """

    name = "local"

    def __init__(
        self,
        storage: Storage,
        local: Local,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not isinstance(storage, FileStorage):
            raise UsageError(f"target local keeps its runs on this machine, not in {storage.url}; use file:///a/folder")
        self.storage, self._local = storage, local
        self._clock, self._sleep = clock, sleep

    def runs(self) -> list[str]:
        """Return the names of all runs."""
        return [run for run in self.storage.children("runs") if self.storage.exists(RunPaths(run).spec)]

    def submit(self, run: Rendered, parent: str | None = None) -> Submission:
        """Start a run unless it is running or done, and return at once.

        Raises:
            UsageError: Something it needs is not there, or another run has its name.
            TargetError: The process cannot be started.
        """
        if sys.platform != "linux":
            raise TargetError("the local target needs Linux; the simulator has no wheels for others")
        with self._submitting(run.run):
            before = self.snapshot(run.run)
            if before is not None:
                self._refuse_other(run)
                if before.alive:
                    return Submission(run.run, "running")
                if fold(before, self._clock()).state == "Done" and inputs.made(run, self.storage):
                    return Submission(run.run, "done")
            problem = inputs.missing(run, self.storage)
            if problem:
                raise UsageError(problem)
            self._write(run, before, parent)
            self._start(run)
            again = before is not None and before.process is not None
            return Submission(run.run, "resumed" if again else "started")

    def load(self, name: str) -> Rendered:
        """Return a run as it was submitted; raise TargetError when its files are damaged."""
        record = self._record(name)
        try:
            job = _JOB.validate_json(self.storage.read(RunPaths(name).job))
        except (DataError, ValidationError) as error:
            raise TargetError(f"{RunPaths(name).job} is damaged; submit it again") from error
        return Rendered(record.spec, moved(job, self.storage.url), record.digest)

    def snapshot(self, run: str) -> Snapshot | None:
        """Return what is known of a run now; None when there is none of this name."""
        paths = RunPaths(run)
        if not self.storage.exists(paths.spec):
            return None
        record, job = self._record(run), self._json(paths.job)
        alive = self.alive(run)  # before the files: one that ended in between is seen alive, not without a verdict
        events, last_line = self._tail(run, _TAIL if alive else _LAST_WORDS)
        return Snapshot(
            run=run,
            spec=record.spec,
            created=record.created,
            parent=record.parent,
            train_run=job.get("train_run"),
            alive=alive,
            process=self._process(run),
            cancelled=self._json(cancel_key(run)).get("time"),
            verdict=self._verdict(run),
            events=events,
            last_line=last_line,
        )

    def alive(self, run: str) -> bool:
        """Return whether a process of the run exists."""
        # The job's own lease only counts without a supervisor, so that looking never disturbs a job that takes it.
        if self.storage.leased(alive_key(run)) or self.storage.leased(RunPaths(run).lease):
            return True
        process = self._process(run)  # of a killed supervisor, before it has taken its lease
        return process is not None and process.exists()

    def log(self, run: str, start: int = 0) -> bytes:
        """Return everything that the run printed, from byte `start` on."""
        path = self.storage.path(RunPaths(run).log)
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            file.seek(start)
            return file.read()

    def cancel(self, run: str, now: bool = False) -> bool:
        """End a run and return when it is gone: it saves first, or with `now` it is killed. False: it was not running.

        Raises:
            TargetError: The process is not one that pi05ctl started.
        """
        below = stages(self.load(run)) if now else ()
        was_alive = self.alive(run)
        if was_alive:
            self.storage.write(cancel_key(run), _dump({"time": self._clock(), "now": now}))
            self._end(run, signal.SIGKILL if now else signal.SIGTERM)
        killed = [self.cancel(stage.run, now) for stage in below if self.alive(stage.run)]
        return was_alive or any(killed)

    def _end(self, run: str, number: signal.Signals) -> None:
        """Signal the job once and wait until the run is gone."""
        signalled = False
        while self.alive(run):
            process = self._process(run)
            signalled = signalled or (process is not None and _send(process, number))
            if not signalled and not self.storage.leased(alive_key(run)) and self.alive(run):
                raise TargetError(f"{run} is written by a process that pi05ctl did not start; stop that one yourself")
            self._sleep(_POLL)

    @contextlib.contextmanager
    def _submitting(self, run: str) -> Generator[None]:
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
                    self._sleep(_POLL)
            yield

    def _refuse_other(self, run: Rendered) -> None:
        """Raise UsageError when the stored run of this name is another one."""
        if self._record(run.run).digest != run.digest:
            raise UsageError(
                f"{run.run} exists with other values (the first 6 digits agree by chance); use --again for another name"
            )

    def _write(self, run: Rendered, before: Snapshot | None, parent: str | None) -> None:
        """Write run.json and job.json; a run that exists keeps its age, and one asked for by hand stays so."""
        record = Record(
            run=run.run,
            spec=run.spec,
            digest=run.digest,
            created=before.created if before else self._clock(),
            parent=parent if before is None or before.parent else None,
            command=run.spec.command(),
        )
        paths = RunPaths(run.run)
        self.storage.write(paths.job, run.job_json)
        self.storage.write(paths.spec, to_json(record))
        self.storage.path(cancel_key(run.run)).unlink(missing_ok=True)

    def _start(self, run: Rendered) -> None:
        """Hand the run to a supervisor, which detaches itself as soon as it has it."""
        paths, job = RunPaths(run.run), run.job
        is_pipeline = isinstance(job, PipelineJob)
        python = sys.executable if is_pipeline else self._local.python
        slots = 0 if is_pipeline else self._local.jobs_at_once
        job_json = str(self.storage.path(paths.job))
        command = [python, "-m", PROGRAMS[job.kind], job_json]
        supervisor = [sys.executable, "-m", "pi05ctl.targets.supervisor"]
        with self.storage.path(paths.log).open("ab") as log:
            done = subprocess.run(
                [*supervisor, self.storage.url, run.run, str(slots), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
            )
        if done.returncode:
            where = f"pi05ctl logs {run.run}"
            raise TargetError(f"{run.run} could not be started (exit code {done.returncode}); {where}")

    def _record(self, run: str) -> Record:
        """Return run.json; raise TargetError when it is damaged or of a newer version."""
        try:
            return Record.model_validate_json(self.storage.read(RunPaths(run).spec))
        except (DataError, ValidationError) as error:
            where = f"{self.storage.url}/{RunPaths(run).spec}"
            raise TargetError(f"{where} cannot be read (damaged, or of a newer version)") from error

    def _process(self, run: str) -> Process | None:
        try:
            return from_json(self.storage.read(record_key(run)))
        except (DataError, ValueError, TypeError, KeyError):
            return None

    def _verdict(self, run: str) -> Event | None:
        try:
            return Event.model_validate_json(self.storage.read(RunPaths(run).status))
        except (DataError, ValidationError):
            return None

    def _json(self, key: str) -> dict[str, Any]:
        """Return a small JSON file; empty when it does not exist or is damaged."""
        try:
            content: Any = json.loads(self.storage.read(key))
        except (DataError, ValueError):
            return {}
        return cast("dict[str, Any]", content) if isinstance(content, dict) else {}

    def _tail(self, run: str, length: int) -> tuple[tuple[Event, ...], str]:
        """Return the events and the last other line in the end of the log."""
        path = self.storage.path(RunPaths(run).log)
        size = path.stat().st_size if path.is_file() else 0
        text = self.log(run, max(size - length, 0)).decode(errors="replace")
        lines = text.splitlines()
        events = tuple(event for line in lines if (event := parse(line)) is not None)
        prose = [line for line in lines if line.strip() and not line.startswith(PREFIX)]
        return events, prose[-1].strip() if prose else ""


def _send(process: Process, number: signal.Signals) -> bool:
    """Signal a job's process, and no other that may have its pid by now; return whether that was done."""
    if process.pid is None:
        return False
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # The handle is of whoever has the pid now; if that is the job, the signal reaches it or nobody.
        if not process.exists():
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
