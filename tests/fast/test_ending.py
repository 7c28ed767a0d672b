"""An evaluation that ends when its interval is narrow ends at the same seed, whoever runs its episodes and when."""

import json
from pathlib import Path

import pytest

from pi05.jobs.ending import Ending, kept_as
from pi05.jobs.runtime import Arguments, Context
from pi05.results import end, interval, summary
from pi05.storage import FileStorage, RunPaths
from pi05ctl.stored import evaluations
from tests.fast.test_results import episode, result

RUN = "eval-pushcube-123456"
FIRST = 1_000_000
SOLVED = {FIRST + n: n % 7 != 3 for n in range(60)}
"""Every seventh is not; an interval 0.3 wide takes 30 of them."""
STOP = FIRST + 30
HEADER = result(until=0.3, first_seed=FIRST, total=60)


def test_episodes_count_in_a_row_from_the_first() -> None:
    assert end(SOLVED, FIRST, 0.3) == STOP
    assert end({seed: one for seed, one in SOLVED.items() if seed < STOP - 1}, FIRST, 0.3) is None
    assert end({seed: one for seed, one in SOLVED.items() if seed != FIRST + 4}, FIRST, 0.3) is None
    assert end(dict(reversed(SOLVED.items())), FIRST, 0.3) == STOP


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path.as_uri())


def of_shard(storage: FileStorage, shard: int, shards: int) -> Ending:
    arguments = Arguments(Path("job.json"), shard=shard, shards=shards)
    return Ending(Context(storage, RunPaths(RUN, shard), arguments), HEADER)


def keep(storage: FileStorage, shard: int, seeds: range) -> None:
    """Keep episodes as a shard at work does."""
    for seed in seeds:
        key = f"{RunPaths(RUN, shard).work}/{kept_as(HEADER)}/{seed}"
        storage.write(f"{key}.json", episode(seed, once=SOLVED[seed]).model_dump_json().encode())
        storage.write(f"{key}.actions", b"")


def own(seeds: range) -> dict[int, bool]:
    return {seed: SOLVED[seed] for seed in seeds}


def test_a_shard_ends_where_all_together_know_enough(storage: FileStorage) -> None:
    ending, seeds = of_shard(storage, 0, 2), range(FIRST, FIRST + 60, 2)
    assert ending.before(seeds, own(seeds)) == list(seeds), "the other shard has kept nothing yet"
    keep(storage, 1, range(FIRST + 1, STOP - 2, 2))
    assert ending.before(seeds, own(seeds)) == list(seeds), "seed 29 is missing"
    keep(storage, 1, range(FIRST + 1, STOP + 4, 2))
    assert ending.before(seeds, own(seeds)) == [seed for seed in seeds if seed < STOP]
    assert ending.early


def test_a_shard_that_has_ended_is_read_from_its_result(storage: FileStorage) -> None:
    seeds = range(FIRST + 1, STOP, 2)
    ended = HEADER.model_copy(update={"episodes": tuple(episode(seed, once=SOLVED[seed]) for seed in seeds)})
    storage.write(f"{RunPaths(RUN).results}/1.json", ended.model_dump_json().encode())
    mine = range(FIRST, FIRST + 60, 2)
    assert of_shard(storage, 0, 2).before(mine, own(mine))[-1] == STOP - 2


def test_what_another_evaluation_or_a_kill_has_left_is_not_counted(storage: FileStorage) -> None:
    seeds = range(FIRST + 1, STOP, 2)
    other = HEADER.model_copy(
        update={"temperature": 0.5, "episodes": tuple(episode(seed, once=SOLVED[seed]) for seed in seeds)}
    )
    storage.write(f"{RunPaths(RUN).results}/1.json", other.model_dump_json().encode())
    storage.write(f"{RunPaths(RUN, 1).work}/{kept_as(HEADER)}/{FIRST + 1}.json", b'{"seed":')
    mine = range(FIRST, FIRST + 60, 2)
    assert of_shard(storage, 0, 2).before(mine, own(mine)) == list(mine)


def test_without_a_width_it_never_ends_early(storage: FileStorage) -> None:
    plain = HEADER.model_copy(update={"until": None})
    assert Ending(Context(storage, RunPaths(RUN)), plain).before(list(SOLVED), SOLVED) == list(SOLVED)


def test_what_was_run_beyond_the_end_counts_for_nobody(storage: FileStorage) -> None:
    """One shard had ended all its episodes before anybody knew; the other was the slower one."""
    for shard, stop in ((0, FIRST + 60), (1, STOP)):
        seeds = range(FIRST + shard, stop, 2)
        part = HEADER.model_copy(update={"episodes": tuple(episode(seed, once=SOLVED[seed]) for seed in seeds)})
        storage.write(f"{RunPaths(RUN).results}/{shard}.json", part.model_dump_json().encode())
    found = evaluations.read(storage, RUN)
    assert [one.seed for one in found.episodes] == list(range(FIRST, STOP))
    assert (found.complete, found.ended, found.progress) == (True, True, "30")
    low, high = interval(found.metrics) or (0, 1)
    assert high - low <= 0.3
    assert "wilson_low" not in found.metrics, "that interval does not hold when one looks after every episode"


def test_while_the_end_is_not_known_there_is_no_rate(storage: FileStorage) -> None:
    seeds = range(FIRST, STOP - 4)
    part = HEADER.model_copy(update={"episodes": tuple(episode(seed, once=SOLVED[seed]) for seed in seeds)})
    storage.write(f"{RunPaths(RUN).results}/0.json", part.model_dump_json().encode())
    found = evaluations.read(storage, RUN)
    assert (found.complete, found.metrics, found.progress) == (False, {}, "26 of 60")


def test_at_the_largest_number_it_ends_as_wide_as_it_is(storage: FileStorage) -> None:
    solved = [episode(seed, once=seed % 2 == 0) for seed in range(FIRST, FIRST + 30)]
    part = HEADER.model_copy(update={"total": 30, "episodes": tuple(solved)})
    storage.write(f"{RunPaths(RUN).results}/0.json", part.model_dump_json().encode())
    found = evaluations.read(storage, RUN)
    assert (found.complete, found.ended) == (True, False)
    low, high = interval(found.metrics) or (0, 0)
    assert high - low > 0.3
    assert found.metrics == summary(solved, until=0.3)
    assert json.loads(json.dumps(found.settings))["first_seed"] == FIRST
