"""Our arithmetic against the reference's: forward, loss, sampling, gradients and ten training steps."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi05.config import FLOAT32, ComputeConfig
from pi05.model import pi05, tree
from pi05.training import step
from tests.parity.golden import Golden

F32, BF16, TRAINED = 1e-5, 2e-2, 1e-4
FORMS = ("observation", "left_out", "padded")
"""What is masked may as well be left out, and padding may as well be there: the numbers are the same."""
TRAINED_NORM = 2e-4
"""Ten steps amplify rounding, in gradients most: the same code is off by 8.6e-5 on one processor (Intel) and by 1.1e-4
on another (AMD). The first gradient is held leaf by leaf to F32 below."""


def relative(found: jax.Array | np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest error relative to the largest magnitude of what was wanted."""
    return float(np.max(np.abs(np.asarray(found, np.float64) - wanted)) / np.max(np.abs(wanted)))


def velocity(golden: Golden, dtype: str, form: str) -> jax.Array:
    config, compute = golden.model(), ComputeConfig(dtype=dtype)
    observation = getattr(golden, form)()

    @jax.jit
    def run(params: tree.Params) -> jax.Array:
        prefix = pi05.encode(params, config, compute, observation)
        noise, time = golden.inputs["noise"], golden.inputs["time"]
        noisy = time[:, None, None] * noise + (1 - time[:, None, None]) * golden.inputs["actions"]
        return pi05.velocity(params, config, compute, prefix, noisy, time)

    return run(golden.nested())


def test_every_parameter_is_in_the_table(golden: Golden) -> None:
    assert {path: leaf.shape for path, leaf in tree.leaves(golden.model()).items()} == {
        path: array.shape for path, array in golden.params.items()
    }


def test_prefix_tokens(golden: Golden) -> None:
    tokens, mask = jax.jit(
        partial(pi05.embed_prefix, config=golden.model(), compute=FLOAT32, observation=golden.observation())
    )(golden.nested())
    np.testing.assert_array_equal(mask, golden.outputs["prefix_mask"])
    assert relative(tokens, golden.outputs["prefix_tokens"]) < F32


def test_cameras_come_in_the_published_order_whatever_that_of_the_mapping(golden: Golden) -> None:
    whole = golden.observation()
    reverse = replace(whole, images=dict(reversed(list(whole.images.items()))))
    tokens, mask = pi05.embed_prefix(golden.nested(), golden.model(), FLOAT32, reverse)
    np.testing.assert_array_equal(mask, golden.outputs["prefix_mask"])
    assert relative(tokens, golden.outputs["prefix_tokens"]) < F32


@pytest.mark.parametrize("form", FORMS)
def test_velocity(golden: Golden, form: str) -> None:
    assert relative(velocity(golden, "float32", form), golden.outputs["velocity"]) < F32


@pytest.mark.parametrize("form", FORMS)
def test_velocity_in_bfloat16(golden: Golden, form: str) -> None:
    found = velocity(golden, "bfloat16", form)
    assert found.dtype == jnp.float32
    assert relative(found, golden.outputs["velocity_bf16"]) < BF16


def test_something_is_left_out_and_nothing_that_exists(golden: Golden) -> None:
    whole, kept = golden.observation(), golden.left_out()
    assert len(kept.images) < len(whole.images)
    assert all(not whole.image_masks[name].any() for name in whole.images.keys() - kept.images.keys())
    assert len(kept.image_masks) < len(kept.images), "else none would stand for a camera without a mask"


def test_loss(golden: Golden) -> None:
    inputs = golden.inputs
    predicted, target = jax.jit(
        lambda params: pi05.predict(
            params,
            golden.model(),
            FLOAT32,
            golden.observation(),
            inputs["actions"],
            inputs["noise"][None],
            inputs["time"][None],
        )
    )(golden.nested())
    assert relative(np.square(predicted - target)[0].mean(axis=-1), golden.outputs["loss"]) < F32


