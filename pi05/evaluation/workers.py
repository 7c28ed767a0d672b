"""Stations in processes of their own, so that physics and rendering of several environments run in parallel.

    parent: policy, in batches       worker i: `python -m pi05.evaluation.worker`, environments i, i + W, i + 2W, ...
        |  ("advance", actions)  ----------------->  steps them, renders what the policy will look at
        |  <-----------------  looks (states, images)

A worker ends when its pipe does, so kill -9 of the parent leaves none behind. It ignores SIGINT and SIGTERM: the parent
saves, and closes the pipe. Workers are programs instead of forks, because JAX has threads by then, and instead of
multiprocessing's own, because those would import the parent's main module, and with it JAX.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

import numpy as np

from pi05.errors import JobError, TemporaryError
from pi05.evaluation.course import Environment, Look, Trial

_RENDER_THREADS = "LP_NUM_THREADS"
"""How many threads lavapipe draws with; it takes every core for itself otherwise."""

PATIENCE = 900.0
"""Seconds that an answer may take, far more than any needs: nothing else ends a process that hangs in its renderer."""
_GO_ON = "the episodes that ended are kept and the same command goes on from there"


class Pool:
    """Processes that compute functions.

    Args:
        count: How many, at least one.
    """

    def __init__(self, count: int) -> None:
        self._workers = [_Worker(number, threads=max(cores() // count, 1)) for number in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def map(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield `function(*one)` of each of the arguments in their order, one a process at a time."""
        for begin in range(0, len(arguments), len(self._workers)):
            some = arguments[begin : begin + len(self._workers)]
            yield from self._all("call", [(function, *one) for one in some])

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Ask as many workers as there are arguments at once, and return their answers; raise what the first raised."""
        asked = self._workers[: len(arguments)]
        for worker, given in zip(asked, arguments, strict=True):
            worker.ask(method, given)
        answers = [worker.answer() for worker in asked]  # all of them, or the next question gets an old answer
        for good, value in answers:
            if not good:
                raise value
        return [value for _, value in answers]


class Workers(Pool):
    """A `Fleet` over processes.

    Args:
        make: Makes one environment; called in the worker, so it must be picklable: a function or class of a module, or
            functools.partial of one.
        environments: How many in all.
        workers: How many processes share them; each has at least one.
        images: Whether to render when the policy looks.
    """

    def __init__(self, make: Callable[[], Environment], environments: int, workers: int, images: bool) -> None:
        super().__init__(max(min(workers, environments), 1))
        self._size = environments
        try:
            self._all("open", [(make, len(share), images) for share in self._shares(range(environments))])
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """How many environments there are."""
        return self._size

    def begin(self, seeds: Sequence[int]) -> list[Look]:
        """Begin one episode a seed, at most `size`, and return what they show."""
        return self._joined(self._all("begin", [(share,) for share in self._shares(seeds)]))

    def advance(self, chunks: np.ndarray, look: bool) -> list[Look]:
        """Execute actions (n, steps, 8) in the n episodes, and return what they show then (nothing without `look`)."""
        return self._joined(self._all("advance", [(share, look) for share in self._shares(chunks)]))

    def finish(self) -> list[Trial]:
        """Return the episodes, in the order of their seeds."""
        return self._joined(self._all("finish", [()] * len(self._workers)))

    def _shares(self, items: Any) -> list[Any]:
        """Return every worker's part of one item an episode: round robin, so that a small wave uses all of them."""
        return [items[number :: len(self._workers)] for number in range(len(self._workers))]

    def _joined(self, shares: Sequence[Sequence[Any]]) -> list[Any]:
        """Undo `_shares`."""
        return [shares[place % len(shares)][place // len(shares)] for place in range(sum(map(len, shares)))]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


class _Worker:
    """One process and its pipe."""

    def __init__(self, number: int, threads: int) -> None:
        self._number = number
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pi05.evaluation.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # stderr: stdout belongs to the events
                env={_RENDER_THREADS: str(threads), **os.environ},
            )
        self._pipe = Connection(ours.detach())

    def ask(self, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise self._gone() from error

    def answer(self) -> tuple[bool, Any]:
        """Return True and the answer, or False and what the worker raised."""
        try:
            if self._pipe.poll(PATIENCE):
                return self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        self._process.kill()
        raise TemporaryError(
            f"simulator process {self._number} has not answered for {PATIENCE:.0f} s and was killed; {_GO_ON}"
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self) -> JobError:
        """Return what to raise when the pipe broke."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        code = self._process.poll()
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        killed = code == -signal.SIGKILL  # as the kernel does when memory runs out
        memory = ". If memory ran out, use fewer eval.environments or eval.workers" if killed else ""
        return TemporaryError(f"simulator process {self._number} {how}; {_GO_ON}{memory}")
