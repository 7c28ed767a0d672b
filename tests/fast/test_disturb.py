"""The pushes that lead a replay off its course."""

import numpy as np
import pytest

from pi05.data.disturb import displacements


def test_a_seed_has_its_own_pushes_and_always_the_same() -> None:
    assert np.array_equal(displacements(3, 100, 0.05), displacements(3, 100, 0.05))
    assert not np.array_equal(displacements(3, 100, 0.05), displacements(4, 100, 0.05))


def test_between_two_pushes_there_is_time_to_come_back() -> None:
    for seed in range(50):
        pushed: np.ndarray = np.any(displacements(seed, 200, 0.05) != 0, axis=1)
        changes = np.flatnonzero(np.diff(pushed.astype(int)))
        lengths = np.diff(changes)
        rests = lengths[::2] if not pushed[changes[0] + 1] else lengths[1::2]
        assert rests.min() >= 10
        assert 0.05 < pushed.mean() < 0.5


def test_pushes_have_the_size_that_was_asked_for() -> None:
    off = np.concatenate([displacements(seed, 200, 0.05) for seed in range(100)])
    assert off[off.any(axis=1)].std() == pytest.approx(0.05, rel=0.1)
