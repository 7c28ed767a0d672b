"""Collects demonstrations: turns seeds into successful episodes, the same ones whatever the workers and shards.

Blocks of seeds are planned and replayed by processes (pi05.data.pool), and taken here in seed order; what comes out
are references to demonstrations in finished blocks, so that no more than one is in memory, frames included.
Knows nothing of storage or of how a dataset is written.

Several machines share the work as shards: block b belongs to shard b mod N. All put what they made on a shelf;
shard 0 takes the blocks in seed order (`collect` with a `Team`), and makes itself what a shard that is not at work has
left; the others (`assist`) end when what all have made should be enough.

    shard 0   make 0 . . . . . make 4 . . . . make 8 . make 6 (shard 2 is gone) ...
    shard 1   make 1 . . . . . make 5 . . . . make 9 .        shelf: 0 1 2 3 4 5 7 ...  -> shard 0 takes 0, 1, 2 ...
    shard 2   make 2 . . . killed
    shard 3   make 3 . . . . . make 7 . . . .
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

from pi05.config import DemosConfig
from pi05.data.blocks import Block
from pi05.data.dataset import Attempt, Demo
from pi05.data.pool import PERIOD, Planners, Seeds
from pi05.data.recordings import Recordings
from pi05.errors import ConfigError, DataError
from pi05.tasks import DEMO_SEEDS, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """Which demonstrations are wanted: the first `count` of `seeds` that succeed, tried in blocks.

    Attributes:
        task: Name of the task.
        count: Demonstrations.
        seeds: All that may be tried, in order; a range or a tuple.
        block: Seeds a block.
        source: Name of the recordings whose seeds they are, or "".
        fewer: Whether fewer will do, when all seeds were tried.
    """

    task: str
    count: int
    seeds: Seeds
    block: int
    source: str = ""
    fewer: bool = False

    @classmethod
    def of(cls, task: Task, config: DemosConfig, source: Recordings | None = None) -> Self:
        """Return what a job asks for.

        Raises:
            ConfigError: The seeds would leave those reserved for demonstrations, or a source has too few.
        """
        count = config.count or task.demos
        if source:
            if len(source.seeds) < count and not config.fewer:
                usable = (
                    f" that can be used ({source.outside} have seeds that demonstrations may not use)"
                    if source.outside
                    else ""
                )
                raise ConfigError(
                    f"{source.path} has {len(source.seeds)} episodes{usable}, {count} demonstrations are wanted; "
                    f"use demos.count={len(source.seeds)} or fewer"
                )
            on_gpu = any(word in source.backend for word in ("cuda", "gpu"))  # its physics have other bits
            name = source.path.name + (f" (recorded in {source.backend})" if on_gpu else "")
            count = min(count, len(source.seeds))
            return cls(task.name, count, source.seeds, config.block, name, config.fewer)
        limit = count * config.max_attempts_per_demo
        _check_seeds(config.first_seed, limit)
        return cls(task.name, count, range(config.first_seed, config.first_seed + limit), config.block)

    def number(self, block: Seeds) -> int:
        """Return the number of a block."""
        return self.seeds.index(block[0]) // self.block

    def blocks(self, first: int, kept: int, tried: int) -> list[Seeds]:
        """Return the blocks from number `first` on that should give what is missing when `kept` came of `tried` seeds.

        The yield starts from ten attempts of which nine succeeded.
        """
        return self._from(first, self.count - kept, kept, tried)

    def expected(self, kept: int, tried: int) -> list[Seeds]:
        """Return all blocks, from the first on, that should give what is wanted at the yield of `kept` of `tried`."""
        return self._from(0, self.count, kept, tried)

    def _from(self, first: int, missing: int, kept: int, tried: int) -> list[Seeds]:
        expected_yield = (kept + 9) / (tried + 10)
        number = max(math.ceil(missing / (self.block * expected_yield)), 1)
        begins = range(first * self.block, min((first + number) * self.block, len(self.seeds)), self.block)
        return [self.seeds[begin : begin + self.block] for begin in begins]


@dataclass
class Collection:
    """Demonstrations in seed order, each in its block, and every attempt up to the last of them."""

    demos: list[tuple[Block, int]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the demonstrations."""
        return tuple(seed for _, seed in self.demos)

    @property
    def inexact(self) -> int:
        """How many demonstrations had not the bits of their recording."""
        return sum(attempt.success and not attempt.exact for attempt in self.attempts)

    @property
    def max_difference(self) -> float:
        """Largest difference between a replay and its recording."""
        return max((attempt.difference for attempt in self.attempts), default=0.0)

    def read(self) -> Iterator[Demo]:
        """Yield the demonstrations, one in memory at a time."""
        for block, seed in self.demos:
            yield block.demo(seed)


@dataclass(frozen=True)
class Shard:
    """Which blocks are one shard's.

    Attributes:
        shard, shards: The part, and how many there are.
        wanted: What they all make.
    """

    shard: int
    shards: int
    wanted: Wanted

    def owner(self, seeds: Seeds) -> int:
        """Return the shard that a block belongs to."""
        return self.wanted.number(seeds) % self.shards

    def mine(self, seeds: Seeds) -> bool:
        """Return whether a block is this shard's."""
        return self.owner(seeds) == self.shard


class Maker(Protocol):
    """Makes blocks, ahead of whoever asks."""

    def start(self, seeds: Seeds) -> None:
        """See that a block is made in the background, by whomever."""
        ...

    def block(self, seeds: Seeds, check_stop: Callable[[], None]) -> Block:
        """Return a block, waiting until it is made and calling `check_stop` meanwhile."""
        ...


