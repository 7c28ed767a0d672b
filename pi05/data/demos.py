"""Collects demonstrations: turns seeds into replayed, successful episodes, the same ones whatever the workers.

Blocks of seeds are planned by processes of the planner's own environment (pi05.data.planner) and replayed here, in
the environment that will evaluate: an episode counts when its replay succeeds. Complete blocks stay in the work
folder, so a job that was killed goes on where it was. Knows nothing of storage or of how a dataset is written.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self, cast

import numpy as np

from pi05.config import Convention, DemosConfig
from pi05.data.dataset import Attempt, Demo
from pi05.errors import ConfigError, DataError, TemporaryError
from pi05.simulator import Simulator
from pi05.tasks import DEMO_SEEDS, Task

log = logging.getLogger(__name__)

_SET_UP = "run scripts/quickstart, which sets the planner's environment up"
_NEEDED = ("mplib", "mani_skill", "h5py", "pi05")
_PERIOD = 0.5
"""Seconds between two looks at whether to stop."""
_TAIL = 12
"""Lines of a planner's output that an error repeats."""


@dataclass(frozen=True)
class Recording:
    """An episode as the planner recorded it.

    Attributes:
        seed: Environment seed.
        actions: float32 (T, 8).
        physics: float32 (T + 1, D) an actor or articulation, keyed as in `Simulator.physics`.
    """

    seed: int
    actions: np.ndarray
    physics: dict[str, np.ndarray]


@dataclass(frozen=True)
class Block:
    """Consecutive seeds planned together: every attempt, and the recordings of the successful ones by seed."""

    attempts: tuple[Attempt, ...]
    recordings: dict[int, Recording]


@dataclass(frozen=True)
class Replay:
    """What the main environment made of a recording.

    Attributes:
        demo: States and actions.
        success: Whether the last step succeeded.
        exact: Whether every number of the physical state had the recorded bits at every step.
        difference: Largest absolute difference.
    """

    demo: Demo
    success: bool
    exact: bool
    difference: float


@dataclass
class Collection:
    """Demonstrations in seed order and every attempt up to the last of them."""

    demos: list[Demo] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    inexact: int = 0
    max_difference: float = 0.0


def collect(
    task: Task,
    convention: Convention,
    config: DemosConfig,
    planner: "PlannerPool",
    on_demo: Callable[[Collection], None],
    check_stop: Callable[[], None],
) -> Collection:
    """Return the first `config.count` demonstrations, in seed order, whose replay succeeds.

    Args:
        task, convention: Of the dataset.
        config: How many and from which seed.
        planner: Plans blocks of seeds.
        on_demo: Called after each demonstration that is kept.
        check_stop: Called at least every half second while waiting; what it raises ends the collection.

    Raises:
        ConfigError: The seeds would leave those reserved for demonstrations.
        DataError: Too many seeds failed.
        TemporaryError: A planner process died twice on the same block.
    """
    count = config.count or task.demos
    limit = count * config.max_attempts_per_demo
    _check_seeds(config.first_seed, limit)
    collection = Collection()
    _plan_ahead(planner, config, config.first_seed, count, collection)  # planners import ManiSkill while we do
    simulator = Simulator(task, convention)
    for attempt, recording in _attempts(planner, config, count, collection, check_stop):
        check_stop()
        if len(collection.attempts) == limit:
            raise DataError(_give_up(task, count, collection))
        replayed = replay(simulator, recording) if recording else None
        _judge(collection, attempt, replayed)
        if replayed and replayed.success:
            on_demo(collection)
        if len(collection.demos) == count:
            break
    return collection


def replay(simulator: Simulator, recording: Recording) -> Replay:
    """Step the recorded actions from the recorded seed and compare the physical state at every step."""
    info = simulator.reset(recording.seed)
    states, physics = [], [simulator.physics()]
    for action in recording.actions:
        states.append(simulator.state())
        info = simulator.step(action)
        physics.append(simulator.physics())
    exact, difference = _compare(physics, recording.physics)
    return Replay(Demo(recording.seed, np.stack(states), recording.actions), info.success, exact, difference)


