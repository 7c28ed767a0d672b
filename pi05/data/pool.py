"""Makes blocks in processes, ahead of whoever asks: planned in the planner's environment, replayed in this one's.

A thread a worker has one process of each kind, which serve block after block. Complete blocks stay in the work
folder, so a job that was killed goes on where it was; the files of a half-made one are removed at the next start.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Protocol, Self, cast

from pi05.config import Convention
from pi05.data import blocks
from pi05.data.blocks import Block
from pi05.data.lines import refusal
from pi05.data.recordings import Recordings, read_plan
from pi05.data.replay import origin
from pi05.errors import ConfigError, JobError, TemporaryError
from pi05.tasks import Task

log = logging.getLogger(__name__)

Seeds = Sequence[int]
"""Of a block, increasing; hashable: a range or a tuple."""

PERIOD = 0.5
"""Seconds between two looks at whether to stop."""
PATIENCE = 300.0
"""Seconds a seed that a block may take, far more than any needs: solvers and renderers may hang."""
_SET_UP = "run scripts/quickstart, which sets the planner's environment up"
_NEEDED = ("mplib", "mani_skill", "h5py", "pi05")
_NO_MEMORY = ("MemoryError", "bad_alloc", "Cannot allocate memory")
"""What a process says last when there was none left."""


class Shelf(Protocol):
    """Where shards find each other's blocks, each under the name of its seeds."""

    def has(self, name: str) -> bool: ...

    def get(self, name: str) -> bytes | None: ...

    def put(self, name: str, content: bytes) -> None: ...


class Planners:
    """Makes blocks, ahead of whoever asks; use as a context manager.

    Args:
        python: Interpreter of the planner's environment.
        task, convention: Of the blocks.
        folder: Where complete blocks are kept and found again.
        workers: Blocks made at once; 0 means one a core.
        shelf: Where blocks come from that another shard has made, and go to for the others.
        source: Recordings to replay instead of planning.
        hold, disturb: Of the demonstrations (`DemosConfig`).
        replayer: Interpreter of the environment that replays.

    Raises:
        ConfigError: The interpreter is missing or lacks a module, or cameras have no renderer.
    """

    def __init__(
        self,
        python: str,
        task: Task,
        convention: Convention,
        folder: Path,
        workers: int,
        shelf: Shelf | None = None,
        source: Recordings | None = None,
        hold: int = 0,
        disturb: float = 0.0,
        replayer: str = sys.executable,
    ) -> None:
        if not source:
            check_planner(python)
        self._origin = origin(task, convention, source.identity if source else "", hold, disturb)
        self._folder, self._shelf, self._source = folder, shelf, source
        plan = [python, "-m", "pi05.data.planner", "--task", task.name, "--robot", convention.robot]
        replay = [replayer, "-m", "pi05.data.replay", "--task", task.name]
        replay += ["--convention", convention.model_dump_json()] + (["--source", str(source.path)] if source else [])
        replay += ["--hold", str(hold), "--disturb", str(disturb)]
        self._planners = _Crew("planner", plan, folder)
        self._replayers = _Crew("replayer", replay, folder)
        self._threads = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
        self._blocks: dict[Seeds, Future[Block]] = {}

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self._folder.glob(".*"):  # of a process that was killed; what it started may still be at it
            if unfinished.is_dir():
                shutil.rmtree(unfinished, ignore_errors=True)
            else:
                unfinished.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._planners.kill()
        self._replayers.kill()
        self._threads.shutdown(cancel_futures=True)  # a thread that waits for an answer reads its process's end
        self._planners.close()
        self._replayers.close()

    def shelved(self, seeds: Seeds) -> bool:
        """Return whether some shard has made a block already."""
        return self._shelf is not None and self._shelf.has(_name(seeds))

    def start(self, seeds: Seeds) -> None:
        """Make a block in the background, unless that is done already."""
        if seeds not in self._blocks:
            self._blocks[seeds] = self._threads.submit(self._make, seeds)

    def block(self, seeds: Seeds, check_stop: Callable[[], None]) -> Block:
        """Return a block, waiting until it is made and calling `check_stop` meanwhile."""
        self.start(seeds)
        while not self._blocks[seeds].done():
            check_stop()
            wait([self._blocks[seeds]], timeout=PERIOD)
        return self._blocks.pop(seeds).result()

    def _make(self, seeds: Seeds) -> Block:
        """Return a block from the work folder or the shelf, or make it."""
        path = self._folder / f"{_name(seeds)}.parquet"
        if block := self._read(path, seeds) or self._fetch(path, seeds):
            return block
        self._replayers.prepare()  # it imports ManiSkill while the planner plans
        plan = self._folder / f"{_name(seeds)}-plan.h5"
        if not self._source and read_plan(plan, seeds) is None:
            self._planners.ask(f"{seeds[0]} {len(seeds)} {plan}", str(plan), seeds)
        asked = {"plan": str(plan), "seeds": list(seeds), "out": str(path)}
        self._replayers.ask(json.dumps(asked), str(path), seeds)
        block = self._read(path, seeds)
        if block is None:
            raise TemporaryError(f"{path} is damaged directly after it was written; check the disk and run again")
        for file in (plan, plan.with_suffix(".json")):
            file.unlink(missing_ok=True)
        if self._shelf:
            self._shelf.put(path.stem, blocks.pack(block))
        return block

    def _fetch(self, path: Path, seeds: Seeds) -> Block | None:
        """Return a block from the shelf, as if it had been made here; None when there is no whole one."""
        content = self._shelf.get(path.stem) if self._shelf else None
        if content is None:
            return None
        blocks.unpack(content, path)
        return self._read(path, seeds)

    def _read(self, path: Path, seeds: Seeds) -> Block | None:
        return blocks.read_block(path, seeds, self._origin)


