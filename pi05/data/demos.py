"""Collects demonstrations: turns seeds into replayed, successful episodes, the same ones whatever the workers.

Blocks of seeds are planned by processes of the planner's own environment (pi05.data.planner) and replayed here, in
the environment that will evaluate: an episode counts when its replay succeeds. Complete blocks stay in the work
folder, so a job that was killed goes on where it was. Knows nothing of storage or of how a dataset is written.

Several machines share the work as shards: block b belongs to shard b mod N. All put what they planned on a shelf;
shard 0 replays in seed order (`collect` with a `Team`), and plans itself what a shard that is not at work has left;
the others (`assist`) end when what all have planned should be enough.

    shard 0   plan 0 . . . . . plan 4 . . . . plan 8 . plan 6 (shard 2 is gone) ...
    shard 1   plan 1 . . . . . plan 5 . . . . plan 9 .        shelf: 0 1 2 3 4 5 7 ...  -> shard 0 replays 0, 1, 2 ...
    shard 2   plan 2 . . . killed
    shard 3   plan 3 . . . . . plan 7 . . . .
"""

import contextlib
import io
import json
import logging
import math
import os
import shutil
import subprocess
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, Self, cast

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


@dataclass(frozen=True)
class Share:
    """Which blocks of seeds are one shard's.

    Attributes:
        shard, shards: The part, and how many there are.
        first_seed, block: First seed of all, and seeds a block.
    """

    shard: int
    shards: int
    first_seed: int
    block: int

    def owner(self, seeds: range) -> int:
        """Return the shard that a block belongs to."""
        return (seeds.start - self.first_seed) // self.block % self.shards

    def mine(self, seeds: range) -> bool:
        """Return whether a block is this shard's."""
        return self.owner(seeds) == self.shard


class Planner(Protocol):
    """Plans blocks of seeds, ahead of whoever asks."""

    def start(self, seeds: range) -> None:
        """See that a block is planned in the background, by whomever."""
        ...

    def block(self, seeds: range, check_stop: Callable[[], None]) -> Block:
        """Return a block, waiting until it is planned and calling `check_stop` meanwhile."""
        ...


class Shelf(Protocol):
    """Where shards find each other's blocks, each under the name of its seeds."""

    def has(self, name: str) -> bool: ...

    def get(self, name: str) -> bytes | None: ...

    def put(self, name: str, content: bytes) -> None: ...


