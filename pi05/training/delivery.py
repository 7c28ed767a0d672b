"""Folders to checkpoints in storage: each is filled by whoever writes it, delivered whole, and then said to be there.

    on this machine       filled where it belongs; there when `put` returns
    to a bucket           filled on the local disk, uploaded by a thread while the next one is made; the newest first
    several processes     each fills a folder with its part and delivers it; the first one completes

A bucket out of reach is tried again and again. What has not been uploaded when the next checkpoint is ready makes room
for it, unless `keep_every` keeps it or training can go on from none that is newer. At the end everything that waits is
uploaded: a job that has ended well has its checkpoints in the bucket.
"""

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pi05.errors import JobError, Stopped, TemporaryError, Unreachable
from pi05.storage import STATE, Entry, FileStorage, disk_errors
from pi05.training import checkpoint, processes
from pi05.training.surroundings import Surroundings, warn

_LONGEST_PAUSE = 60.0
"""Seconds between two tries to upload, after growing ones."""

log = logging.getLogger("pi05")

Fill = Callable[[Path], None]
"""Writes a checkpoint into a folder."""
Answer = TypeVar("Answer")


class Delivery(Protocol):
    """Where checkpoints go; called by one thread at a time."""

    def put(self, step: int, fill: Fill, whole: bool, last: bool) -> bool:
        """Deliver the checkpoint of a step and return whether it is, or will be, there.

        Args:
            step: Its step.
            fill: Writes it; called again when it has to be.
            whole: Whether training can go on from it.
            last: Whether the run ends with it, so that it must not be left out.

        Raises:
            TemporaryError: The disk is full, and waiting makes no room.
        """
        ...


def delivery(around: Surroundings, keep_every: int, total: int) -> AbstractContextManager[Delivery]:
    """Return what delivers to a storage; when it is left, all that was put is there.

    Args:
        around: The storage, and the run's names and voice.
        keep_every: Multiples of this step are kept beside the last checkpoint.
        total: Last step, for events.
    """
    shelf = _Checkpoints(around, keep_every, total)
    if processes.others():
        return _Together(shelf)
    return _Here(shelf) if isinstance(around.storage, FileStorage) else _InBackground(shelf)


class _Checkpoints:
    """The checkpoints of one run in storage, and what is said of them."""

    def __init__(self, around: Surroundings, keep_every: int, total: int) -> None:
        self.storage, self.paths, self._events = around.storage, around.paths, around.events
        self.keep_every, self._total = keep_every, total

    def lacks(self, step: int, whole: bool) -> bool:
        """Return whether a checkpoint is to be made; one of an earlier start that holds less makes way for it.

        A run that goes on from an older checkpoint than its newest comes past those again that only policies use.
        """
        key = self.paths.checkpoint(step)
        if not self.storage.exists(key):
            return True
        if not whole or STATE in self.storage.parts(key):
            return False
        self.storage.delete(key)
        return True

    def announce(self, step: int) -> None:
        """Say that a checkpoint is complete."""
        self._events.emit("checkpoint", step=step, total=self._total, unit="steps")

    def warn(self, message: str) -> None:
        """Say that something is not as it should be, and training goes on."""
        warn(self._events, message)

    def tidy(self) -> None:
        """Delete what retention does not keep; the newest one, and the newest to go on from, always stay."""
        saved, resumable = (look(self.storage, self.paths.run) for look in (checkpoint.steps, checkpoint.resumable))
        for old in checkpoint.superseded(saved, resumable, self.keep_every):
            self.storage.delete(self.paths.checkpoint(old))


class _Here:
    """Checkpoints in a folder of this machine."""

    def __init__(self, shelf: _Checkpoints) -> None:
        self._shelf = shelf

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def put(self, step: int, fill: Fill, whole: bool, last: bool) -> bool:
        del last
        if self._shelf.lacks(step, whole):
            with self._shelf.storage.stage(self._shelf.paths.checkpoint(step)) as folder:
                fill(folder)
        self._shelf.announce(step)
        self._shelf.tidy()
        return True


