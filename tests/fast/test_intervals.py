"""Intervals: the values that their sources publish, and what they promise, computed over every way it can come out."""

import math
import random

import numpy as np
import pytest

from pi05.intervals import (
    SEQUENTIAL,
    check_width,
    exact,
    fewest,
    mcnemar,
    middle,
    most,
    narrow,
    paired,
    pooled,
    wilson,
)


# R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998), table I.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_has_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_all_successes_mirrors_that_of_none() -> None:
    low, high = wilson(0, 50)
    assert wilson(50, 50) == pytest.approx((1 - high, 1 - low))
    assert (low, wilson(50, 50)[1]) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="trials must be positive"):
        wilson(successes, trials)


@pytest.mark.parametrize(
    ("table", "low", "high", "places"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404, 4),  # Newcombe 1998 (paired data), table II, method 10
        ((1, 1, 7, 12), -0.507, -0.026, 3),  # Fagerland, Lydersen, Laake, Statistics in Medicine 33 (2014), 2850-2875
        ((14, 5, 0, 22), 0.011, 0.226, 3),  # Altman and others, Statistics with confidence (2000), page 52
    ],
)
def test_a_difference_of_pairs_has_the_published_interval(table, low: float, high: float, places: int) -> None:
    found = paired(*table)
    assert (round(found.low, places), round(found.high, places)) == (low, high)
    assert found.value == pytest.approx((table[1] - table[2]) / sum(table))


def test_a_difference_turned_round_is_the_same_one_turned_round() -> None:
    one, other = paired(50, 12, 5, 33), paired(50, 5, 12, 33)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_two_perfect_policies_are_not_known_to_be_equal_exactly() -> None:
    found = paired(100, 0, 0, 0)
    assert found.value == 0
    assert found.low < -0.03
    assert found.high > 0.03


def test_pairs_that_agree_say_more_than_rates_alone() -> None:
    alike, apart = paired(45, 5, 5, 45), paired(25, 25, 25, 25)
    assert alike.high - alike.low < 0.6 * (apart.high - apart.low)


def test_several_differences_have_wider_intervals_each() -> None:
    alone, three = paired(50, 12, 5, 33), paired(50, 12, 5, 33, comparisons=3)
    assert three.low < alone.low < alone.high < three.high


def test_the_interval_of_a_difference_covers_it() -> None:
    """Simulated, seed fixed: 3,000 pairs of evaluations on 100 seeds, rates 0.85 and 0.75, correlated by seed."""
    draw, inside, trials = np.random.default_rng(7), 0, 3000
    cells = draw.multinomial(100, (0.70, 0.15, 0.05, 0.10), size=trials)
    for both, first, second, neither in cells.tolist():
        found = paired(both, first, second, neither)
        inside += found.low <= 0.10 <= found.high
    assert inside / trials > 0.94


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(1, 7, 0.0703), (0, 0, 1.0), (5, 5, 1.0), (0, 5, 0.0625), (0, 6, 0.03125), (86, 150, 3.716e-05)],
)
def test_the_test_of_pairs_is_a_fair_coins(first: int, second: int, p: float) -> None:
    """1 and 7: Fagerland, Lydersen, Laake 2013; 86 and 150: approval ratings in R's mcnemar.test, exact binom.test."""
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-3)
    assert mcnemar(second, first) == mcnemar(first, second)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_exact_limits_have_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    """Newcombe 1998 (single proportion), table I, method 5."""
    assert exact(successes, trials) == pytest.approx((low, high), abs=5e-5)


def coverage(width: float, largest: int, rates: np.ndarray) -> np.ndarray:
    """Return how often the limits contain each rate when an evaluation ends: every path, weighed by its chance.

    State after n episodes: the chance of s solved among the paths that have not ended; a path ends where the limits are
    narrow, or at the largest number of episodes.
    """
    chance, inside = np.ones((len(rates), 1)), np.zeros(len(rates))
    for n in range(1, largest + 1):
        chance = (
            np.pad(chance, ((0, 0), (0, 1))) * (1 - rates[:, None]) + np.pad(chance, ((0, 0), (1, 0))) * rates[:, None]
        )
        for s in range(n + 1):
            low, high = exact(s, n, SEQUENTIAL) if chance[:, s].any() and (n >= fewest(width)) else (0.0, 1.0)
            if high - low <= width or n == largest:
                low, high = exact(s, n, SEQUENTIAL)
                inside += chance[:, s] * ((low <= rates) & (rates <= high))
                chance[:, s] = 0.0
        if not chance.any():
            break
    return inside