def collect(
    task: Task,
    convention: Convention,
    config: DemosConfig,
    planner: Planner,
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


def assist(
    task: Task,
    config: DemosConfig,
    planner: Planner,
    share: Share,
    on_block: Callable[[int, int], None],
    check_stop: Callable[[], None],
) -> None:
    """Plan the blocks that are ours, until those of all shards should hold the demonstrations that are wanted.

    Args:
        task: Of the dataset.
        config: How many and from which seed.
        planner: Plans blocks of seeds.
        share: Which blocks are ours.
        on_block: Called after each block with how many of ours are planned, and how many should be in the end.
        check_stop: Called at least every half second while waiting; what it raises ends the work.
    """
    count = config.count or task.demos
    limit = count * config.max_attempts_per_demo
    _check_seeds(config.first_seed, limit)
    done: set[range] = set()
    kept = tried = 0
    while True:
        wanted = _blocks(config, config.first_seed, count, kept, tried)
        ours = [seeds for seeds in wanted if share.mine(seeds) and seeds.start < config.first_seed + limit]
        missing = [seeds for seeds in ours if seeds not in done]
        if done:
            on_block(len(done), len(done) + len(missing))
        if not missing:
            return
        for seeds in missing:
            planner.start(seeds)
        block = planner.block(missing[0], check_stop)
        kept, tried = kept + len(block.recordings), tried + len(block.attempts)
        done.add(missing[0])


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
        shelf: Where blocks come from that another shard has planned, and go to for the others.

    Raises:
        ConfigError: The interpreter is missing or lacks a module.
    """

    def __init__(
        self, python: str, task: Task, robot: str, folder: Path, workers: int, shelf: Shelf | None = None
    ) -> None:
        check_planner(python)
        self._command = [python, "-m", "pi05.data.planner", "--task", task.name, "--robot", robot]
        self._folder, self._shelf = folder, shelf
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

    def shelved(self, seeds: range) -> bool:
        """Return whether some shard has planned a block already."""
        return self._shelf is not None and self._shelf.has(_name(seeds))

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
        """Return a block from the work folder or the shelf, or from a process; one that dies is replaced once."""
        path = self._folder / f"{_name(seeds)}.h5"
        if block := read_block(path, seeds) or self._fetch(path, seeds):
            return block
        if not self._ask(path, seeds):
            self._ask(path, seeds, last=True)
        block = read_block(path, seeds)
        if block is None:
            raise TemporaryError(f"{path} is damaged directly after it was written; check the disk and run again")
        if self._shelf:
            self._shelf.put(path.stem, _pack(path))
        return block

    def _fetch(self, path: Path, seeds: range) -> Block | None:
        """Return a block from the shelf, as if it had been planned here; None when there is no whole one."""
        content = self._shelf.get(path.stem) if self._shelf else None
        if content is not None:
            _unpack(content, path)
        return read_block(path, seeds)

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


class Team:
    """The planners of all shards, as shard 0 uses them: its own pool plans what is its own, the shelf has the rest.

    A block whose shard is not at work (it has not started, has ended or was killed) is planned here, too: first the
    last ones, because a shard that starts late begins with the first.

    Args:
        pool: The planners of this process, with the shelf where blocks of the others appear.
        share: Which blocks are ours.
        at_work: Whether a shard is running.
        period: Seconds between two looks at the shelf.
    """

    def __init__(self, pool: PlannerPool, share: Share, at_work: Callable[[int], bool], period: float) -> None:
        self._pool, self._share, self._at_work, self._period = pool, share, at_work, period
        self._ahead: set[range] = set()
        self._taken: set[range] = set()

    def start(self, seeds: range) -> None:
        """Plan a block of our own in the background; remember one of another shard."""
        if self._share.mine(seeds) or seeds in self._taken:
            self._pool.start(seeds)
        else:
            self._ahead.add(seeds)

    def block(self, seeds: range, check_stop: Callable[[], None]) -> Block:
        """Return a block, waiting for its shard as long as that is at work."""
        self.start(seeds)
        while seeds in self._ahead:
            if self._pool.shelved(seeds):
                self._take([seeds])
            elif self._at_work(owner := self._share.owner(seeds)):
                _pause(self._period, check_stop)
            else:
                self._take([ahead for ahead in self._ahead if self._share.owner(ahead) == owner])
        return self._pool.block(seeds, check_stop)

    def _take(self, blocks: list[range]) -> None:
        """Have our own pool fetch or plan blocks of other shards."""
        for seeds in sorted(blocks, key=lambda seeds: -seeds.start):
            self._ahead.discard(seeds)
            self._taken.add(seeds)
            self._pool.start(seeds)


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


def _name(seeds: range) -> str:
    """Return the name of a block's files and of its place on the shelf."""
    return f"{seeds.start:07d}-{seeds.stop - 1:07d}"


def _pack(path: Path) -> bytes:
    """Return a block's two files as one, with checksums; the content is compressed already."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for part in (path, path.with_suffix(".json")):
            archive.write(part, part.name)
    return content.getvalue()


def _unpack(content: bytes, path: Path) -> None:
    """Write a block's two files, the json last; a damaged content writes nothing that would be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for part in (path, path.with_suffix(".json")):
                part.write_bytes(archive.read(part.name))
    except (zipfile.BadZipFile, KeyError) as error:
        log.warning("block %s on the shelf is damaged (%s); it is planned again", path.stem, error)


def _pause(seconds: float, check_stop: Callable[[], None]) -> None:
    """Wait, calling `check_stop` at least every half second."""
    end = time.monotonic() + seconds
    check_stop()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _PERIOD))
        check_stop()


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
    planner: Planner,
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


def _plan_ahead(planner: Planner, config: DemosConfig, first: int, count: int, collection: Collection) -> None:
    """Start the blocks from seed `first` on that the missing demonstrations take at the yield so far."""
    kept, tried = len(collection.demos), len(collection.attempts)
    for seeds in _blocks(config, first, count - kept, kept, tried):
        planner.start(seeds)


def _blocks(config: DemosConfig, first: int, missing: int, kept: int, tried: int) -> list[range]:
    """Return the blocks from seed `first` on that `missing` demonstrations take when `kept` came of `tried` seeds.

    The yield starts from ten attempts of which nine succeeded.
    """
    expected_yield = (kept + 9) / (tried + 10)
    blocks = max(math.ceil(missing / (config.block * expected_yield)), 1)
    return [range(begin, begin + config.block) for begin in range(first, first + blocks * config.block, config.block)]


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
