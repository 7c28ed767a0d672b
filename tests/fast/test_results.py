import pytest

from pi05.errors import DataError
from pi05.intervals import wilson
from pi05.results import Episode, Result, merge, summary


def episode(seed: int, *, once: bool = True, end: bool = True) -> Episode:
    return Episode(
        seed=seed,
        success_once=once,
        success_at_end=end,
        first_success_step=3 if once else None,
        steps=10,
        distance=0.01,
        goal=(0, 0, 0),
    )


def result(*seeds: int, **changes: object) -> Result:
    fields = {
        "task": "pushcube",
        "policy": "checkpoint",
        "checkpoint": "runs/a/checkpoints/5",
        "dataset": "datasets/pushcube/1",
        "total": 4,
        "limit": 150,
        "execute_steps": 8,
        "sampling_steps": 10,
        "temperature": 1.0,
        "policy_seed": 0,
        "renderer": "none",
        "episodes": tuple(episode(seed) for seed in seeds),
    }
    return Result.model_validate({**fields, **changes})


def test_summary_counts_both_kinds_of_success() -> None:
    numbers = summary([episode(1), episode(2, end=False), episode(3, once=False, end=False), episode(4)])
    assert (numbers["success_once"], numbers["success_at_end"], numbers["episodes"]) == (0.75, 0.5, 4)
    assert (numbers["wilson_low"], numbers["wilson_high"]) == wilson(3, 4)


def test_merge_orders_episodes_by_seed_whatever_the_order_of_shards() -> None:
    merged = merge([result(7, 8), result(1, 2)])
    assert [one.seed for one in merged.episodes] == [1, 2, 7, 8]
    assert merged == merge([result(1, 2, 7, 8)])


def test_merge_refuses_a_seed_that_is_in_two_shards() -> None:
    with pytest.raises(DataError, match="seed 2 was evaluated by two shards"):
        merge([result(1, 2), result(2, 3)])


def test_merge_refuses_shards_of_different_checkpoints() -> None:
    with pytest.raises(DataError, match=r"differ in checkpoint.*checkpoints/5.*checkpoints/9"):
        merge([result(1), result(2, checkpoint="runs/a/checkpoints/9")])


def test_merge_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no result to merge"):
        merge([])