def test_draws_share_a_prefix_without_changing_the_numbers(golden: Golden) -> None:
    inputs = golden.inputs
    args = (golden.nested(), golden.model(), FLOAT32, golden.observation(), inputs["actions"])
    noise, time = inputs["train_noise"][:3], inputs["train_time"][:3]
    together, _ = pi05.predict(*args, noise, time)
    for i in range(3):
        alone, _ = pi05.predict(*args, noise[i : i + 1], time[i : i + 1])
        assert relative(together[i], np.asarray(alone[0])) < F32


def test_samples(golden: Golden) -> None:
    for steps in golden.meta["sample_steps"]:
        found = jax.jit(partial(pi05.sample, config=golden.model(), compute=FLOAT32, steps=steps))(
            golden.nested(), observation=golden.left_out(), noise=golden.inputs["noise"]
        )
        assert relative(found, golden.outputs[f"sampled_{steps}"]) < F32, f"{steps} steps"


@pytest.mark.parametrize("recompute", ["nothing", "cheap", "layers"])
def test_gradients(golden: Golden, recompute: str) -> None:
    batch = _batch(golden)

    def objective(flat: step.Flat) -> jax.Array:
        noise, time = golden.inputs["train_noise"][:1], golden.inputs["train_time"][:1]
        compute = ComputeConfig(recompute=recompute)
        return step.loss_and_sums(tree.nest(flat), golden.model(), compute, batch, noise, time)[0]

    gradients = jax.jit(jax.grad(objective))(golden.params)
    largest = max(value for path, value in golden.outputs.items() if path.startswith("grad0_norm/"))
    for path, gradient in gradients.items():
        wanted = golden.outputs[f"grad0_norm/{path}"]
        assert abs(np.linalg.norm(np.asarray(gradient, np.float64)) - wanted) < F32 * max(wanted, 1e-3 * largest), path


def test_ten_training_steps(golden: Golden) -> None:
    model, train = golden.model(), golden.train()
    state, batch = step.new_state(dict(golden.params), model, train, FLOAT32), _batch(golden)
    update = jax.jit(partial(step.update, model=model, train=train, compute=FLOAT32))
    for i in range(train.steps):
        noise, time = golden.inputs["train_noise"][i : i + 1], golden.inputs["train_time"][i : i + 1]
        state, metrics = update(state, batch, noise, time)
        assert relative(metrics["loss"], golden.outputs["train_loss"][i]) < TRAINED, f"loss of step {i}"
        assert relative(metrics["grad_norm"], golden.outputs["train_grad_norm"][i]) < TRAINED_NORM, f"norm of step {i}"
    assert state.ema is not None
    for path in _with_a_gradient(golden):
        _check_sum(state.params[path], golden.outputs[f"final_param_sum/{path}"], path)
        _check_sum(state.ema[path], golden.outputs[f"final_ema_sum/{path}"], path)


def _with_a_gradient(golden: Golden) -> list[str]:
    """Leave out what softmax does not depend on (the keys' bias): its gradient is rounding, which Adam makes large.

    A gradient that is exactly zero, as of the prefix's last layer, stays in: such a parameter must not move.
    """
    norms = {path: float(golden.outputs[f"grad0_norm/{path}"]) for path in golden.params}
    noise = 1e-6 * max(norms.values())
    assert {path.split("/")[-2] for path, norm in norms.items() if 0 < norm < noise} <= {"key"}
    return [path for path, norm in norms.items() if norm == 0 or norm >= noise]


def _check_sum(array: jax.Array, wanted: np.ndarray, path: str) -> None:
    """A sum may cancel, so its error is measured against the sum of magnitudes."""
    values = np.asarray(array, np.float64)
    assert abs(values.sum() - wanted) < TRAINED * np.abs(values).sum() + 1e-12, path


def _batch(golden: Golden) -> step.Batch:
    actions = golden.inputs["actions"]
    return step.Batch(golden.observation(), actions, np.ones(actions.shape, bool))
