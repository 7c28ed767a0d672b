"""A device without enough memory says what would need less."""

import jax
import jax.numpy as jnp
import pytest

from pi05.config import ComputeConfig, TrainJob
from pi05.errors import ConfigError
from pi05.training.memory import advised
from tests.conftest import options


def job(compute: ComputeConfig, batch_size: int = 64) -> TrainJob:
    preset = options("full")
    return TrainJob(
        run="train-stackcube-000000",
        task="stackcube",
        storage="file:///unused",
        convention=preset.convention,
        dataset="datasets/stackcube/0",
        model=preset.model,
        compute=compute,
        train=preset.train.model_copy(update={"batch_size": batch_size}),
    )


def exhaust() -> None:
    """Ask the device for more than any has."""
    jnp.zeros((2**46,), jnp.float32).block_until_ready()


def words(compute: ComputeConfig, batch_size: int = 64) -> str:
    with pytest.raises(ConfigError) as caught, advised(job(compute, batch_size), 8):
        exhaust()
    assert caught.value.exit_code == 64
    return str(caught.value)


def test_it_names_what_there_is_and_what_needs_less() -> None:
    text = words(ComputeConfig(recompute="cheap"))
    assert text.startswith(
        "the memory of 8 devices does not suffice for train.batch_size=64, compute.recompute=cheap, "
        "compute.microbatches=1 (RESOURCE_EXHAUSTED: Out of memory"
    )
    assert "Use compute.recompute=layers, or compute.microbatches=2, or a lower train.batch_size in a new run" in text
    assert "pi05ctl resume train-stackcube-000000 --set" in text


def test_it_does_not_advise_what_is_not_possible() -> None:
    text = words(ComputeConfig(recompute="layers", microbatches=2), batch_size=16)
    assert ". Use a lower train.batch_size in a new run" in text


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), advised(job(ComputeConfig()), 8):
        raise jax.errors.JaxRuntimeError("INTERNAL: a driver fell over")
