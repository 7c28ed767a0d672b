"""What training needs of the process it runs in, and how it says there that something is not as it should be."""

import logging
from typing import NoReturn, Protocol

from pi05.events import EventWriter
from pi05.storage import RunPaths, Storage
from pi05.training import processes

log = logging.getLogger("pi05")


class Surroundings(Protocol):
    """Where a training finds and leaves things, how it speaks, and whether it shall stop.

    Attributes:
        storage, paths: The storage, and the run's names in it.
        events: The run's voice.
    """

    storage: Storage
    paths: RunPaths
    events: EventWriter

    @property
    def stopping(self) -> bool:
        """Whether somebody asked for an end."""
        ...

    def stop(self) -> NoReturn:
        """End; everything worth keeping is kept."""
        ...

    def hung(self, message: str) -> NoReturn:
        """End at once, from another thread: the work does not go on."""
        ...


def warn(events: EventWriter, message: str) -> None:
    """Say that something is not as it should be, and training goes on; an event of the process that leads."""
    log.warning("%s", message)
    if processes.leads():
        events.emit("warning", message=message)
