"""The frame around every job main: job.json in, events and an exit code out.

    python -m pi05.jobs.<kind> JOB.json [--shard I --shards N] [--attempt POD] [--gpus N]
                                        [--process I --processes N --coordinator HOST:PORT]

Order of work: read the job (64 when it is invalid), take the run's lease (75 when another process holds it), say
`started`, work, say `finished` or `failed`. SIGTERM and SIGINT ask the work to save and stop (143); a second one, or
SIGKILL, ends it at once, and the next start goes on from what was complete. Whatever is said last is in the termination
log, too, where Kubernetes reads it; a refusal before `started` nowhere else but on stdout.
"""

import argparse
import contextlib
import faulthandler
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

from pi05 import variables
from pi05.config import Job, load_job
from pi05.errors import ConfigError, JobError, LeftAlone, Stopped, TemporaryError, Unreachable
from pi05.events import TERMINAL, Event, EventWriter
from pi05.jobs import early, ignored, output
from pi05.jobs.status import StatusWriter
from pi05.storage import FileStorage, Lease, RunPaths, Storage, connect

JobT = TypeVar("JobT", bound=Job)
Answer = TypeVar("Answer")

_STATUS_PERIOD = 1.0
"""Seconds between two writes of status.json for events that are not the last one of their kind."""

_LAST_WORDS = 150.0
"""Seconds that a process may take to say why it ends without unwinding; a bucket out of reach is tried for a while."""

_LONGEST_PAUSE = 60.0
"""Seconds between two looks whether an unreachable storage is there again."""

log = logging.getLogger("pi05")


@dataclass(frozen=True)
class Arguments:
    """The command line of a job.

    Attributes:
        job: File with the job.
        shard, shards: Which part of the work is this process's, of how many; None is all of it.
        attempt: Name of the pod, which names its log.
        gpus: How many this process must have; None is content with what there is.
        process, processes, coordinator: Rank and number of the processes that train together, and where they meet.
    """

    job: Path
    shard: int | None = None
    shards: int | None = None
    attempt: str | None = None
    gpus: int | None = None
    process: int | None = None
    processes: int | None = None
    coordinator: str | None = None


ALONE = Arguments(Path("job.json"))
"""A process that does all of the work by itself."""


