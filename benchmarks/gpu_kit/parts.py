"""Parts of a benchmark, each in a process and with a share of the time of its own -> rows of figures.

What crashes, hangs or fills the device's memory ends its own part alone: its rows so far are kept, the reason is one
more, and the next part starts on a device that is free again. Seconds that a part leaves go to those after it.
"""

import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu_kit.sizes import Sizes

Row = dict[str, str | float | int]
Case = tuple[str, Callable[[], Row]]
"""What is measured, in words, and what measures it."""


class NotHere(Exception):
    """A part cannot run here, and that is no failure; the message says what it lacks."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: As in the line of JSON.
        seconds: Its share of the time.
        cases: What it measures, one after the other.
    """

    name: str
    seconds: float
    cases: Callable[[Any], Iterable[Case]]


def run(parts: Iterable[Part], sizes: Sizes, say: Callable[[str, Row], object]) -> dict[str, list[Row]]:
    """Run parts in turn and return the rows of each; `say` is told every row when it is there."""
    end, rows = time.monotonic(), {}
    for part in parts:
        end += part.seconds
        rows[part.name] = []
        for row in _rows(part, sizes, end):
            rows[part.name].append(row)
            say(part.name, row)
    return rows


def in_a_child(call: Callable[[], Row]) -> Row:
    """Return what a call returns in a process of its own, which may touch the device."""
    [row] = _rows(Part("", 0, lambda _: [("", call)]), None, time.monotonic() + 100)
    return {name: value for name, value in row.items() if name != "what"}


def _rows(part: Part, sizes: Sizes | None, end: float) -> Iterator[Row]:
    """Run a part in a child and yield what it sends, until it is done, dead or late.

    A child is a fork: what is imported already is not imported again, and no device has been touched before.
    """
    ours, its = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(part, sizes, its))
    begin = time.monotonic()
    child.start()
    its.close()
    try:
        while ours.poll(max(0.0, end - time.monotonic())):
            yield ours.recv()
        child.kill()
        yield {"what": "the rest", "stopped": f"its time was over after {time.monotonic() - begin:.0f} s"}
    except EOFError:
        child.join()
        if child.exitcode:
            yield {"what": "the rest", "failed": f"the process ended with {_words(child.exitcode)}"}
    finally:
        child.kill()
        child.join()


def _words(code: int) -> str:
    return f"exit code {code}" if code > 0 else signal.Signals(-code).name


def _child(part: Part, sizes: Sizes | None, rows: Connection) -> None:
    """Measure one case after the other; one that fails is a row, too."""
    try:
        for what, measure in part.cases(sizes):
            rows.send({"what": what} | _measured(measure))
    except NotHere as error:
        rows.send({"what": "all", "not here": str(error)})
    except Exception as error:
        rows.send({"what": "all", "failed": _first_line(error)})


def _measured(measure: Callable[[], Row]) -> Row:
    try:
        row = measure()
        return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
    except Exception as error:
        traceback.print_exc()
        return {"failed": _first_line(error)}


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