def collect(
    wanted: Wanted, maker: Maker, on_demo: Callable[[Collection], None], check_stop: Callable[[], None]
) -> Collection:
    """Return the first demonstrations, in seed order, as many as are wanted.

    Args:
        wanted: How many, and of which seeds.
        maker: Makes blocks.
        on_demo: Called after each demonstration that is kept.
        check_stop: Called at least every half second while waiting; what it raises ends the collection.

    Raises:
        DataError: Too many seeds failed.
        TemporaryError: A process died twice on the same block.
    """
    collection = Collection()
    for block in _blocks(wanted, maker, collection, check_stop):
        for attempt in block.attempts:
            collection.attempts.append(attempt)
            if attempt.success:
                if not attempt.exact:
                    log.warning("seed %d: replay and recording differ by %g", attempt.seed, attempt.difference)
                collection.demos.append((block, attempt.seed))
                on_demo(collection)
            if len(collection.demos) == wanted.count:
                return collection
    if wanted.fewer and collection.demos:
        return collection
    raise DataError(_give_up(wanted, collection))


def assist(share: Shard, maker: Maker, on_block: Callable[[int, int], None], check_stop: Callable[[], None]) -> None:
    """Make the blocks that are ours, until those of all shards should hold the demonstrations that are wanted.

    Args:
        share: Which blocks are ours.
        maker: Makes blocks.
        on_block: Called after each block with how many of ours are made, and how many should be in the end.
        check_stop: Called at least every half second while waiting; what it raises ends the work.
    """
    done: set[Seeds] = set()
    kept = tried = 0
    while True:
        missing = [seeds for seeds in share.wanted.expected(kept, tried) if share.mine(seeds) and seeds not in done]
        if done:
            on_block(len(done), len(done) + len(missing))
        if not missing:
            return
        for seeds in missing:
            maker.start(seeds)
        block = maker.block(missing[0], check_stop)
        kept, tried = kept + len(block.kept), tried + len(block.attempts)
        done.add(missing[0])


class Team:
    """The makers of all shards, as shard 0 uses them: its own pool makes what is its own, the shelf has the rest.

    A block whose shard is not at work (it has not started, has ended or was killed) is made here, too: first the
    last ones, because a shard that starts late begins with the first.

    Args:
        pool: The pool of this process, with the shelf where blocks of the others appear.
        share: Which blocks are ours.
        at_work: Whether a shard is running.
        period: Seconds between two looks at the shelf.
    """

    def __init__(self, pool: Planners, share: Shard, at_work: Callable[[int], bool], period: float) -> None:
        self._pool, self._share, self._at_work, self._period = pool, share, at_work, period
        self._ahead: set[Seeds] = set()
        self._taken: set[Seeds] = set()

    def start(self, seeds: Seeds) -> None:
        """Make a block of our own in the background; remember one of another shard."""
        if self._share.mine(seeds) or seeds in self._taken:
            self._pool.start(seeds)
        else:
            self._ahead.add(seeds)

    def block(self, seeds: Seeds, check_stop: Callable[[], None]) -> Block:
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

    def _take(self, blocks: list[Seeds]) -> None:
        """Have our own pool fetch or make blocks of other shards."""
        for seeds in sorted(blocks, key=lambda seeds: -seeds[0]):
            self._ahead.discard(seeds)
            self._taken.add(seeds)
            self._pool.start(seeds)


def _pause(seconds: float, check_stop: Callable[[], None]) -> None:
    """Wait, calling `check_stop` at least every half second."""
    end = time.monotonic() + seconds
    check_stop()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, PERIOD))
        check_stop()


def _blocks(wanted: Wanted, maker: Maker, collection: Collection, check_stop: Callable[[], None]) -> Iterator[Block]:
    """Yield the blocks in order, until all seeds were tried; those that should be needed are started ahead."""
    number = 0
    while ahead := wanted.blocks(number, len(collection.demos), len(collection.attempts)):
        for seeds in ahead:
            maker.start(seeds)
        yield maker.block(ahead[0], check_stop)
        check_stop()
        number += 1


def _check_seeds(first: int, limit: int) -> None:
    """Raise ConfigError unless all seeds that may be tried are reserved for demonstrations."""
    if first not in DEMO_SEEDS or first + limit - 1 not in DEMO_SEEDS:
        raise ConfigError(
            f"demos.first_seed {first} with up to {limit} attempts leaves the demonstrations' seeds "
            f"{DEMO_SEEDS.start} to {DEMO_SEEDS.stop - 1}; use a lower first_seed"
        )


def _give_up(wanted: Wanted, collection: Collection) -> str:
    """Return what to say when too many seeds failed."""
    reasons = Counter(attempt.reason for attempt in collection.attempts if not attempt.success)
    common = "; ".join(f"{number} times {reason}" for reason, number in reasons.most_common(3))
    kept = len(collection.demos)
    remedy = "Raise demos.max_attempts_per_demo, or see the logs in the run's work folder"
    if wanted.source:
        remedy = f"Use demos.count={kept}, or another demos.source" if kept else "Use another demos.source"
    return (
        f"{len(collection.attempts)} seeds of {wanted.source or wanted.task} gave {kept} of {wanted.count} "
        f"demonstrations: {common}. {remedy}"
    )
