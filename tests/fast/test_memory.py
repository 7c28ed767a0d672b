"""A device without enough memory says what would need less."""

import jax
import jax.numpy as jnp
import pytest

from pi05.config import ComputeConfig, EvalConfig, EvalJob, TrainJob
from pi05.errors import ConfigError
from pi05.training.memory import advised, for_acting, for_training
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
    return refusal(for_training(job(compute, batch_size), 8))


def refusal(advice: str) -> str:
    with pytest.raises(ConfigError) as caught, advised(advice):
        exhaust()
    assert caught.value.exit_code == 64
    assert str(caught.value).startswith(f"{advice} (RESOURCE_EXHAUSTED: Out of memory")
    return str(caught.value)


def test_it_names_what_there_is_and_what_needs_less() -> None:
    text = words(ComputeConfig(recompute="cheap"))
    assert text.startswith(
        "the memory of 8 devices does not suffice for train.batch_size=64, compute.recompute=cheap, "
        "compute.microbatches=1. "
    )
    ways = "compute.recompute=layers with compute.layers=looped, or compute.microbatches=2"
    assert f"Use {ways}, or a lower train.batch_size in a new run" in text
    assert "pi05ctl resume train-stackcube-000000 --set" in text


def test_it_does_not_advise_what_is_not_possible() -> None:
    text = words(ComputeConfig(recompute="layers", microbatches=2), batch_size=16)
    assert ". Use a lower train.batch_size in a new run" in text


@pytest.mark.parametrize(
    ("dtype", "batch_size", "ways"),
    [
        ("float32", 10, "Use compute.dtype=bfloat16, or eval.batch_size=5, or a device with more memory, in a new"),
        ("bfloat16", 1, "Use a device with more memory, in a new"),
    ],
)
def test_a_policy_has_other_ways(dtype: str, batch_size: int, ways: str) -> None:
    evaluation = EvalJob(
        run="eval-stackcube-000000",
        task="stackcube",
        storage="file:///unused",
        convention=options("full").convention,
        dataset="datasets/stackcube/0",
        train_run="train-stackcube-000000",
        compute=ComputeConfig.model_validate({"dtype": dtype}),
        eval=EvalConfig(batch_size=batch_size),
    )
    text = refusal(for_acting(evaluation))
    assert text.startswith(f"the memory of the device does not suffice for a policy with compute.dtype={dtype} and")
    assert ways in text


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), advised(for_training(job(ComputeConfig()), 8)):
        raise jax.errors.JaxRuntimeError("INTERNAL: a driver fell over")
