"""Runs as child processes of this machine, detached from the terminal, with everything they say and leave in storage.

A submission is exclusive by a lock, and a run is alive while its supervisor (or, should that be killed, its job) holds
a lease: no decision rests on a pid alone.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from pi05.errors import DataError
from pi05.events import PREFIX, Event, parse
from pi05.storage import FileStorage, RunPaths, Storage
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.runs import inputs, records
from pi05ctl.runs.process import Process, alive_key, from_json, record_key
from pi05ctl.runs.records import Records
from pi05ctl.runs.status import Snapshot, fold
from pi05ctl.runs.target import Submission
from pi05ctl.spec.render import Local, PipelineJob, Rendered, stages

PROGRAMS = {
    "demos": "pi05.jobs.demos",
    "train": "pi05.jobs.train",
    "eval": "pi05.jobs.evaluate",
    "pipeline": "pi05ctl.pipeline",
}
_TAIL, _LAST_WORDS = 1 << 17, 1 << 14
"""Bytes of a log's end that a snapshot reads of a run that is alive, and of one that is not."""
_POLL = 0.05
_FOLLOW = 0.2
"""Seconds between two looks at the end of a log."""


class LocalTarget:
    """This machine.

    Args:
        storage: Where runs live.
        local: Interpreter and number of jobs at once.
        clock: Seconds since 1970.
        sleep: Waits for seconds.
    """

    name = "local"
    poll = 0.5

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
        self._records = Records(storage)
        self._clock, self._sleep = clock, sleep

    def runs(self) -> list[str]:
        """Return the names of all runs."""
        return self._records.names()

    def submit(self, run: Rendered, parent: str | None = None) -> Submission:
        """Start a run unless it is running or done, and return at once.

        Raises:
            UsageError: Something it needs is not there, or another run has its name.
            TargetError: The process cannot be started.
        """
        if sys.platform != "linux":
            raise TargetError("the local target needs Linux; the simulator has no wheels for others")
        with self._records.submitting(run.run, self._sleep):
            before, run = self.snapshot(run.run), self._records.current(run)
            if before is not None:
                self._records.refuse_other(run)
                if before.alive:
                    return Submission(run.run, "running")
                if fold(before, self._clock()).state == "Done" and inputs.made(run, self.storage):
                    return Submission(run.run, "done")
            problem = inputs.missing(run, self.storage)
            if problem:
                raise UsageError(problem)
            self._records.write(run, self._clock(), parent)
            self._start(run)
            again = before is not None and before.process is not None
            return Submission(run.run, "resumed" if again else "started")

    def preview(self, run: Rendered) -> bytes:
        """Return the run's job.json."""
        return run.job_json

    def load(self, name: str) -> Rendered:
        """Return a run as it was submitted; raise TargetError when its files are damaged."""
        return self._records.load(name)

    def snapshot(self, run: str) -> Snapshot | None:
        """Return what is known of a run now; None when there is none of this name."""
        if not self._records.exists(run):
            return None
        alive = self.alive(run)  # before the files: one that ended in between is seen alive, not without a verdict
        files, events, last_line = self._records.files(run), *self._tail(run, _TAIL if alive else _LAST_WORDS)
        record = self._records.parse(run, files[RunPaths(run).spec])
        return Snapshot(
            run=run,
            spec=record.spec,
            created=record.created,
            parent=record.parent,
            train_run=record.train_run,
            alive=alive,
            process=self._process(run),
            cancelled=records.cancelled(files, run),
            verdicts=records.verdicts(files),
            changes=record.changes,
            events=events,
            last_line=last_line,
        )

    def snapshots(self) -> tuple[list[Snapshot], list[str]]:
        """Return what is known of every run now, and complaints about those that cannot be read."""
        found: list[Snapshot] = []
        damaged: list[str] = []
        for run in self.runs():
            try:
                found += filter(None, (self.snapshot(run),))
            except TargetError as error:
                damaged.append(str(error))
        return found, damaged

    def alive(self, run: str) -> bool:
        """Return whether a process of the run exists."""
        # The job's own lease only counts without a supervisor, so that looking never disturbs a job that takes it.
        if self.storage.leased(alive_key(run)) or self.storage.leased(RunPaths(run).lease):
            return True
        process = self._process(run)  # of a killed supervisor, before it has taken its lease
        return process is not None and process.exists()

    def log(self, run: str) -> bytes:
        """Return everything that the run printed."""
        return self._log_from(run, 0)

    def follow_log(self, run: str) -> Iterator[bytes]:
        """Yield what a run prints, from the beginning until it has ended."""
        at, over = 0, False
        while True:
            data = self._log_from(run, at)
            at += len(data)
            yield data
            if over:
                return
            over = not self.alive(run)  # then one more look, for what came in between
            if not over:
                self._sleep(_FOLLOW)

    def cancel(self, run: str, now: bool = False) -> bool:
        """End a run and return when it is gone: it saves first, or with `now` it is killed. False: it was not running.

        Raises:
            TargetError: The process is not one that pi05ctl started.
        """
        below = stages(self.load(run)) if now else ()
        was_alive = self.alive(run)
        if was_alive:
            self._records.cancel(run, self._clock(), now)
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

    def _start(self, run: Rendered) -> None:
        """Hand the run to a supervisor, which detaches itself as soon as it has it."""
        paths, job = RunPaths(run.run), run.job
        is_pipeline = isinstance(job, PipelineJob)
        python = sys.executable if is_pipeline else self._local.python
        slots = 0 if is_pipeline else self._local.jobs_at_once
        job_json = str(self.storage.path(paths.job))
        command = [python, "-m", PROGRAMS[job.kind], job_json]
        supervisor = [sys.executable, "-m", "pi05ctl.local.supervisor"]
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

    def _process(self, run: str) -> Process | None:
        try:
            return from_json(self.storage.read(record_key(run)))
        except (DataError, ValueError, TypeError, KeyError):
            return None

    def _log_from(self, run: str, start: int) -> bytes:
        path = self.storage.path(RunPaths(run).log)
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            file.seek(start)
            return file.read()

    def _tail(self, run: str, length: int) -> tuple[tuple[Event, ...], str]:
        """Return the events and the last other line in the end of the log."""
        path = self.storage.path(RunPaths(run).log)
        size = path.stat().st_size if path.is_file() else 0
        text = self._log_from(run, max(size - length, 0)).decode(errors="replace")
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