class PlannerPool:
    """Plans blocks in processes of the planner's environment, ahead of whoever asks; use as a context manager.

    Args:
        python: Interpreter of the planner's environment.
        task: Task to plan.
        robot: ManiSkill robot uid.
        folder: Where complete blocks are kept and found again.
        workers: Processes; 0 means one a core.

    Raises:
        ConfigError: The interpreter is missing or lacks a module.
    """

    def __init__(self, python: str, task: Task, robot: str, folder: Path, workers: int) -> None:
        check_planner(python)
        self._command = [python, "-m", "pi05.data.planner", "--task", task.name, "--robot", robot]
        self._folder = folder
        self._threads = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
        self._blocks: dict[range, Future[Block]] = {}
        self._lock = threading.Lock()  # over the three below
        self._started: list[_Process] = []
        self._idle: list[_Process] = []
        self._closed = False

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        for unfinished in self._folder.glob(".*"):  # of a planner that was killed
            shutil.rmtree(unfinished, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._started:
                process.kill()
        self._threads.shutdown(cancel_futures=True)  # a thread that waits for an answer reads its process's end
        for process in self._started:
            process.close()

    def start(self, seeds: range) -> None:
        """Plan a block in the background, unless it is planned or done already."""
        if seeds not in self._blocks:
            self._blocks[seeds] = self._threads.submit(self._plan, seeds)

    def block(self, seeds: range, check_stop: Callable[[], None]) -> Block:
        """Return a block, waiting until it is planned and calling `check_stop` meanwhile."""
        self.start(seeds)
        while not self._blocks[seeds].done():
            check_stop()
            wait([self._blocks[seeds]], timeout=_PERIOD)
        return self._blocks.pop(seeds).result()

    def _plan(self, seeds: range) -> Block:
        """Return a block from the work folder, or from a process; a process that dies is replaced once."""
        path = self._folder / f"{seeds.start:07d}-{seeds.stop - 1:07d}.h5"
        if read_block(path, seeds) is None and not self._ask(path, seeds):
            self._ask(path, seeds, last=True)
        block = read_block(path, seeds)
        if block is None:
            raise TemporaryError(f"{path} is damaged directly after it was written; check the disk and run again")
        return block

    def _ask(self, path: Path, seeds: range, *, last: bool = False) -> bool:
        """Have a process plan a block; return whether it lived to do so, or raise when this was the last try."""
        process = self._process()
        planned = process.plan(seeds, path)
        if planned:
            with self._lock:
                self._idle.append(process)
        elif last or self._closed:
            raise process.error(seeds)
        else:
            log.warning("a planner ended (code %d) while planning seeds %s", process.code, _span(seeds))
        return planned

    def _process(self) -> "_Process":
        """Return an idle process or a new one."""
        with self._lock:
            if self._closed:
                raise TemporaryError("the planners were stopped")
            if self._idle:
                return self._idle.pop()
            process = _Process(self._command, self._folder / f"planner-{len(self._started)}.log")
            self._started.append(process)
            return process


class _Process:
    """One planner process: it plans a block for each line it is sent."""

    def __init__(self, command: list[str], log_file: Path) -> None:
        self._log = log_file
        with log_file.open("wb") as stderr:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0
            )  # a group of its own: Ctrl-C is for the job, which then ends its planners
        self._requests, self._answers = cast(IO[str], self._popen.stdin), cast(IO[str], self._popen.stdout)

    @property
    def code(self) -> int:
        """Exit code, negative for a signal."""
        return self._popen.wait()

    def plan(self, seeds: range, path: Path) -> bool:
        """Have a block planned; return whether the process lived to say that it is complete."""
        try:
            self._requests.write(f"{seeds.start} {len(seeds)} {path}\n")
            self._requests.flush()
        except BrokenPipeError:
            return False
        return self._answers.readline() == f"{path}\n"

    def kill(self) -> None:
        """End the process."""
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        """Close the pipes of a process that ended."""
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # a request it did not read
                pipe.close()

    def error(self, seeds: range) -> TemporaryError | ConfigError:
        """Return why the process ended, in its own last words."""
        tail = " | ".join(self._log.read_text(errors="replace").splitlines()[-_TAIL:])
        message = f"the planner ended twice (code {self.code}) while planning seeds {_span(seeds)}: {tail}"
        if "ModuleNotFoundError" in tail or "ImportError" in tail:
            return ConfigError(f"{message}. The planner's environment is not whole; {_SET_UP}")
        return TemporaryError(f"{message}. If memory ran out, use fewer demos.workers; then run the same command again")


def _span(seeds: range) -> str:
    return f"{seeds[0]} to {seeds[-1]}"


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