class _Crew:
    """Processes of one kind, started when they are needed.

    Args:
        what: A planner or a replayer.
        command: Of a process.
        folder: Where their logs go.
    """

    def __init__(self, what: str, command: list[str], folder: Path) -> None:
        self._what, self._command, self._folder = what, command, folder
        self._lock = threading.Lock()  # over the three below
        self._started: list[_Process] = []
        self._idle: list[_Process] = []
        self._closed = False

    def prepare(self) -> None:
        """See that there is an idle process."""
        self._give(self._take())

    def ask(self, request: str, answer: str, seeds: Seeds) -> None:
        """Have a process do what a line asks for; one that dies or hangs is replaced once.

        Raises:
            JobError: What it refuses, in its own words; or the second one died, too.
        """
        for last in (False, True):
            process = self._take()
            if process.ask(request, answer, PATIENCE * len(seeds)):
                self._give(process)
                return
            if process.refused:
                raise process.refused
            if last or self._closed:
                raise process.error(self._what, seeds)
            log.warning("a %s ended (%s) at seeds %s", self._what, process.how, _span(seeds))

    def kill(self) -> None:
        """End all processes, and start no more."""
        with self._lock:
            self._closed = True
            for process in self._started:
                process.kill()

    def close(self) -> None:
        """Close the pipes of the processes that ended."""
        for process in self._started:
            process.close()

    def _take(self) -> "_Process":
        """Return an idle process or a new one."""
        with self._lock:
            if self._closed:
                raise TemporaryError(f"the {self._what}s were stopped")
            if self._idle:
                return self._idle.pop()
            process = _Process(self._command, self._folder / f"{self._what}-{len(self._started)}.log")
            self._started.append(process)
            return process

    def _give(self, process: "_Process") -> None:
        with self._lock:
            self._idle.append(process)


class _Process:
    """A process that does a piece of work for each line it is sent."""

    def __init__(self, command: list[str], log_file: Path) -> None:
        self._log = log_file
        with log_file.open("wb") as stderr:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0
            )  # a group of its own: Ctrl-C is for the job, which then ends its processes
        self._requests, self._answers = cast(IO[str], self._popen.stdin), cast(IO[str], self._popen.stdout)
        self._hung = ""
        self.refused: JobError | None = None
        """Why it ended, when that is a reason it could name."""

    @property
    def how(self) -> str:
        """How it ended: its exit code, negative for a signal, or that it hung."""
        return self._hung or f"code {self._popen.wait()}"

    def ask(self, request: str, answer: str, seconds: float) -> bool:
        """Send a line; return whether the process lived to give the answer, for which it has some seconds."""
        end = threading.Timer(seconds, self._give_up, [seconds])
        end.start()
        try:
            self._requests.write(f"{request}\n")
            self._requests.flush()
            given = self._answers.readline()
            self.refused = refusal(given)
            return given == f"{answer}\n"
        except BrokenPipeError:
            self.refused = refusal(self._answers.readline())
            return False
        finally:
            end.cancel()

    def _give_up(self, seconds: float) -> None:
        self._hung = f"no answer for {seconds:.0f} s, killed"
        self.kill()

    def kill(self) -> None:
        """End the process."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """Close the pipes of a process that ended."""
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # a request it did not read
                pipe.close()

    def error(self, what: str, seeds: Seeds) -> JobError:
        """Return why the process ended, in its own last words.

        Another start may do better when it was killed or hung, not when Python ended it.
        """
        lines = self._log.read_text(errors="replace").splitlines()
        words = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        message = f"the {what} ended twice ({self.how}) at seeds {_span(seeds)}: {words}"
        if any(word in words for word in ("ModuleNotFoundError", "ImportError", "No module named")):
            return ConfigError(f"{message}. The {what}'s environment is not whole; {_SET_UP}")
        code = self._popen.wait()
        if (code == -signal.SIGKILL and not self._hung) or any(word in words for word in _NO_MEMORY):
            return TemporaryError(f"{message}. Memory ran out: run the same command again with fewer demos.workers")
        if code < 0:
            return TemporaryError(f"{message}; run the same command again. Its log: {self._log}")
        return JobError(f"{message}. Its log: {self._log}")


def check_planner(python: str) -> None:
    """Raise ConfigError unless `python` runs and its environment has the planner and numpy < 2."""
    script = (
        "import importlib.util as u, importlib.metadata as m;"
        f"print(*[n for n in {_NEEDED} if u.find_spec(n) is None],"
        "*['numpy<2'] * (m.version('numpy')[:2] != '1.'))"
    )
    try:
        result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise ConfigError(f"planner_python {python!r} does not run ({reason}); {_SET_UP}") from error
    if missing := result.stdout.split():
        raise ConfigError(f"planner_python {python!r} lacks {', '.join(missing)}; {_SET_UP}")


def _name(seeds: Seeds) -> str:
    """Return the name of a block's files and of its place on the shelf."""
    return f"{seeds[0]:07d}-{seeds[-1]:07d}"


def _span(seeds: Seeds) -> str:
    return f"{seeds[0]} to {seeds[-1]}"
