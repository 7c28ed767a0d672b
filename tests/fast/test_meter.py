"""What a report says of the steps since the last one, and which runs are ended."""

import math

import jax.numpy as jnp
import pytest

from pi05.errors import NotLearning
from pi05.metrics import METRICS
from pi05.training.meter import Meter, Work, line


class Bench:
    """A meter, and a clock that goes on when a step or something else takes time."""

    def __init__(self, patience: int = 0) -> None:
        self.now, self.done = 0.0, 0
        self.meter = Meter(Work(samples=64, flops=500e12, peak=8e15), patience, lambda: self.now)

    def step(self, loss: float = 1.0, grad_norm: float = 1.0, explained: float = 0.5, seconds: float = 0.5) -> None:
        self.now, self.done = self.now + seconds, self.done + 1
        values = {"loss": loss, "loss_real": loss, "explained": explained, "grad_norm": grad_norm, "param_norm": 2.0}
        self.meter.add(self.done, {name: jnp.asarray(value) for name, value in values.items()})

    def pause(self, name: str, seconds: float) -> None:
        with self.meter.pause(name):
            self.now += seconds


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_seconds_of_a_step_are_those_of_steps(bench: Bench) -> None:
    bench.pause("save_seconds", 30.0)
    for _ in range(4):
        bench.step()
    bench.pause("save_seconds", 10.0)
    metrics, _ = bench.meter.read()
    assert metrics["seconds_per_step"] == pytest.approx(0.5)
    assert metrics["save_seconds"] == pytest.approx(40.0)
    assert metrics["samples_per_second"] == pytest.approx(128.0)
    assert metrics["tflop_per_step"] == pytest.approx(500)
    assert metrics["mfu"] == pytest.approx(500e12 / 0.5 / 8e15)
    bench.step()
    metrics, _ = bench.meter.read()
    assert metrics["seconds_per_step"] == pytest.approx(0.5)
    assert "save_seconds" not in metrics, "it was told"


def test_waits_for_data_are_part_of_a_step_and_told(bench: Bench) -> None:
    bench.step(seconds=2.0)
    bench.meter.waited(1.5)
    metrics, _ = bench.meter.read()
    assert (metrics["seconds_per_step"], metrics["data_seconds"]) == pytest.approx((2.0, 1.5))


def test_losses_are_averaged_over_steps_that_changed_something(bench: Bench) -> None:
    for loss in (1.0, math.nan, 3.0):
        bench.step(loss)
    metrics, skipped = bench.meter.read()
    assert metrics["loss"] == pytest.approx(2.0)
    assert [one.step for one in skipped] == [2]
    bench.step(math.inf)
    metrics, _ = bench.meter.read()
    assert "loss" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())


def test_three_in_a_row_end_a_run_whatever_is_read_between(bench: Bench) -> None:
    for grad_norm in (1.0, math.inf, math.inf):
        bench.step(grad_norm=grad_norm)
    bench.meter.check(3, bench.meter.read()[0])
    bench.step(grad_norm=math.inf)
    bench.step()
    metrics, _ = bench.meter.read()
    with pytest.raises(NotLearning, match=r"skipped/2\.json, skipped/3\.json, skipped/4\.json of this run"):
        bench.meter.check(5, metrics)


def test_a_good_step_in_between_lets_a_run_go_on(bench: Bench) -> None:
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan):
        bench.step(loss)
    bench.meter.check(5, bench.meter.read()[0])


def test_nothing_learned_by_its_patience_ends_a_run() -> None:
    bench = Bench(patience=2)
    bench.step(explained=0.01)
    bench.meter.check(1, bench.meter.read()[0])
    bench.step(explained=0.01)
    metrics, _ = bench.meter.read()
    with pytest.raises(NotLearning, match="still that of predicting nothing"):
        bench.meter.check(2, metrics)


def test_a_line_for_people_has_what_is_known_in_one_order(bench: Bench) -> None:
    bench.step()
    text = line(500, bench.meter.read()[0])
    assert text.startswith("Step 500: loss=1.0000, grad_norm=1.0000, param_norm=2.0000, loss_real=1.0000, ")
    assert text.endswith("samples_per_second=128.0, tflop_per_step=500, mfu=0.125, data_seconds=0.00")
    names = [part.partition("=")[0] for part in text.partition(": ")[2].split(", ")]
    assert names == [name for name in METRICS if name in names]
