"""The same numbers on 1, 4 and 8 devices, FSDP really sharding, and errors before work starts."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from pi05.config import FLOAT32, ComputeConfig
from pi05.errors import ConfigError
from pi05.model import tree
from pi05.sharding import batch_sharding, make_mesh
from pi05.training.loop import Training, start
from pi05.training.step import Batch, TrainState, make_step, placed_state
from tests.train.conftest import TRAIN, Around, make_training, new_around

COLLECTIVE = re.compile(
    r"= \(?\w+\[([\d,]+)\]\S* (?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
)
"""Sizes of what a collective of a compiled program returns."""
SHORT = TRAIN.model_copy(update={"steps": 6})


def losses(root: Path, devices: int, **changes: object) -> list[float]:
    around = new_around(root)
    training = make_training(SHORT.model_copy(update=changes), devices)
    training.fit(start(training, around), around)
    assert sorted(around.losses) == [1, 2, 3, 4, 5, 6]
    return list(around.losses.values())


def abstract(training: Training) -> tuple[TrainState, Batch]:
    """Return the shapes that the training's step takes."""
    job, place = training.job, batch_sharding(training.mesh)
    states = placed_state(training.mesh, job.model, job.train, job.compute)
    samples = training.loader.batch(0)
    batch = Batch(samples.observation, samples.actions, samples.real)
    return states, jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place), batch)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("one"), 1)


def test_there_are_eight_devices() -> None:
    assert jax.device_count() == 8


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 0), (8, 0), (8, 2)])
def test_losses_do_not_depend_on_devices(one_device: list[float], tmp_path: Path, devices: int, fsdp: int) -> None:
    np.testing.assert_allclose(losses(tmp_path, devices, fsdp_devices=fsdp), one_device, rtol=2e-5)


def test_parameters_and_moments_are_sharded_over_all_devices(around: Around) -> None:
    state = start(make_training(), around)
    kernel = state.params["PaliGemma/llm/layers/mlp/linear"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, kernel.shape[1] // 8, 64)
    bias = state.params["action_out_proj/bias"]
    assert bias.sharding.is_fully_replicated
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert len(moments) == 4  # first and second, of the language model and of the expert
    assert all(moment.sharding == kernel.sharding for moment in moments)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(around: Around) -> None:
    training = make_training(SHORT, compute=ComputeConfig(dtype="bfloat16"))
    state = training.fit(start(training, around), around)
    assert {str(leaf.dtype) for leaf in state.params.values()} == {"float32"}
    assert around.losses[6] < 1.2 * around.losses[1]


def test_a_batch_that_does_not_divide_is_refused_with_the_near_ones() -> None:
    with pytest.raises(ConfigError, match="batch_size 30 is not divisible by 8 devices; use 24 or 32"):
        make_mesh(0, 30)


def test_shards_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="fsdp_devices 3 does not divide the 8 devices"):
        make_mesh(3, 8)


@pytest.mark.parametrize("devices", [1, 4])
def test_microbatches_give_the_numbers_of_the_whole_batch(tmp_path: Path, devices: int) -> None:
    whole, parts = new_around(tmp_path / "whole"), new_around(tmp_path / "parts")
    for around, compute in ((whole, FLOAT32), (parts, ComputeConfig(microbatches=2))):
        training = make_training(SHORT, devices, compute=compute)
        training.fit(start(training, around), around)
    for name in ("loss", "loss_real", "explained", "grad_norm"):
        np.testing.assert_allclose(parts.metric(name), whole.metric(name), rtol=1e-4, err_msg=name)


def test_two_microbatches_are_not_in_memory_together() -> None:
    def temporary(parts: int) -> int:
        large = TRAIN.model_copy(update={"batch_size": 1024})
        training = make_training(large, 1, compute=ComputeConfig(microbatches=parts))
        job = training.job
        program = make_step(training.mesh, job.model, job.train, job.compute).lower(*abstract(training)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary(2) < 0.7 * temporary(1)


def test_microbatches_that_do_not_divide_are_refused_with_a_near_one() -> None:
    training = make_training(SHORT, 2, compute=ComputeConfig(microbatches=3))
    with pytest.raises(ConfigError, match=r"3 microbatches on 2 devices; use compute\.microbatches=4"):
        make_step(training.mesh, training.job.model, training.job.train, training.job.compute)


def test_options_of_xla_reach_the_compiler_and_those_of_a_gpu_do_not_on_a_cpu() -> None:
    def step(*options: str) -> Callable:
        training = make_training(SHORT, 1, compute=ComputeConfig(xla_options=options))
        job = training.job
        return partial(make_step(training.mesh, job.model, job.train, job.compute).lower, *abstract(training))

    step("xla_gpu_deterministic_ops=true")().compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        step("xla_no_such_option=true")().compile()


def test_a_step_moves_weights_and_their_gradients_and_never_activations() -> None:
    training = make_training(TRAIN.model_copy(update={"batch_size": 512, "fsdp_devices": 8}))
    job = training.job
    program = make_step(training.mesh, job.model, job.train, job.compute).lower(*abstract(training)).compile()
    moved = [math.prod(map(int, sizes.split(","))) for sizes in COLLECTIVE.findall(program.as_text())]
    largest = max(math.prod(leaf.shape) for leaf in tree.leaves(job.model).values())
    assert moved
    assert max(moved) <= largest, "512 samples of 64 tokens are more than any weight"