def read_block(path: Path, seeds: range) -> Block | None:
    """Return a complete block, or None when it is missing, damaged or of other seeds."""
    import h5py

    try:
        content = json.loads(path.with_suffix(".json").read_bytes())
        attempts = tuple(Attempt.model_validate(attempt) for attempt in content["attempts"])
        with h5py.File(path, "r") as file:
            recordings = [_recording(file, episode) for episode in content["episodes"]]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # h5py raises any of them
        return None
    by_seed = {recording.seed: recording for recording in recordings}
    planned = [attempt.seed for attempt in attempts if attempt.success]
    if [attempt.seed for attempt in attempts] != list(seeds) or list(by_seed) != planned:
        return None
    return Block(attempts, by_seed)


def _recording(file: Any, episode: dict[str, Any]) -> Recording:
    """Return an episode of ManiSkill's h5 file (h5py.File)."""
    group = file[f"traj_{episode['episode_id']}"]
    physics = {
        f"{kind}/{name}": np.asarray(values)
        for kind, actors in group["env_states"].items()
        for name, values in actors.items()
    }
    return Recording(int(episode["episode_seed"]), np.asarray(group["actions"], np.float32), physics)


def _attempts(
    planner: PlannerPool,
    config: DemosConfig,
    count: int,
    collection: Collection,
    check_stop: Callable[[], None],
) -> Iterator[tuple[Attempt, Recording | None]]:
    """Yield every seed's attempt, and its recording when there is one, in order and without end."""
    first = config.first_seed
    while True:
        _plan_ahead(planner, config, first, count, collection)
        block = planner.block(range(first, first + config.block), check_stop)
        for attempt in block.attempts:
            yield attempt, block.recordings.get(attempt.seed)
        first += config.block


def _plan_ahead(planner: PlannerPool, config: DemosConfig, first: int, count: int, collection: Collection) -> None:
    """Start the blocks from seed `first` on that the missing demonstrations take at the yield so far.

    The yield starts from ten attempts of which nine succeeded.
    """
    kept, tried = len(collection.demos), len(collection.attempts)
    expected_yield = (kept + 9) / (tried + 10)
    blocks = max(math.ceil((count - kept) / (config.block * expected_yield)), 1)
    for begin in range(first, first + blocks * config.block, config.block):
        planner.start(range(begin, begin + config.block))


def _judge(collection: Collection, attempt: Attempt, replayed: Replay | None) -> None:
    """Add an attempt, and its demonstration when the replay succeeded."""
    if replayed and not replayed.success:
        attempt = attempt.model_copy(update={"success": False, "reason": "the replay did not succeed"})
    collection.attempts.append(attempt)
    if replayed is None:
        return
    collection.max_difference = max(collection.max_difference, replayed.difference)
    if not replayed.exact:
        log.warning("seed %d: the replay differs from the plan by up to %g", attempt.seed, replayed.difference)
    if replayed.success:
        collection.demos.append(replayed.demo)
        collection.inexact += not replayed.exact


def _compare(physics: list[dict[str, np.ndarray]], recorded: dict[str, np.ndarray]) -> tuple[bool, float]:
    """Return whether two courses have the same bits, and their largest difference (inf when they do not compare)."""
    exact, difference = True, 0.0
    for name in physics[0].keys() | recorded.keys():
        ours = np.stack([state[name] for state in physics]) if name in physics[0] else np.empty(0, np.float32)
        theirs = recorded.get(name, np.empty(0, np.float32))
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return False, math.inf
        exact &= ours.tobytes() == theirs.tobytes()
        difference = max(difference, float(np.abs(ours - theirs).max(initial=0.0)))
    return exact, difference


def _check_seeds(first: int, limit: int) -> None:
    """Raise ConfigError unless all seeds that may be tried are reserved for demonstrations."""
    if first not in DEMO_SEEDS or first + limit - 1 not in DEMO_SEEDS:
        raise ConfigError(
            f"demos.first_seed {first} with up to {limit} attempts leaves the demonstrations' seeds "
            f"{DEMO_SEEDS.start} to {DEMO_SEEDS.stop - 1}; use a lower first_seed"
        )


def _give_up(task: Task, count: int, collection: Collection) -> str:
    """Return what to say when too many seeds failed."""
    reasons = Counter(attempt.reason for attempt in collection.attempts if not attempt.success)
    common = "; ".join(f"{number} times {reason}" for reason, number in reasons.most_common(3))
    return (
        f"{len(collection.attempts)} seeds of {task.name} gave {len(collection.demos)} of {count} demonstrations: "
        f"{common}. Raise demos.max_attempts_per_demo, or see the planner's log in the run's work folder"
    )
