"""Watches runs until they end and shows how they stand: bars on a terminal, now and then a line elsewhere.

Everything goes to stderr; stdout is for data.
"""

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from pi05.errors import TemporaryError
from pi05ctl.cli import terminal
from pi05ctl.errors import Unreachable
from pi05ctl.runs.status import Look, RunStatus
from pi05ctl.views import tables

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Show = Callable[[Sequence[RunStatus]], None]
POLL = 0.5
LINE_EVERY = 5.0
"""Seconds between two lines of the same run without a terminal."""


def follow(
    look: Look,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    timeout: float | None = None,
    show: Show | None = None,
    poll: float = POLL,
    complain: Callable[[str], None] | None = None,
) -> Sequence[RunStatus] | None:
    """Return how the runs ended, or None when the timeout came first.

    A cluster or bucket that does not answer is asked again: the runs go on meanwhile.

    Args:
        look: How they stand now.
        clock: Seconds.
        sleep: Waits for seconds.
        timeout: Seconds to wait at most.
        show: Called with every new state of affairs.
        poll: Seconds between two looks.
        complain: Called with the reason when a look fails that may succeed later.
    """
    until = None if timeout is None else clock() + timeout
    while True:
        try:
            statuses, shown = look()
        except (Unreachable, TemporaryError) as error:
            if complain is not None:
                complain(f"{error} (asked again)")
        else:
            if show is not None:
                show(shown)
            if all(status.ended for status in statuses):
                return statuses
        if until is not None and clock() >= until:
            return None
        sleep(poll)


@contextmanager
def display(clock: Callable[[], float], stream: TextIO = sys.stderr) -> Generator[Show]:
    """Yield what shows statuses: a bar a run on a terminal, lines otherwise."""
    if not stream.isatty():
        yield _Lines(stream, clock)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:8}"),
        TextColumn("{task.fields[state]:9}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[text]}", markup=False),  # a reason may have brackets
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        yield _Bars(progress)


class _Bars:
    """One bar a run."""

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, statuses: Sequence[RunStatus]) -> None:
        for status in statuses:
            if status.run not in self._bars:
                bar = self._progress.add_task(status.kind, total=None, state="", text="")
                self._bars[status.run] = bar
            waits = status.state in ("Pending", "Queued", "Starting", "Retrying")
            self._progress.update(
                self._bars[status.run],
                # Without a total the bar pulses; one that waits for its turn stands still.
                total=status.total or (1 if waits or status.ended else None),
                completed=(status.step or 0) if status.total else (1 if status.state == "Done" else 0),
                state="" if status.state == "Pending" else status.state,
                text=describe(status),
            )


class _Lines:
    """A line when a state changes, and every few seconds when only the progress does."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._said: dict[str, tuple[str, int | None, float]] = {}

    def __call__(self, statuses: Sequence[RunStatus]) -> None:
        now = self._clock()
        for status in statuses:
            state, step, at = self._said.get(status.run, ("Pending", None, now))
            moved = status.step != step and now - at >= LINE_EVERY
            if status.state != state or moved:
                self._said[status.run] = (status.state, status.step, now)
                self._stream.write(f"{status.run}  {status.state}  {describe(status)}".rstrip() + "\n")
                self._stream.flush()


def describe(status: RunStatus) -> str:
    """Return progress, metric, speed and time left in one line."""
    left = f"{tables.duration(status.left)} left" if status.left is not None else ""
    speed = tables.speed(status.seconds_per_step)
    each = f"{speed} each" if speed and not status.ended else ""
    why = "" if status.state in ("Done", "Pending") else status.why
    parts = (tables.progress(status), tables.metric(status), each, left, why)
    return terminal.plain("  ".join(part for part in parts if part))
