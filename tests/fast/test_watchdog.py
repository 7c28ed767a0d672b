"""Hung steps are told from slow ones, from those that are compiled, and from everything that is no step."""

import threading
from dataclasses import dataclass, field

import pytest

from pi05.training.watchdog import AHEAD, FACTOR, Watchdog


@dataclass
class Step:
    """What a step will leave."""

    done: threading.Event = field(default_factory=threading.Event)

    def is_ready(self) -> bool:
        return self.done.is_set()

    def block_until_ready(self) -> None:
        assert self.done.wait(10)


class Bench:
    """A watchdog whose clock stands still until it is told."""

    def __init__(self) -> None:
        self.now, self.said = 100.0, list[str]()
        self.watchdog = Watchdog(self.said.append, lambda: self.now, floor=30.0, first=500.0)

    def give(self) -> Step:
        step = Step()
        with self.watchdog.giving():
            pass
        self.watchdog.given(step)
        return step

    def take(self, seconds: float) -> None:
        """Give a step and let it end after so many seconds."""
        step = self.give()
        self.now += seconds
        step.done.set()
        self.watchdog.check()

    def silent(self, seconds: float) -> list[str]:
        self.now += seconds
        self.watchdog.check()
        return self.said


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_step_that_takes_twenty_medians_is_hung(bench: Bench) -> None:
    for _ in range(5):
        bench.take(4.0)
    bench.give()
    assert bench.silent(FACTOR * 4.0 - 1) == []
    (words,) = bench.silent(2)
    assert words.startswith("no step has ended for 81 s, and at most 20 times the median of 4 s, at least 30 s")


def test_quick_steps_are_waited_for_a_while(bench: Bench) -> None:
    for _ in range(5):
        bench.take(0.1)
    bench.give()
    assert bench.silent(29) == []
    assert len(bench.silent(2)) == 1


def test_the_first_steps_may_take_long(bench: Bench) -> None:
    bench.give()
    assert bench.silent(499) == []
    assert "at most 500 s are waited for the first ones" in bench.silent(2)[0]


def test_what_happens_between_steps_does_not_count(bench: Bench) -> None:
    for _ in range(5):
        bench.take(4.0)
    assert bench.silent(5000) == [], "nothing is unfinished"
    assert bench.watchdog.idle
    bench.give()
    assert bench.silent(FACTOR * 4.0 - 1) == [], "time counts from when it was given"
    assert not bench.watchdog.idle


def test_one_that_does_not_come_back_from_giving_is_hung_too(bench: Bench) -> None:
    for _ in range(5):
        bench.take(4.0)
    with bench.watchdog.giving():
        assert len(bench.silent(FACTOR * 4.0 + 1)) == 1


def test_a_slow_step_among_quick_ones_does_not_change_the_limit(bench: Bench) -> None:
    for seconds in (4.0, 4.0, 70.0, 4.0, 4.0):
        bench.take(seconds)
    bench.give()
    assert bench.silent(FACTOR * 4.0 - 1) == []
    assert len(bench.silent(2)) == 1


def test_the_trainer_runs_ahead_of_few_steps(bench: Bench) -> None:
    steps = [bench.give() for _ in range(AHEAD)]
    ahead = threading.Thread(target=bench.give)
    ahead.start()
    ahead.join(0.2)
    assert ahead.is_alive(), "it waits for the first one"
    steps[0].done.set()
    ahead.join(10)
    assert not ahead.is_alive()


def test_the_thread_ends_with_the_block() -> None:
    with Watchdog(lambda _: None, look=0.01) as watchdog:
        assert watchdog._thread.is_alive()
    assert not watchdog._thread.is_alive()
