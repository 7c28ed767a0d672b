"""The frame around every job main: job.json in, events and an exit code out.

Order of work: read the job (64 when it is invalid), take the run's lease (75 when another process holds it), say
`started`, work, say `finished` or `failed`. SIGTERM and SIGINT ask the work to save and stop (143); a second one, or
SIGKILL, ends it at once, and the next start goes on from what was complete.
"""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar

from pi05.config import Job, load_job
from pi05.errors import TERMINATED, ConfigError, JobError
from pi05.events import Event, EventWriter
from pi05.storage import RunPaths, Storage

JobT = TypeVar("JobT", bound=Job)

TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words; absent outside a pod."""

_STATUS_PERIOD = 1.0
"""Seconds between two writes of status.json for events that are not the last one of their kind."""

log = logging.getLogger("pi05")


class Stopped(JobError):
    """The job was asked to stop, has saved what it had, and will go on from there when started again."""

    exit_code = TERMINATED


class Context:
    """What a job's work is given: storage, names, a voice, and whether it should stop."""

    def __init__(self, storage: Storage, paths: RunPaths) -> None:
        self.storage, self.paths = storage, paths
        self.events = EventWriter(paths.run, sys.stdout, time.time, self._keep)
        self._signals = 0
        self._kept = 0.0

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM or SIGINT came."""
        return self._signals > 0

    def check_stop(self) -> None:
        """Raise Stopped when a signal came; call it where everything worth keeping is kept."""
        if self.stopping:
            raise Stopped("stopped by a signal; the same command goes on from here")

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Count a signal; the second one ends the process at once."""
        del frame
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + number)

    def _keep(self, event: Event) -> None:
        """Write the event to status.json (progress at most once a second) and to the termination log."""
        if event.kind == "progress" and event.time - self._kept < _STATUS_PERIOD and event.step != event.total:
            return
        self._kept = event.time
        self.storage.write(self.paths.status, event.model_dump_json(exclude_none=True).encode())
        if event.kind != "progress" and TERMINATION_LOG.exists() and os.access(TERMINATION_LOG, os.W_OK):
            TERMINATION_LOG.write_text(event.line())


def main(job_type: type[JobT], work: Callable[[JobT, Context], None]) -> None:
    """Run `work` on the job named on the command line and exit with its code."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    sys.exit(run(job_type, work, sys.argv[1:]))


def run(job_type: type[JobT], work: Callable[[JobT, Context], None], arguments: list[str]) -> int:
    """Run a job and return its exit code; see the module docstring for the order."""
    try:
        job = _read(job_type, arguments)
        context = Context(Storage(job.storage), RunPaths(job.run))
        signal.signal(signal.SIGTERM, context.on_signal)
        signal.signal(signal.SIGINT, context.on_signal)
        with context.storage.lease(context.paths.lease):
            return _work(job, work, context)
    except JobError as error:
        log.error("%s", error)
        return error.exit_code


def _read(job_type: type[JobT], arguments: list[str]) -> JobT:
    """Return the job named by the only argument."""
    if len(arguments) != 1:
        raise ConfigError(f"usage: python -m pi05.jobs.<kind> job.json (given {len(arguments)} arguments)")
    job = load_job(Path(arguments[0]))
    if not isinstance(job, job_type):
        raise ConfigError(f"{arguments[0]} is a {type(job).__name__}, this program runs a {job_type.__name__}")
    return job


def _work(job: JobT, work: Callable[[JobT, Context], None], context: Context) -> int:
    """Run `work` between `started` and `finished` or `failed`."""
    context.events.emit("started", message=f"{type(job).__name__} {job.run}")
    try:
        work(job, context)
    except JobError as error:
        log.error("%s", error)
        context.events.emit("failed", message=str(error), exit_code=error.exit_code)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        context.events.emit("failed", message=f"unexpected {type(error).__name__}: {error}", exit_code=1)
        return 1
    context.events.emit("finished")
    return 0
