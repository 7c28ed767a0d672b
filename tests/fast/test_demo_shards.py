"""Who plans which block when several shards make one dataset; real planners and kills are in tests/sim."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from pi05 import tasks
from pi05.config import DemosConfig
from pi05.data.dataset import Attempt
from pi05.data.demos import Block, PlannerPool, Recording, Share, Team, assist
from pi05.errors import ConfigError

PUSHCUBE = tasks.find("pushcube")
CONFIG = DemosConfig(count=40, first_seed=100, block=10)


def seeds(index: int) -> range:
    return range(100 + 10 * index, 110 + 10 * index)


def do_nothing(*_: object) -> None:
    pass


class Pool:
    """Planners that need no time; of every block the first `good` seeds succeed."""

    def __init__(self, good: int = 10, shelf: set[range] | None = None) -> None:
        self.good, self.shelf = good, set() if shelf is None else shelf
        self.started: list[range] = []
        self.given: list[range] = []

    def shelved(self, seeds: range) -> bool:
        return seeds in self.shelf

    def start(self, seeds: range) -> None:
        if seeds not in self.started:
            self.started.append(seeds)

    def block(self, seeds: range, check_stop: Callable[[], None]) -> Block:
        self.start(seeds)
        check_stop()
        self.given.append(seeds)
        attempts = tuple(Attempt(seed=s, success=s - seeds[0] < self.good, steps=9, seconds=1.0) for s in seeds)
        return Block(attempts, {a.seed: Recording(a.seed, None, {}) for a in attempts if a.success})


def make_team(pool: Pool, at_work: Callable[[int], bool]) -> Team:
    return Team(pool, Share(0, 3, 100, 10), at_work, period=0.01)


def test_every_block_has_one_owner() -> None:
    shares = [Share(shard, 3, 100, 10) for shard in range(3)]
    owners = [[share.shard for share in shares if share.mine(seeds(index))] for index in range(6)]
    assert owners == [[0], [1], [2], [0], [1], [2]]


def test_shard_0_plans_its_own_and_fetches_the_rest() -> None:
    pool = Pool(shelf={seeds(1), seeds(2)})
    team = make_team(pool, at_work=lambda _: True)
    for index in range(4):
        team.start(seeds(index))
    assert pool.started == [seeds(0), seeds(3)]
    for index in range(4):
        team.block(seeds(index), do_nothing)
    assert pool.given == [seeds(index) for index in range(4)]


def test_shard_0_waits_for_a_shard_that_is_at_work() -> None:
    pool, looks = Pool(), []

    def at_work(shard: int) -> bool:
        looks.append(shard)
        if len(looks) == 3:
            pool.shelf.add(seeds(1))
        return True

    make_team(pool, at_work).block(seeds(1), do_nothing)
    assert looks == [1, 1, 1]


def test_shard_0_takes_what_a_dead_shard_left_the_last_first_and_leaves_the_others_theirs() -> None:
    pool, alive = Pool(), {2}
    team = make_team(pool, at_work=alive.__contains__)
    for index in range(6):
        team.start(seeds(index))
    team.block(seeds(1), do_nothing)
    assert pool.started == [seeds(0), seeds(3), seeds(4), seeds(1)]
    alive.add(1)  # it comes late
    team.start(seeds(4))  # the window moves on; what was taken stays taken
    team.block(seeds(4), do_nothing)
    assert seeds(2) not in pool.started


def test_waiting_for_a_shard_can_be_stopped() -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        make_team(Pool(), at_work=lambda _: True).block(seeds(1), stop)


def assisted(shard: int, shards: int, pool: Pool, config: DemosConfig = CONFIG) -> list[tuple[int, int]]:
    said = []
    share = Share(shard, shards, config.first_seed, config.block)
    assist(PUSHCUBE, config, pool, share, lambda *numbers: said.append(numbers), do_nothing)
    return said


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_together_the_shards_plan_what_should_be_enough(shards: int) -> None:
    planned = set()
    for shard in range(1, shards):
        pool = Pool()
        assisted(shard, shards, pool)
        planned |= set(pool.given)
    assert planned == {seeds(index) for index in range(5) if index % shards}  # 40 / (10 x 0.9) blocks at first


def test_a_low_yield_takes_more_blocks() -> None:
    pool = Pool(good=2)
    said = assisted(1, 2, pool)
    assert len(pool.given) > 5
    assert said[-1][0] == said[-1][1] == len(pool.given)


def test_nothing_is_planned_beyond_the_attempts_that_are_allowed() -> None:
    pool = Pool(good=0)
    assisted(1, 2, pool, CONFIG.model_copy(update={"max_attempts_per_demo": 3}))
    assert [block.start for block in pool.given] == [110, 130, 150, 170, 190, 210]  # of 120 seeds


def test_a_shard_that_no_block_is_left_for_ends_at_once() -> None:
    pool = Pool()
    assert assisted(7, 9, pool) == []
    assert pool.given == []


def test_seeds_of_the_evaluation_are_refused_by_every_shard() -> None:
    with pytest.raises(ConfigError, match="use a lower first_seed"):
        assisted(1, 2, Pool(), CONFIG.model_copy(update={"first_seed": tasks.DEMO_SEEDS.stop - 20}))


class Shelf(dict):
    """Blocks by name."""

    def has(self, name: str) -> bool:
        return name in self

    def put(self, name: str, content: bytes) -> None:
        self[name] = content


def test_a_damaged_block_on_the_shelf_is_planned_again_and_replaced(tmp_path: Path) -> None:
    plan = tmp_path / "plan.py"
    plan.write_text(
        "import sys, json, h5py\n"
        "for line in sys.stdin:\n"
        "    first, count, out = line.rstrip().split(' ', 2)\n"
        "    h5py.File(out, 'w').close()\n"
        "    attempt = {'seed': int(first), 'success': False, 'steps': 0, 'seconds': 1.0, 'reason': 'no plan found'}\n"
        "    open(out[:-2] + 'json', 'w').write(json.dumps({'episodes': [], 'attempts': [attempt]}))\n"
        "    print(out, flush=True)\n"
    )
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n[ $1 = -c ] && exit 0\nexec {sys.executable} {plan}\n")
    python.chmod(0o755)
    shelf = Shelf({"0000005-0000005": b"PK half a block"})
    for folder in ("one", "two"):
        with PlannerPool(str(python), PUSHCUBE, "panda_wristcam", tmp_path / folder, 1, shelf) as pool:
            assert pool.block(range(5, 6), do_nothing).attempts[0].reason == "no plan found"
        assert (tmp_path / folder / "planner-0.log").exists() == (folder == "one"), "the second one is fetched"
    (tmp_path / "block.zip").write_bytes(shelf["0000005-0000005"])
    assert zipfile.ZipFile(tmp_path / "block.zip").testzip() is None
    assert h5py.is_hdf5(tmp_path / "two/0000005-0000005.h5")
