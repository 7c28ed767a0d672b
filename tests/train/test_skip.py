"""Steps whose loss or gradient is not finite: they change nothing, are written down, and end a run when they go on."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from pi05.data.batches import Loader, Source
from pi05.errors import NotLearning
from pi05.training import checkpoint
from pi05.training.loop import Training, start
from pi05.training.step import TrainState, make_step
from tests.train.conftest import TRAIN, Around, make_dataset, make_training, new_around


def poisoned(training: Training, *steps: int) -> Training:
    """Return a training one row of which is not a number in each of these steps' batches."""
    dataset = make_dataset()
    for step in steps:
        dataset.actions[training.loader.order(step - 1)[1][0]] = np.nan
    loader, train = training.loader, training.job.train
    source = Source(dataset, loader.recipe.sentence)
    return replace(training, loader=Loader([source], loader.recipe, train.batch_size, train.seed, train.state_noise))


def leaves(state: TrainState) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema))]


def run(training: Training, around: Around) -> TrainState:
    return training.fit(start(training, around), around)


def sick(training: Training, steps: range) -> list[int]:
    """Return the steps whose batches have a row that is not a number."""
    made = training.loader.batches(steps.start - 1)
    return [step for step, samples in zip(steps, made, strict=False) if not np.isfinite(samples.actions).all()]


def test_a_step_that_is_not_finite_changes_no_bit_and_counts(around: Around) -> None:
    training = make_training()
    train, compute = training.job.train, training.job.compute
    step = make_step(training.mesh, training.job.model, train, compute)
    state = start(training, around)
    good, bad = (next(one._batches(0)) for one in (training, poisoned(training, 1)))
    state, metrics = step(state, good)
    before, done = leaves(state), int(state.step)
    state, metrics = step(state, bad)
    assert not np.isfinite(metrics["loss"])
    assert int(state.step) == done + 1
    assert all(np.array_equal(one, other) for one, other in zip(leaves(state), before, strict=True))
    assert float(metrics["skipped"]) == 1
    state, metrics = step(state, good)
    assert np.isfinite(metrics["loss"])
    assert not all(np.array_equal(one, other) for one, other in zip(leaves(state), before, strict=True))
    assert float(metrics["skipped"]) == 1


@pytest.mark.parametrize("log_every", [1, 100])
def test_skipped_steps_are_counted_and_their_rows_written_down(tmp_path: Path, log_every: int) -> None:
    around = new_around(tmp_path)
    training = poisoned(make_training(TRAIN.model_copy(update={"log_every": log_every})), 3)
    skipped = sick(training, range(1, 21))
    assert 1 <= len(skipped) < 8
    state = run(training, around)
    assert int(state.step) == 20
    assert all(np.isfinite(leaf).all() for leaf in leaves(state))
    assert around.metric("skipped")[-1] == len(skipped)
    assert np.isfinite(around.metric("loss")).all()
    written = (tmp_path / around.paths.root / "skipped").iterdir()
    assert {path.stem for path in written} == {str(step) for step in skipped}
    found = json.loads(around.storage.read(around.paths.skipped(3)))
    assert found["rows"]["datasets/pushcube/0"] == training.loader.order(2)[1].tolist()
    assert (found["step"], found["loss"]) == (3, "nan")
    warning = next(event for event in around.seen if event.kind == "warning")
    assert "skipped/3.json" in (warning.message or "")
    assert checkpoint.steps(around.storage, around.paths.run) == [10, 20]


@pytest.mark.parametrize("log_every", [1, 100])
def test_the_third_in_a_row_ends_the_run_and_nothing_of_it_is_saved(tmp_path: Path, log_every: int) -> None:
    around = new_around(tmp_path)
    train = TRAIN.model_copy(update={"save_every": 5, "keep_every": 5, "log_every": log_every})
    training = poisoned(make_training(train), 6, 7, 8)
    with pytest.raises(NotLearning, match=r"3 steps in a row were not finite .* skipped/\d+\.json .*train\.seed=1"):
        run(training, around)
    assert around.storage.exists(around.paths.skipped(8))
    assert max(checkpoint.steps(around.storage, around.paths.run), default=0) <= 5
