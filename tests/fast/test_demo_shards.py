"""Who plans which block when several shards make one dataset; real planners and kills are in tests/sim."""

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pi05 import tasks
from pi05.config import Convention, DemosConfig
from pi05.data.blocks import Block
from pi05.data.dataset import Attempt
from pi05.data.demos import Shard, Team, Wanted, assist
from pi05.data.pool import Planners as RealPlanners
from pi05.errors import ConfigError, TemporaryError

PUSHCUBE = tasks.find("pushcube")
CONFIG = DemosConfig(count=40, first_seed=100, block=10)


def seeds(index: int) -> range:
    return range(100 + 10 * index, 110 + 10 * index)


def do_nothing(*_: object) -> None:
    pass


class Planners:
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
        return Block(Path("none"), attempts)


def share(shard: int, shards: int, config: DemosConfig = CONFIG) -> Shard:
    return Shard(shard, shards, Wanted.of(PUSHCUBE, config))


def make_team(pool: Planners, at_work: Callable[[int], bool]) -> Team:
    return Team(pool, share(0, 3), at_work, period=0.01)


def test_every_block_has_one_owner() -> None:
    shares = [share(shard, 3) for shard in range(3)]
    owners = [[each.shard for each in shares if each.mine(seeds(index))] for index in range(6)]
    assert owners == [[0], [1], [2], [0], [1], [2]]


def test_shard_0_plans_its_own_and_fetches_the_rest() -> None:
    pool = Planners(shelf={seeds(1), seeds(2)})
    team = make_team(pool, at_work=lambda _: True)
    for index in range(4):
        team.start(seeds(index))
    assert pool.started == [seeds(0), seeds(3)]
    for index in range(4):
        team.block(seeds(index), do_nothing)
    assert pool.given == [seeds(index) for index in range(4)]


def test_shard_0_waits_for_a_shard_that_is_at_work() -> None:
    pool, looks = Planners(), []

    def at_work(shard: int) -> bool:
        looks.append(shard)
        if len(looks) == 3:
            pool.shelf.add(seeds(1))
        return True

    make_team(pool, at_work).block(seeds(1), do_nothing)
    assert looks == [1, 1, 1]


def test_shard_0_takes_what_a_dead_shard_left_the_last_first_and_leaves_the_others_theirs() -> None:
    pool, alive = Planners(), {2}
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
        make_team(Planners(), at_work=lambda _: True).block(seeds(1), stop)


def assisted(shard: int, shards: int, pool: Planners, config: DemosConfig = CONFIG) -> list[tuple[int, int]]:
    said = []
    assist(share(shard, shards, config), pool, lambda *numbers: said.append(numbers), do_nothing)
    return said


@pytest.mark.parametrize("shards", [2, 3, 4])
def test_together_the_shards_plan_what_should_be_enough(shards: int) -> None:
    planned = set()
    for shard in range(1, shards):
        pool = Planners()
        assisted(shard, shards, pool)
        planned |= set(pool.given)
    assert planned == {seeds(index) for index in range(5) if index % shards}  # 40 / (10 x 0.9) blocks at first


def test_a_low_yield_takes_more_blocks() -> None:
    pool = Planners(good=2)
    said = assisted(1, 2, pool)
    assert len(pool.given) > 5
    assert said[-1][0] == said[-1][1] == len(pool.given)


def test_nothing_is_planned_beyond_the_attempts_that_are_allowed() -> None:
    pool = Planners(good=0)
    assisted(1, 2, pool, CONFIG.model_copy(update={"max_attempts_per_demo": 3}))
    assert [block.start for block in pool.given] == [110, 130, 150, 170, 190, 210]  # of 120 seeds


def test_a_shard_that_no_block_is_left_for_ends_at_once() -> None:
    pool = Planners()
    assert assisted(7, 9, pool) == []
    assert pool.given == []


def test_seeds_of_the_evaluation_are_refused_by_every_shard() -> None:
    with pytest.raises(ConfigError, match="use a lower first_seed"):
        assisted(1, 2, Planners(), CONFIG.model_copy(update={"first_seed": tasks.DEMO_SEEDS.stop - 20}))


