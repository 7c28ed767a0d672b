"""Checkpoints on their way to storage: turns a folder that the trainer fills into an artefact and an event.

On this machine a checkpoint is written where it belongs. To a bucket it goes in the background, while training goes on:

    step 1000   |fill a local folder|                    the step waits for this, and for nothing else
                                    |upload, verify|event|delete what is superseded|
    step 2000                            |fill|   waits for its turn

A bucket out of reach is tried again and again. What has not been uploaded when the next checkpoint is ready makes room
for it, unless `keep_every` keeps it. At the end everything that waits is uploaded: a job that has ended well has its
checkpoints in the bucket.
"""

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pi05.errors import TERMINATED, JobError, TemporaryError, Unreachable
from pi05.events import EventWriter
from pi05.storage import FileStorage, RunPaths, Storage, disk_errors
from pi05.training import checkpoint, processes

_LONGEST_PAUSE = 60.0
"""Seconds between two tries to upload, after growing ones."""

log = logging.getLogger("pi05")


class Surroundings(Protocol):
    """What saving needs of the process it runs in."""

    storage: Storage
    paths: RunPaths
    events: EventWriter


class Saver(Protocol):
    """Where the trainer leaves its checkpoints; at its end all of them are in storage."""

    def __enter__(self) -> "Saver": ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object, /) -> None: ...

    def stage(self, step: int) -> AbstractContextManager[Path]:
        """Yield an empty folder that becomes the checkpoint of a step."""
        ...


def saver(around: Surroundings, keep_every: int, total: int) -> Saver:
    """Return the saver for a storage; of several processes the first alone saves.

    Args:
        around: The storage, and the run's names and voice.
        keep_every: Multiples of this step are kept beside the last checkpoint.
        total: Last step, for events.
    """
    shelf = _Shelf(around, keep_every, total)
    here = isinstance(around.storage, FileStorage) or not processes.leads()
    return _Here(shelf) if here else _InBackground(shelf)


class _Shelf:
    """The checkpoints of one run in storage, and what is said of them."""

    def __init__(self, around: Surroundings, keep_every: int, total: int) -> None:
        self.storage, self.paths, self._events = around.storage, around.paths, around.events
        self.keep_every, self._total = keep_every, total

    def announce(self, step: int) -> None:
        """Say that a checkpoint is complete."""
        self._events.emit("checkpoint", step=step, total=self._total, unit="steps")

    def warn(self, message: str) -> None:
        """Say that something is not as it should be, and training goes on."""
        log.warning("%s", message)
        self._events.emit("warning", message=message)

    def tidy(self) -> None:
        """Delete what retention does not keep; the newest complete checkpoint always stays."""
        saved = checkpoint.steps(self.storage, self.paths.run)
        for old in checkpoint.superseded(saved, self.keep_every):
            self.storage.delete(self.paths.checkpoint(old))


class _Here:
    """Checkpoints in a folder of this machine: complete when the step goes on."""

    def __init__(self, shelf: _Shelf) -> None:
        self._shelf = shelf

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @contextlib.contextmanager
    def stage(self, step: int) -> Iterator[Path]:
        with self._shelf.storage.stage(self._shelf.paths.checkpoint(step)) as folder:
            yield folder
        self._shelf.announce(step)
        self._shelf.tidy()


class _InBackground:
    """Checkpoints that are uploaded by a thread, the newest first."""

    def __init__(self, shelf: _Shelf) -> None:
        self._shelf = shelf
        self._folder = shelf.storage.scratch(shelf.paths.checkpoints)
        self._waiting: dict[int, Path] = {}
        self._current: int | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoints")

    def __enter__(self) -> Saver:
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
        if self._error is not None and (error is None or getattr(error, "exit_code", None) == TERMINATED):
            raise self._error

    @contextlib.contextmanager
    def stage(self, step: int) -> Iterator[Path]:
        """Yield a local folder, and have it uploaded when the block ends.

        Raises:
            TemporaryError: The disk is full, and no checkpoint waits for its upload, after which there would be room.
        """
        if self._error is not None:
            raise self._error
        folder = self._folder / str(step)
        try:
            with disk_errors(f"writing checkpoint {step} to {folder}"):
                folder.mkdir(parents=True)
                yield folder
        except TemporaryError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if not self._waiting:
                raise
            self._shelf.warn(f"checkpoint {step} is left out while {sorted(self._waiting)} wait for upload: {error}")
            return
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._change:
            self._waiting[step] = folder
            superseded = self._superseded(step)
            self._change.notify_all()
        for old in superseded:
            self._shelf.warn(f"uploads are behind: checkpoint {old} is dropped for {step}, which is newer")

    def _superseded(self, newest: int) -> list[int]:
        """Drop what waits and is neither the newest, nor kept for its number, nor being uploaded."""
        old = [step for step in self._waiting if step not in (newest, self._current) and step % self._shelf.keep_every]
        for step in old:
            shutil.rmtree(self._waiting.pop(step), ignore_errors=True)
        return old

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
            self._error = error

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
        if not storage.exists(key):
            storage.publish(self._waiting[step], key)
        if problems := storage.verify(key):
            storage.delete(key)
            raise Unreachable(f"it arrived damaged ({'; '.join(problems)})")
        with self._change:
            shutil.rmtree(self._waiting.pop(step), ignore_errors=True)
        self._shelf.announce(step)
        with contextlib.suppress(Unreachable):  # tidied after the next one
            self._shelf.tidy()