class Context:
    """What a job's work is given: storage, names, a voice, its part of the work, and whether it should stop.

    Attributes:
        shard, shards: This process makes part `shard` of `shards`; 0 of 1 when it makes all.
        attempt: Name of the pod, or None.
        gpus: How many this process must have; 0: whatever there is.
        process, processes, coordinator: 0 of 1 and None, unless several processes train together.
    """

    def __init__(self, storage: Storage, paths: RunPaths, arguments: Arguments = ALONE) -> None:
        self.storage, self.paths = storage, paths
        self.shard, self.shards = arguments.shard or 0, arguments.shards or 1
        self.attempt = arguments.attempt
        self.gpus = arguments.gpus or 0
        self.process, self.processes = arguments.process or 0, arguments.processes or 1
        self.coordinator = arguments.coordinator
        self.lease = Lease()
        self.log: output.Log | None = None
        self.events = _voice(paths.run, arguments, self._keep)
        self._signals = 0
        self._kept = 0.0
        self._status = None if isinstance(storage, FileStorage) else StatusWriter(self._write_status)

    @property
    def stopping(self) -> bool:
        """Whether SIGTERM or SIGINT came, or another process has taken over the run."""
        return self._signals > 0 or self.lease.lost

    def check_stop(self) -> None:
        """Raise Stopped when a signal came; call it where everything worth keeping is kept."""
        if self.stopping:
            self.stop()

    def stop(self) -> NoReturn:
        """Raise Stopped: a signal came, here or to a process that trains together with this one.

        Raises:
            TemporaryError: Another process has taken over the run.
        """
        self.lease.check()
        if not self._signals:
            raise LeftAlone(
                "another process of this training was stopped by a signal; the next start goes on from here"
            )
        raise Stopped("stopped by a signal; the same command goes on from here")

    def insist(self, call: Callable[[], Answer]) -> Answer:
        """Return what `call` returns; while the storage does not answer, warn and repeat it, until asked to stop."""
        pause = 1.0
        while True:
            try:
                return call()
            except Unreachable as error:
                if self.stopping:
                    raise
                self.events.emit("warning", message=f"{error}; trying again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Count a signal; the second one ends the process at once."""
        del frame
        self._signals += 1
        if self._signals > 1:
            if self.log is not None:
                self.log.drain()
            os._exit(128 + number)

    def hung(self, message: str) -> NoReturn:
        """End this process, from a thread whose work goes on: show the stacks of all threads, and exit with 75."""
        faulthandler.dump_traceback(all_threads=True)
        self.abandon(message)
        os._exit(TemporaryError.exit_code)

    def abandon(self, message: str, exit_code: int = TemporaryError.exit_code) -> None:
        """Say the last words of a process that is about to end without unwinding; it has _LAST_WORDS seconds for that.

        The next start may do better, so its exit code is that of TemporaryError or CompanyLost.
        """
        end = threading.Timer(_LAST_WORDS, os._exit, [exit_code])
        end.daemon = True
        end.start()
        log.error("%s", message)
        self.events.emit("failed", message=message, exit_code=exit_code)
        if self.log is not None:
            self.log.end()

    def _keep(self, event: Event) -> None:
        """Write the event to the termination log and to status.json.

        A folder gets progress at most once a second; a bucket in the background, but the last event before it returns.
        Of processes that train together the first writes status.json.
        """
        output.last_words(event)
        if self.process != 0:
            return
        if self._status is None:
            if event.kind == "progress" and event.time - self._kept < _STATUS_PERIOD and event.step != event.total:
                return
            self._kept = event.time
            self._write_status(event)
        elif event.kind in TERMINAL:
            self._status.finish(event)
        else:
            self._status.put(event)

    def _write_status(self, event: Event) -> None:
        self.storage.write(self.paths.status, event.model_dump_json(exclude_none=True).encode())


def _voice(run: str, arguments: Arguments, keep: Callable[[Event], None]) -> EventWriter:
    """Return what says the events of a run, each with the part of the work that it is about."""
    extra: dict[str, int] = {}
    if arguments.shard is not None and arguments.shards is not None:
        extra |= {"shard": arguments.shard, "shards": arguments.shards}
    if arguments.process is not None and arguments.processes is not None:
        extra |= {"process": arguments.process, "processes": arguments.processes}
    return EventWriter(run, sys.stdout, time.time, keep, extra)


def main(job_type: type[JobT], work: Callable[[JobT, Context], None]) -> None:
    """Run `work` on the job named on the command line and exit with its code."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    logging.getLogger("absl").setLevel(logging.ERROR)  # where orbax tells every step of a save
    sys.exit(run(job_type, work, sys.argv[1:]))


def run(job_type: type[JobT], work: Callable[[JobT, Context], None], arguments: list[str]) -> int:
    """Run a job and return its exit code; see the module docstring for the order."""
    given = ALONE
    try:
        given = parse(arguments)
        job = _read(job_type, given.job)
        context = Context(connect(job.storage), RunPaths(job.run, given.shard), given)
    except JobError as error:
        return _refuse(error, _run_of(given.job), given)
    signal.signal(signal.SIGTERM, context.on_signal)
    signal.signal(signal.SIGINT, context.on_signal)
    if early:
        return _refuse(Stopped("stopped by a signal before it had begun"), job.run, given)
    with _kept_log(job.storage, context) as context.log:
        try:
            with context.storage.lease(context.paths.lease) if context.process == 0 else nullcontext(Lease()) as lease:
                context.lease = lease
                return _work(job, work, context)
        except JobError as error:
            return _refuse(error, job.run, given)


def _kept_log(url: str, context: Context) -> AbstractContextManager[output.Log | None]:
    """Keep what a pod prints in the bucket; on this machine the controller does so.

    The log has a connection of its own, so that a process that has lost its lease may still say so.
    """
    attempt = context.attempt
    if attempt is None or isinstance(context.storage, FileStorage):
        return nullcontext()
    own = connect(url)
    return output.kept(lambda part, data: own.write(context.paths.attempt_log(attempt, part), data))


def _refuse(error: JobError, run: str, given: Arguments) -> int:
    """Say why nothing was started, to everybody but status.json: that may be another process's."""
    log.error("%s", error)
    _voice(run, given, output.last_words).emit("failed", message=str(error), exit_code=error.exit_code)
    return error.exit_code


def _run_of(job: Path) -> str:
    """Return the name of a run whose job cannot be read as a whole."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(job.read_bytes())["run"])
    return "unknown"


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the words through an error of ours, so that its exit code is ours, too."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {' '.join(self.format_usage().split())}")


def parse(arguments: list[str]) -> Arguments:
    """Return the command line; raise ConfigError when it is not one."""
    parser = _Parser(prog="python -m pi05.jobs.<kind>", allow_abbrev=False, add_help=False)
    parser.add_argument("job", type=Path, metavar="JOB.json")
    for name in ("shard", "shards", "gpus", "process", "processes"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--attempt", metavar="POD")
    parser.add_argument("--coordinator", metavar="HOST:PORT")
    given = Arguments(**vars(parser.parse_args(arguments)))
    _check_part(parser, "shard", given.shard, given.shards)
    _check_part(parser, "process", given.process, given.processes)
    if (given.process is None) != (given.coordinator is None):
        parser.error("--process and --coordinator come together")
    if given.attempt is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", given.attempt):
        parser.error(f"--attempt {given.attempt!r} is not the name of a pod")
    return given


def _check_part(parser: _Parser, name: str, part: int | None, parts: int | None) -> None:
    """Refuse part 4 of 4, and a part without their number."""
    if part is None and parts is None:
        return
    if part is None or parts is None:
        parser.error(f"--{name} and --{name}s come together")
    if not 0 <= part < parts:
        parser.error(f"--{name} {part} is not one of 0 to {parts - 1}")


def _read(job_type: type[JobT], path: Path) -> JobT:
    """Return the job of a file."""
    job = load_job(path)
    if not isinstance(job, job_type):
        raise ConfigError(f"{path} is a {type(job).__name__}, this program runs a {job_type.__name__}")
    return job


def _work(job: JobT, work: Callable[[JobT, Context], None], context: Context) -> int:
    """Run `work` between `started` and `finished` or `failed`."""
    context.events.emit("started", message=f"{type(job).__name__} {job.run}")
    if ignored:
        message = f"{variables.words(ignored)} counts for nothing: a job computes as its options say; unset it"
        log.warning("%s", message)
        context.events.emit("warning", message=message)
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
