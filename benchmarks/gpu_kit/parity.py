"""The golden numbers of the reference implementation on this device -> the largest relative errors.

On a CPU tests/parity holds the same to 1e-5 in float32 (trained numbers 1e-4) and to 2e-2 in bfloat16. Of bfloat16 the
reference says the velocity alone; the other errors are those against its float32 numbers.
"""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from benchmarks.gpu_kit.parts import Case, NotHere, Row
from benchmarks.gpu_kit.sizes import Sizes
from pi05.config import ComputeConfig
from pi05.model import flow, pi05, tree
from pi05.training import step
from tests.parity import golden as files
from tests.parity.golden import Golden

_WAYS = (
    ComputeConfig(dtype="float32", attention="xla"),
    ComputeConfig(dtype="bfloat16", attention="xla"),
    ComputeConfig(dtype="bfloat16", attention="cudnn"),
)


def cases(sizes: Sizes) -> Iterator[Case]:
    """Compute in float32 and bfloat16, with XLA's attention and cuDNN's."""
    folder = files.place()
    if folder is None:
        raise NotHere(f"no golden numbers at {files.DEFAULT}; set PI05_GOLDEN to a folder of the form of pi05_small")
    jax.config.update("jax_default_matmul_precision", "highest")
    golden = files.load(folder)
    for compute in _WAYS[:1] if sizes.cpu else _WAYS:
        yield f"{compute.dtype}, {compute.attention}", partial(_errors, golden, compute)


def _errors(golden: Golden, compute: ComputeConfig) -> Row:
    """Return the error of each kind of number."""
    wanted = golden.outputs["velocity" if compute.dtype == "float32" else "velocity_bf16"]
    steps = golden.meta["sample_steps"][0]
    sample = jax.jit(partial(pi05.sample, config=golden.model(), compute=compute, steps=steps))
    drawn = sample(golden.nested(), observation=golden.left_out(), noise=golden.inputs["noise"])
    return {
        "velocity": _relative(_velocity(golden, compute), wanted),
        "samples": _relative(drawn, golden.outputs[f"sampled_{steps}"]),
        "gradient_norms": _gradient_error(golden, compute),
        "training_losses": _training_error(golden, compute),
    }


def _velocity(golden: Golden, compute: ComputeConfig) -> jax.Array:
    """Return the predicted velocity in the middle between noise and actions."""
    noise, time, config = golden.inputs["noise"], golden.inputs["time"], golden.model()
    noisy, _ = flow.interpolate(golden.inputs["actions"], noise, time)
    observation = golden.left_out()

    @jax.jit
    def run(params: tree.Params) -> jax.Array:
        prefix = pi05.encode(params, config, compute, observation)
        return pi05.velocity(params, config, compute, prefix, noisy, time)

    return run(golden.nested())


def _gradient_error(golden: Golden, compute: ComputeConfig) -> float:
    """Return the largest error of the norm of a parameter's gradient, of those that are more than rounding."""
    noise, time = golden.inputs["train_noise"][:1], golden.inputs["train_time"][:1]

    def objective(flat: step.Flat) -> jax.Array:
        return step.loss_and_sums(tree.nest(flat), golden.model(), compute, _batch(golden), noise, time)[0]

    gradients = jax.jit(jax.grad(objective))(golden.params)
    wanted = {path: float(golden.outputs[f"grad0_norm/{path}"]) for path in gradients}
    least = 1e-3 * max(wanted.values())
    norms = {path: np.linalg.norm(np.asarray(gradient, np.float64)) for path, gradient in gradients.items()}
    return max(abs(float(norms[path]) - wanted[path]) / max(wanted[path], least) for path in wanted)


def _training_error(golden: Golden, compute: ComputeConfig) -> float:
    """Return the largest error of a loss in ten optimizer steps."""
    model, train = golden.model(), golden.train()
    state, update = (
        step.new_state(dict(golden.params), model, train, compute),
        jax.jit(partial(step.update, model=model, train=train, compute=compute)),
    )
    losses = []
    for i in range(train.steps):
        noise, time = golden.inputs["train_noise"][i : i + 1], golden.inputs["train_time"][i : i + 1]
        state, metrics = update(state, _batch(golden), noise, time)
        losses.append(float(metrics["loss"]))
    wanted = golden.outputs["train_loss"]
    return float(np.max(np.abs(losses - wanted) / np.abs(wanted)))


def _batch(golden: Golden) -> step.Batch:
    actions = golden.inputs["actions"]
    return step.Batch(golden.observation(), actions, np.ones(actions.shape, bool))


def _relative(found: jax.Array, wanted: np.ndarray) -> float:
    """Return the largest error relative to the largest magnitude."""
    return float(np.max(np.abs(np.asarray(found, np.float64) - wanted)) / np.max(np.abs(wanted)))