class _InBackground:
    """Checkpoints that are uploaded by a thread, the newest first."""

    def __init__(self, shelf: _Checkpoints) -> None:
        self._shelf = shelf
        self._folder = shelf.storage.scratch(shelf.paths.checkpoints)
        self._waiting: dict[int, bool] = {}  # whether training can go on from it, by step
        self._current: int | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="uploads")

    def __enter__(self) -> Delivery:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait until everything is uploaded; raise what made that impossible, unless training ended with an error."""
        del kind, trace
        if self._waiting and self._error is None:
            log.info("waiting for the upload of checkpoint %s", ", ".join(map(str, sorted(self._waiting))))
        with self._change:
            self._ended = True
            self._change.notify_all()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._error is not None and (error is None or isinstance(error, Stopped)):
            raise self._error

    def put(self, step: int, fill: Fill, whole: bool, last: bool) -> bool:
        """Fill a local folder and have it uploaded; on a full disk the last one waits for uploads to make room."""
        while not self._filled(step, fill, last):
            if not last:
                return False
        with self._change:
            self._waiting[step] = whole
            superseded = self._superseded()
            self._change.notify_all()
        for old in superseded:
            self._shelf.warn(f"uploads are behind: checkpoint {old} is dropped for {step}, which is newer")
        return True

    def _filled(self, step: int, fill: Fill, last: bool) -> bool:
        """Fill a local folder; return False when the disk is full, after room was made if it is the last checkpoint."""
        folder, waiting = self._folder / str(step), sorted(self._waiting)
        if self._error is not None:
            raise self._error
        try:
            with disk_errors(f"writing checkpoint {step} to {folder}"):
                folder.mkdir(parents=True)
                fill(folder)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, TemporaryError) or not waiting:
                raise
            what = "is written again when one is through" if last else "is left out"
            self._shelf.warn(f"checkpoint {step} {what} while {waiting} wait for upload: {error}")
        else:
            return True
        if last:
            with self._change:
                self._change.wait_for(lambda: self._error is not None or len(self._waiting) < len(waiting))
        return False

    def _superseded(self) -> list[int]:
        """Drop what waits and is not the newest, of all or to go on from, nor kept for its number, nor on its way."""
        resumable = [step for step, whole in self._waiting.items() if whole]
        old = checkpoint.superseded(self._waiting, resumable, self._shelf.keep_every)
        old = [step for step in old if step != self._current]
        for step in old:
            self._drop(step)
        return old

    def _drop(self, step: int) -> None:
        del self._waiting[step]
        shutil.rmtree(self._folder / str(step), ignore_errors=True)

    def _run(self) -> None:
        """Upload what waits until the end; after an error that waiting does not cure, keep it for the trainer."""
        pause = 1.0
        try:
            while (step := self._next()) is not None:
                try:
                    self._upload(step)
                    pause = 1.0
                except JobError as error:
                    if not self._goes_on(error):
                        raise
                    self._shelf.warn(f"checkpoint {step} is not uploaded yet: {error}; next try in {pause:.0f} s")
                    self._rest(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except BaseException as error:
            with self._change:
                self._error = error
                self._change.notify_all()

    def _goes_on(self, error: JobError) -> bool:
        """Return whether to try again: always while training goes on, unless another process has taken over the run."""
        if isinstance(error, TemporaryError):
            return isinstance(error, Unreachable)
        return not self._ended

    def _next(self) -> int | None:
        """Return the newest checkpoint that waits, as soon as there is one; None when there is none at the end."""
        with self._change:
            self._current = None
            self._change.wait_for(lambda: self._waiting or self._ended)
            self._current = max(self._waiting, default=None)
            return self._current

    def _rest(self, seconds: float) -> None:
        """Wait; a newer checkpoint may take the place of the one that failed meanwhile."""
        with self._change:
            self._current = None
            self._change.wait_for(lambda: False, timeout=seconds)

    def _upload(self, step: int) -> None:
        """Bring one checkpoint to the bucket and say so when the bucket has it whole."""
        storage, key = self._shelf.storage, self._shelf.paths.checkpoint(step)
        if self._shelf.lacks(step, self._waiting[step]):
            storage.publish(self._folder / str(step), key)
        if problems := storage.verify(key):
            storage.delete(key)
            raise Unreachable(f"it arrived damaged ({'; '.join(problems)})")
        with self._change:
            self._drop(step)
            self._change.notify_all()
        self._shelf.announce(step)
        with contextlib.suppress(Unreachable):  # tidied after the next one
            self._shelf.tidy()


class _Together:
    """Checkpoints of several processes: each brings its part, the first waits for all and completes.

    What each has brought it tells the first by way of the coordinator, so that no collective is needed and training
    goes on. There is one at a time: `put` returns when it is complete, in the others when their part is there.
    """

    def __init__(self, shelf: _Checkpoints) -> None:
        self._shelf = shelf
        own = f"{shelf.paths.work}/part-{processes.number()}"  # processes may share a disk
        self._folder = shelf.storage.scratch(own)

    def __enter__(self) -> Delivery:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that was killed
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def put(self, step: int, fill: Fill, whole: bool, last: bool) -> bool:
        del last
        lead = self._lead if processes.leads() else self._follow
        try:
            lead(step, fill, whole)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
        return True

    def _lead(self, step: int, fill: Fill, whole: bool) -> None:
        """Bring the first part, hear of the others, and complete."""
        shelf, key = self._shelf, self._shelf.paths.checkpoint(step)
        lacks = self._insist(lambda: shelf.lacks(step, whole))
        processes.tell(_wanted(step), "yes" if lacks else "no")
        if lacks:
            files = self._bring(step, fill)
            for process in processes.others():
                files |= _heard(step, process)
            self._insist(lambda: shelf.storage.complete(key, files))
        shelf.announce(step)
        with contextlib.suppress(Unreachable):  # tidied after the next one
            shelf.tidy()

    def _follow(self, step: int, fill: Fill, whole: bool) -> None:
        """Bring this process's part, if it is wanted, and tell the first one; or tell it, which ends all, why not."""
        del whole
        if processes.hear(_wanted(step), 0) != "yes":
            return
        try:
            files = self._bring(step, fill)
        except Exception as error:
            log.exception("the part of this process of checkpoint %d could not be written", step)
            processes.tell(_part(step), json.dumps({"error": str(error)}))
            return
        processes.tell(_part(step), json.dumps({"files": {name: astuple(entry) for name, entry in files.items()}}))

    def _bring(self, step: int, fill: Fill) -> dict[str, Entry]:
        """Write this process's part of a checkpoint and bring it to where the checkpoint is made."""
        folder = self._folder / str(step)
        with disk_errors(f"writing checkpoint {step} to {folder}"):
            folder.mkdir(parents=True)
            fill(folder)
        return self._insist(lambda: self._shelf.storage.add(folder, self._shelf.paths.checkpoint(step)))

    def _insist(self, call: Callable[[], Answer]) -> Answer:
        """Return what a call returns, repeating it as long as the storage is out of reach."""
        pause = 1.0
        while True:
            try:
                return call()
            except Unreachable as error:
                self._shelf.warn(f"{error}; next try in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _wanted(step: int) -> str:
    return f"checkpoint/{step}/wanted"


def _part(step: int) -> str:
    return f"checkpoint/{step}/part"


def _heard(step: int, process: int) -> dict[str, Entry]:
    """Return the files that another process has brought; raise TemporaryError when it could not."""
    said: dict[str, Any] = json.loads(processes.hear(_part(step), process))
    if "error" in said:
        raise TemporaryError(f"process {process} could not write its part of checkpoint {step}: {said['error']}")
    return {name: Entry(*entry) for name, entry in said["files"].items()}
