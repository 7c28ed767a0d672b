"""The loss over episodes that training never sees: the same at each look, on any number of devices, and a metric."""

from dataclasses import replace
from pathlib import Path

import jax
import pytest

from pi05.data.batches import Loader
from pi05.metrics import METRICS
from pi05.training.held_out import HeldOut
from pi05.training.loop import Training, start
from pi05.training.step import TrainState
from tests.train.conftest import TRAIN, Around, make_training, new_around

APART = TRAIN.model_copy(update={"held_out": 2, "held_out_every": 8, "log_every": 100})


def held_out(devices: int = 8, **changes: object) -> Training:
    train = APART.model_copy(update=changes)
    training = make_training(train, devices)
    loader = training.loader
    return replace(
        training,
        loader=Loader(loader.sources, loader.recipe, train.batch_size, train.seed, train.state_noise, held_out=2),
    )


def look(training: Training, state: TrainState) -> float:
    return HeldOut(training.job, training.loader, training.mesh).look(state)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Around]:
    around = new_around(tmp_path_factory.mktemp("trained"))
    training = held_out()
    return training.fit(start(training, around), around), around


def test_it_is_told_when_it_is_due_and_at_the_end(trained: tuple[TrainState, Around]) -> None:
    told = {step: metrics["loss_held_out"] for step, metrics in trained[1].told if "loss_held_out" in metrics}
    assert list(told) == [8, 16, 20]
    assert told[20] < told[8], "it learns something"
    assert trained[1].metric("held_out_seconds"), "and its time is told"


def test_every_metric_that_is_told_is_on_the_list(trained: tuple[TrainState, Around]) -> None:
    assert {name for _, metrics in trained[1].told for name in metrics} <= METRICS.keys()


def test_the_same_weights_have_the_same_loss_whatever_the_run_is_like(trained: tuple[TrainState, Around]) -> None:
    state, around = trained
    last = around.metric("loss_held_out")[-1]
    assert look(held_out(), state) == last
    assert look(held_out(seed=5, state_noise=0.5), state) == last


def test_it_does_not_depend_on_devices(trained: tuple[TrainState, Around], tmp_path: Path) -> None:
    few = held_out(devices=2)
    around = Around(trained[1].storage, trained[1].paths)
    del tmp_path
    assert look(few, start(few, around)) == pytest.approx(trained[1].metric("loss_held_out")[-1], rel=1e-5)


def test_it_is_of_the_weights_a_policy_uses(trained: tuple[TrainState, Around]) -> None:
    state, around = trained
    assert state.ema is not None
    shifted = jax.tree.map(lambda array: array * 1.5, state.ema)
    assert look(held_out(), replace(state, ema=shifted)) != around.metric("loss_held_out")[-1]
    raw = jax.tree.map(lambda array: array * 1.5, state.params)
    assert look(held_out(), replace(state, params=raw)) == around.metric("loss_held_out")[-1]


def test_without_episodes_kept_apart_there_is_nothing_to_look_at() -> None:
    training = make_training()
    looks = HeldOut(training.job, training.loader, training.mesh)
    assert not any(looks.due(done) for done in range(1, 2001))