@pytest.mark.parametrize(("width", "largest"), [(0.5, 19), (0.48, 21), (0.45, 40), (0.3, 60), (0.3, 30), (0.2, 124)])
def test_an_evaluation_that_ends_when_it_is_narrow_still_covers_the_rate(width: float, largest: int) -> None:
    ends = [exact(s, n, SEQUENTIAL) for n in range(fewest(width), largest + 1) for s in range(n + 1)]
    near = [end + shift for pair in ends for end in pair for shift in (-1e-9, 1e-9)]
    rates = np.unique([rate for rate in near if 0 < rate < 0.5])[:: max(1, len(near) // 1500)]
    assert coverage(width, largest, np.concatenate([rates, np.linspace(0.01, 0.5, 50)])).min() >= 0.95


def test_limits_for_a_fixed_number_would_not_cover_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fast.test_intervals.SEQUENTIAL", 0.05)
    assert coverage(0.2, 110, np.linspace(0.2, 0.205, 100)).min() < 0.945


@pytest.mark.parametrize("width", [0.5, 0.3, 0.2, 0.1])
def test_how_many_episodes_it_takes_is_known_beforehand(width: float) -> None:
    assert narrow([True] * 1000, width) == fewest(width) == narrow([False] * 1000, width)
    alternating = [n % 2 == 0 for n in range(1000)]
    assert most(width) - 2 <= (narrow(alternating, width) or 0) <= most(width)


def test_it_ends_at_the_first_narrow_look_and_not_before() -> None:
    draw = random.Random(3)
    solved = [draw.random() < 0.8 for _ in range(400)]
    number = narrow(solved, 0.2)
    assert number is not None
    widths = [high - low for low, high in (exact(sum(solved[:n]), n, SEQUENTIAL) for n in (number - 1, number))]
    assert widths[1] <= 0.2 < widths[0]
    assert narrow(solved[: number - 1], 0.2) is None
    assert narrow(solved[:number], 0.2) == number


@pytest.mark.parametrize("width", [0.0, 0.05, 0.51, 10.0])
def test_a_width_that_was_not_tried_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=r"from 0\.06 to 0\.5, and not"):
        check_width(width)


def test_training_seeds_widen_the_interval_and_never_narrow_it() -> None:
    alone = pooled([0.9], 100)
    assert (alone.low, alone.high) == pytest.approx(wilson(90, 100))
    alike = pooled([0.9, 0.9, 0.9], 100)
    assert (alike.low, alike.high) == pytest.approx(wilson(90, 100)), "the episodes stay the same 100"
    apart = pooled([0.95, 0.9, 0.85], 100)
    assert apart.value == pytest.approx(0.9)
    spread = 4.3027 * 0.05 / math.sqrt(3)
    assert apart.low == pytest.approx(0.9 - math.hypot(0.9 - wilson(90, 100)[0], spread))
    assert pooled([1.0, 1.0], 20).high == 1.0


def test_the_interval_over_training_seeds_covers_the_mean_of_all_trainings() -> None:
    """Simulated, seed fixed: trainings of rate 0.8 with a spread of 0.05, 3 of them on the same 100 episodes."""
    draw, inside, trials = np.random.default_rng(11), 0, 1000
    for _ in range(trials):
        hardness = draw.normal(size=100)  # of an episode, for every training
        skills = draw.normal(0.0, 0.25, size=3)
        noise = draw.normal(size=(3, 100))
        solved = hardness + skills[:, None] + noise < 0.8416 * math.sqrt(2 + 0.25**2)
        found = pooled(solved.mean(axis=1).tolist(), 100)
        inside += found.low <= 0.8 <= found.high
    assert inside / trials >= 0.95


def test_the_interval_of_a_median_covers_it_as_a_coin_says() -> None:
    assert middle([5, 3, 1, 4, 2]) is None, "2 of 32 times all five lie on one side"
    assert middle([6, 5, 4, 3, 2, 1]) == (3.5, 1, 6)
    found = middle(range(100))
    assert found == (49.5, 39, 60)  # W. J. Conover, Practical nonparametric statistics: ranks 40 and 61 of 100
    outside = sum(math.comb(100, k) for k in range(40)) / 2**100
    assert 2 * outside <= 0.05 < 2 * (outside + math.comb(100, 40) / 2**100)