class Shelf(dict):
    """Blocks by name."""

    def has(self, name: str) -> bool:
        return name in self

    def put(self, name: str, content: bytes) -> None:
        self[name] = content


FAKES = """
import json, sys
if "pi05.data.planner" in sys.argv:
    import h5py
    for line in sys.stdin:
        first, count, out = line.rstrip().split(" ", 2)
        h5py.File(out, "w").close()
        attempt = {"seed": int(first), "success": False, "steps": 0, "seconds": 1.0, "reason": "no plan found"}
        open(out[:-2] + "json", "w").write(json.dumps({"episodes": [], "attempts": [attempt]}))
        print(out, flush=True)
else:
    from pathlib import Path
    from pi05 import tasks
    from pi05.config import Convention
    from pi05.data.blocks import write_block
    from pi05.data.recordings import read_plan
    from pi05.data.replay import origin
    convention = Convention.model_validate_json(sys.argv[sys.argv.index("--convention") + 1])
    for line in sys.stdin:
        asked = json.loads(line)
        plan = read_plan(Path(asked["plan"]), asked["seeds"])
        results = [(attempt, None) for attempt in plan.attempts]
        write_block(Path(asked["out"]), origin(tasks.find("pushcube"), convention), results)
        print(asked["out"], flush=True)
"""
"""A planner that fails on every seed, and a replayer that replays nothing."""


def fake_python(folder: Path) -> str:
    """Return an interpreter whose planner and replayer are the fakes."""
    (folder / "fakes.py").write_text(FAKES)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\n[ $1 = -c ] && exit 0\nexec {sys.executable} {folder}/fakes.py "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_what_a_killed_process_left_may_vanish_while_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed = tmp_path / "work/.by-a-replayer-that-outlived-its-job"
    monkeypatch.setattr(Path, "glob", lambda *_: [renamed])
    with RealPlanners(fake_python(tmp_path), PUSHCUBE, Convention(cameras=()), tmp_path / "work", 1):
        assert not renamed.exists()


def test_a_planner_that_hangs_is_killed_replaced_once_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    python = fake_python(tmp_path)
    (tmp_path / "fakes.py").write_text("import sys, threading; sys.stdin.readline(); threading.Event().wait()")
    monkeypatch.setattr("pi05.data.pool.PATIENCE", 0.2)
    with (
        RealPlanners(python, PUSHCUBE, Convention(cameras=()), tmp_path / "work", 1, replayer=python) as blocks,
        pytest.raises(TemporaryError, match=r"the planner ended twice \(no answer for 2 s, killed\) at seeds 5 to 14"),
    ):
        blocks.block(range(5, 15), do_nothing)
    assert caplog.messages == ["a planner ended (no answer for 2 s, killed) at seeds 5 to 14"]


def test_a_damaged_block_on_the_shelf_is_made_again_and_replaced(tmp_path: Path) -> None:
    python = fake_python(tmp_path)
    shelf = Shelf({"0000005-0000005": b"PK half a block"})
    convention = Convention(cameras=())
    for folder in ("one", "two"):
        place = tmp_path / folder
        with RealPlanners(python, PUSHCUBE, convention, place, 1, shelf, replayer=python) as pool:
            assert pool.block(range(5, 6), do_nothing).attempts[0].reason == "no plan found"
        assert (place / "planner-0.log").exists() == (folder == "one"), "the second one is fetched"
        assert not list(place.glob("*-plan.*")), "a plan that is replayed is not needed any more"
    (tmp_path / "block.zip").write_bytes(shelf["0000005-0000005"])
    assert zipfile.ZipFile(tmp_path / "block.zip").testzip() is None
    assert (tmp_path / "two/0000005-0000005.parquet").exists()


@pytest.mark.parametrize("kind", ["seeds of a job", "seeds of recordings"])
def test_blocks_cover_all_seeds_once_whatever_their_size(kind: str) -> None:
    tried = range(100, 120) if kind == "seeds of a job" else (3, 5, 8, 13, 21, 34)
    for size in (1, 3, 7, 40):
        wanted = Wanted("pushcube", len(tried), tried, size)
        found, number = [], 0
        while ahead := wanted.blocks(number, 0, 0):
            assert wanted.number(ahead[0]) == number
            found += ahead[0]
            number += 1
        assert found == list(tried)
