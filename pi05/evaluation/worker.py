"""One simulator process of an evaluation: `python -m pi05.evaluation.worker FD`; workers.py starts it and says why so.

Reads (method, arguments) from the pipe FD and answers (True, value) or (False, error) until the pipe ends. stdout
belongs to the parent's events, so what libraries print goes to stderr.
"""

import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from pi05.errors import JobError
from pi05.evaluation.course import Environment, Station


class Worker:
    """What the parent may ask for: to `open` environments, to `call` a function, and what a `Station` does."""

    def __init__(self) -> None:
        self._station = Station((), images=False)

    def answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Return the answer to one question."""
        if method == "open":
            return self._open(*arguments)
        if method == "call":
            return arguments[0](*arguments[1:])
        return getattr(self._station, method)(*arguments)

    def _open(self, make: Callable[[], Environment], environments: int, images: bool) -> None:
        self._station = Station([make() for _ in range(environments)], images)


def serve(pipe: Connection) -> None:
    """Answer until the parent closes the pipe or is gone."""
    worker = Worker()
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, worker.answer(method, arguments)
        except Exception as error:
            answer = False, portable(error)
        try:
            pipe.send(answer)
        except OSError:
            return


def portable(error: Exception) -> Exception:
    """Return an error that can cross the pipe, its traceback on stderr unless it is one with words for people."""
    if not isinstance(error, JobError):
        traceback.print_exception(error)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main() -> None:
    """Serve the pipe named on the command line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
