"""Starts and stops the cluster's processes. Each has a session of its own, a log, and a file that names it exactly."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pi05ctl.runs.process import identity
from tests.cluster.harness.layout import STATE


def start(name: str, *line: object) -> None:
    """Start a process that outlives this one, in a session of its own; its output goes to NAME.log."""
    words = [str(word) for word in line]
    with (STATE / f"{name}.log").open("ab") as log:
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
        ]
        number = os.posix_spawnp(words[0], words, os.environ, file_actions=streams, setsid=True)
    _file(name).write_text(f"{number} {identity(number)}")


def pid(name: str) -> int | None:
    """Return the process id of a started process; None when it is gone, whoever has its number now."""
    try:
        number, _, known = _file(name).read_text().partition(" ")
    except FileNotFoundError:
        return None
    return int(number) if known and identity(int(number)) == known else None


def stop(name: str, seconds: float = 15.0, first: signal.Signals = signal.SIGTERM) -> None:
    """End a process, in kindness first; return when it is gone."""
    for sign, patience in ((first, seconds), (signal.SIGKILL, 10.0)):
        number = pid(name)
        if number is None:
            break
        os.kill(number, sign)
        with contextlib.suppress(TimeoutError):
            until(f"{name} to end", lambda: pid(name) is None, patience)
    _file(name).unlink(missing_ok=True)


def started() -> list[str]:
    """Return the names of all processes that were started and not stopped, whether or not they live."""
    return sorted(path.stem for path in STATE.glob("*.pid"))


def until(what: str, fact: Callable[[], object], seconds: float) -> None:
    """Return when `fact` holds; raise TimeoutError when it does not come to hold in time."""
    end = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}; the logs are in {STATE}")
        time.sleep(0.05)


def _file(name: str) -> Path:
    return STATE / f"{name}.pid"
