"""Runs that read what the ones before them make, in this order, as one run: `python -m pi05ctl.pipeline job.json`.

Each stage is a run of its own, submitted as a person would: one that is done is left alone, one that is running is
waited for, so the pipeline can be killed at any moment and started again. One that has ended without success since
somebody last asked for the pipeline stays so and ends it, also when the pipeline was away at that moment; asked for
again, it starts that stage again. It says what its stages do in events of its own (progress with `stage`, its run).

On SIGTERM, a pipeline of this machine cancels the stage it is at, which saves first. In a cluster the signal may come
from a node that is drained, and the pipeline's Job starts it again elsewhere: there the stage goes on meanwhile, and it
is `pi05ctl cancel` that ends both.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from pi05.config import explain
from pi05.errors import TERMINATED, ConfigError, DataError, JobError, NotLearning, TemporaryError
from pi05.events import TERMINAL, Event, EventWriter
from pi05.jobs import output
from pi05.storage import RunPaths, Storage, connect
from pi05ctl.errors import CtlError, Unreachable, UsageError
from pi05ctl.runs import status
from pi05ctl.runs.records import Records
from pi05ctl.runs.status import RunStatus
from pi05ctl.runs.target import Target
from pi05ctl.spec.render import PipelineJob, Rendered, stages
from pi05ctl.views import page

Answer = TypeVar("Answer")
_PERMANENT = {ConfigError.exit_code, DataError.exit_code, NotLearning.exit_code}
_ASK_AGAIN = 10.0
_SAY_EVERY = 2.0
"""Seconds between two events of progress."""


class Stopped(JobError):
    """Somebody asked the pipeline to end; its stage was cancelled."""

    exit_code = TERMINATED


class StageFailed(JobError):
    """A stage was cancelled, or failed after as many tries as it may have; the pipeline is not tried again, either.

    Args:
        stage: How it ended.
    """

    exit_code = 67

    def __init__(self, stage: RunStatus) -> None:
        reason = f": {stage.why}" if stage.why else ""
        super().__init__(f"{stage.run} is {stage.state}{reason}")
        if stage.exit_code in _PERMANENT:
            self.exit_code = stage.exit_code


@dataclass
class Pipeline:
    """One run of the stages.

    Attributes:
        run: The pipeline's run.
        target: Where the stages run.
        events: What it says.
        stopping: Whether somebody asked it to end.
        clock, sleep: Time.
    """

    run: Rendered
    target: Target
    events: EventWriter
    stopping: Callable[[], bool]
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def work(self) -> None:
        """Run the stages, write the report and say how it ended."""
        self.events.emit("started", message=f"pipeline {self.run.run}")
        ended = [self._stage(stage) for stage in stages(self.run)]
        self._report()
        self.events.emit("finished", metrics=ended[-1].metrics)

    def _stage(self, stage: Rendered) -> RunStatus:
        """Submit one stage and wait for it; raise StageFailed when it ends, or has ended, without success."""
        self._check_stop()
        self._refuse_ended(stage.run)
        outcome = self._patiently(lambda: self.target.submit(stage, parent=self.run.run)).outcome
        self._patiently(lambda: self._records.begin(self.run.run, stage.run))
        sys.stderr.write(f"{stage.run}: {outcome}\n")
        ended = self._watch(stage.run)
        if ended.state != "Done":
            raise StageFailed(ended)
        return ended

    def _refuse_ended(self, stage: str) -> None:
        """Raise StageFailed for a stage that was begun since somebody asked for this pipeline, and has failed since."""
        if self._patiently(lambda: stage in self._records.begun(self.run.run)):
            now = self._status(stage)
            if now.state in ("Failed", "Cancelled"):
                raise StageFailed(now)

    @property
    def _records(self) -> Records:
        return Records(self.target.storage)

    def _watch(self, stage: str) -> RunStatus:
        """Say what a stage does until it ends."""
        said: tuple[object, ...] = ()
        while True:
            now = self._status(stage)
            minute = now.state != "Stalled" and self.clock() // 60  # a live stage keeps us alive
            news = (now.step, now.state, minute)
            if news != said or now.ended:
                self._say(now)
                said = news
            if now.ended:
                return now
            self._pause(stage)

    def _pause(self, stage: str) -> None:
        """Wait until there may be news of a stage."""
        for _ in range(max(int(_SAY_EVERY / self.target.poll), 1)):
            self._check_stop(stage)
            self.sleep(self.target.poll)
            if self.target.name == "local" and not self.target.alive(stage):
                return

    def _check_stop(self, stage: str | None = None) -> None:
        """Raise Stopped when somebody asked the pipeline to end; a stage of this machine is cancelled with it."""
        if self.stopping():
            if stage is not None and self.target.name == "local":
                self.target.cancel(stage)
            raise Stopped("stopped by a signal; start it again to go on")

    def _status(self, run: str) -> RunStatus:
        """Return how a stage stands; a cluster or bucket that does not answer is asked again, for ever."""
        seen = self._patiently(lambda: self.target.snapshot(run))
        if seen is None:
            raise TemporaryError(f"{run} has disappeared from storage; start the pipeline again")
        return status.fold(seen, self.clock())

    def _patiently(self, ask: Callable[[], Answer]) -> Answer:
        while True:
            try:
                return ask()
            except (Unreachable, TemporaryError) as error:
                self.events.emit("warning", message=f"asks again: {error}")
                self.sleep(_ASK_AGAIN)
                self._check_stop()

    def _say(self, stage: RunStatus) -> None:
        self.events.emit(
            "progress",
            step=stage.step,
            total=stage.total,
            unit=stage.unit,
            metrics=stage.metrics or None,
            stage=stage.run,
            state=stage.state,
        )

    def _report(self) -> None:
        """Write the report; a report that cannot be written does not undo the work."""
        try:
            page.write(self.target, self.run.run, self.clock(), state="Done")
        except (CtlError, JobError, OSError, ValueError) as error:
            self.events.emit("warning", message=f"no report: {error}")


def main(argv: list[str]) -> int:
    """Run the pipeline that a job.json describes and return the exit code."""
    try:
        given = _parse(argv)
        job = _read(given.job)
        storage, paths = connect(job.storage), RunPaths(job.run)
        signals: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
        events = EventWriter(job.run, sys.stdout, time.time, partial(_keep, storage, paths.status))
        with _kept_log(storage, paths, given.attempt), storage.lease(paths.lease):
            return _guarded(job, events, lambda: bool(signals))
    except JobError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


def _keep(storage: Storage, key: str, event: Event) -> None:
    """Keep the last event; one that is not the very last may be missed while the storage does not answer."""
    output.last_words(event)
    try:
        storage.write(key, event.model_dump_json(exclude_none=True).encode())
    except TemporaryError:
        if event.kind in TERMINAL:
            raise


def _kept_log(storage: Storage, paths: RunPaths, attempt: str | None) -> AbstractContextManager[object]:
    """Keep what a pod prints in the bucket; on this machine the target keeps it."""
    if attempt is None:
        return nullcontext()
    own = connect(storage.url)
    return output.kept(lambda part, data: own.write(paths.attempt_log(attempt, part), data))


def _guarded(job: PipelineJob, events: EventWriter, stopping: Callable[[], bool]) -> int:
    """Run the stages and turn what goes wrong into an event and an exit code.

    A stage that cannot be started (weights are missing, say) has failed for good: asking again does not help it.
    """
    try:
        target = _target(job)
        Pipeline(Records(target.storage).verified(job.run, job), target, events, stopping).work()
    except (CtlError, JobError) as error:
        code = StageFailed.exit_code if isinstance(error, UsageError) else error.exit_code
        sys.stderr.write(f"{error}\n")
        events.emit("failed", message=str(error), exit_code=code)
        return code
    return 0


def _target(job: PipelineJob) -> Target:
    """Return where the stages run: this machine, or the cluster that this pod is in."""
    if job.local is not None:
        from pi05ctl.local.target import LocalTarget

        return LocalTarget(connect(job.storage), job.local)
    from pi05ctl.cluster.target import ClusterTarget, cluster_of

    return ClusterTarget(cluster_of(job))


def _parse(argv: list[str]) -> argparse.Namespace:
    """Return the words of the command line: the job, and the name of the pod."""
    parser = argparse.ArgumentParser(prog="python -m pi05ctl.pipeline", exit_on_error=False)
    parser.add_argument("job", type=Path, metavar="JOB.json")
    parser.add_argument("--attempt", metavar="POD", help="keep what is printed in storage under this name")
    try:
        return parser.parse_args(argv)
    except (argparse.ArgumentError, SystemExit) as error:
        raise ConfigError(f"usage: python -m pi05ctl.pipeline JOB.json [--attempt POD] ({error})") from error


def _read(path: Path) -> PipelineJob:
    """Return the job in a file."""
    try:
        return PipelineJob.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        text = explain(error) if isinstance(error, ValidationError) else error
        raise ConfigError(f"{path} is not a pipeline's job: {text}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
