"""One optimizer step: loss, gradients, AdamW, averaged weights, metrics. Pure and jitted.

Randomness comes from the run's seed and the step number alone, so a resumed run draws what an uninterrupted one would
have drawn, on any number of devices.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pi05 import sharding
from pi05.config import ComputeConfig, ModelConfig, TrainConfig
from pi05.errors import ConfigError
from pi05.model import device, flow, leaves, pi05, tree, weights
from pi05.observation import AnyArray, Observation
from pi05.training.augment import augment
from pi05.training.optimizer import optimizer, schedule, updates

Flat = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]
Arrays = TypeVar("Arrays")
Part = tuple["Batch", Array, Array]
"""Samples, their noise (draws, b, h, a) and time (draws, b)."""


@struct.dataclass
class Batch:
    """Samples of one step.

    Attributes:
        observation: What the policy sees.
        actions: Normalised action chunks, padded to the model's width.
        real: Which entries are actions of the robot inside the episode, not padding.
    """

    observation: Observation
    actions: Float[AnyArray, "b h a"]
    real: Bool[AnyArray, "b h a"]


@struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
        step: Optimizer steps done.
        params: All parameters, by path; float32, but frozen ones in the type they are computed in.
        opt_state: Optimizer moments of the trainable parameters.
        ema: Averaged trainable parameters, or None.
    """

    step: Int[Array, ""]
    params: Flat
    opt_state: optax.OptState
    ema: Flat | None


def trainable_paths(config: ModelConfig, freeze: tuple[str, ...]) -> list[str]:
    """Return the paths that no pattern of `freeze` matches and that have no factors of LoRA trained in their place.

    Raises:
        ConfigError: A pattern matches no parameter, or nothing is left.
    """
    paths = list(tree.leaves(config))
    for pattern in freeze:
        if not any(re.fullmatch(pattern, path) for path in paths):
            raise ConfigError(f"train.freeze {pattern!r} matches no parameter; paths look like {paths[0]!r}")
    kept = leaves.trained(config, freeze)
    if not kept:
        raise ConfigError(f"train.freeze {list(freeze)} leaves no parameter to train")
    return kept


def new_state(params: Flat, model: ModelConfig, train: TrainConfig, compute: ComputeConfig) -> TrainState:
    """Return the state before the first step."""
    trainable = {path: params[path] for path in trainable_paths(model, train.freeze)}
    frozen = {path: w.astype(_frozen_as(path, compute)) for path, w in params.items() if path not in trainable}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params={path: frozen.get(path, w) for path, w in params.items()},
        opt_state=optimizer(train.optimizer, train.steps).init(trainable),
        ema=None if train.ema_decay is None else trainable,
    )


def _frozen_as(path: str, compute: ComputeConfig) -> str:
    """Return the type in which a frozen parameter is kept: that which the model rounds it to before it uses it.

    So nothing changes but the memory. The table of embeddings, which is rounded after it is scaled, is rounded before,
    as in the published code.
    """
    return "float32" if weights.is_exact(path) and path != tree.EMBEDDING else compute.dtype


def policy_params(state: TrainState) -> Flat:
    """Return the parameters a policy uses: the averaged ones where there are any."""
    return {**state.params, **(state.ema or {})}


def loss_and_sums(
    params: tree.Params,
    config: ModelConfig,
    compute: ComputeConfig,
    batch: Batch,
    noise: Float[Array, "n b h a"],
    time: Float[Array, "n b"],
) -> tuple[Float[Array, ""], Metrics]:
    """Return the published loss, and beside it the means that `readable` makes metrics of."""
    actions = jnp.asarray(batch.actions)
    predicted, target = pi05.predict(params, config, compute, batch.observation, actions, noise, time)
    squared = jnp.square(predicted - target)
    loss = squared.mean()
    real = jnp.broadcast_to(batch.real, squared.shape)
    return loss, {
        "loss": loss,
        "squared_real": jnp.where(real, squared, 0).mean(),
        "real": real.mean(),
        "nothing": jnp.square(target).mean(),
    }


def readable(means: Metrics) -> Metrics:
    """Return the published loss and what makes it readable.

    Metrics:
        loss: As published, over all dimensions and steps.
        loss_real: The same over the robot's own dimensions inside the episode, without padding.
        explained: 1 - loss / (loss of predicting zero velocity); near 0 means that nothing was learned.
    """
    return {
        "loss": means["loss"],
        "loss_real": means["squared_real"] / means["real"],
        "explained": 1 - means["loss"] / means["nothing"],
    }


def update(
    state: TrainState,
    batch: Batch,
    noise: Float[Array, "n b h a"],
    time: Float[Array, "n b"],
    model: ModelConfig,
    train: TrainConfig,
    compute: ComputeConfig,
) -> tuple[TrainState, Metrics]:
    """Take one optimizer step on given noise and time.

    A step whose loss or gradient is not finite changes nothing but the number of steps done.
    """
    trainable = {path: state.params[path] for path in trainable_paths(model, train.freeze)}

    def gradient(part: Part) -> tuple[Flat, Metrics]:
        def objective(trainable: Flat) -> tuple[Array, Metrics]:
            return loss_and_sums(tree.nest({**state.params, **trainable}), model, compute, *part)

        return jax.grad(objective, has_aux=True)(trainable)

    gradients, means = _in_parts(gradient, (batch, noise, time), compute.microbatches)
    grad_norm = optax.tree.norm(gradients)
    changes, opt_state = optimizer(train.optimizer, train.steps).update(gradients, state.opt_state, trainable)
    changed = cast(Flat, optax.apply_updates(cast(optax.Params, trainable), changes))
    finite = jnp.isfinite(means["loss"]) & jnp.isfinite(grad_norm)
    changed, opt_state = _chosen(finite, (changed, opt_state), (trainable, state.opt_state))
    ema = state.ema and _chosen(finite, _average(state.ema, changed, train.ema_decay), state.ema)  # None stays None
    params = {**state.params, **changed}
    metrics = readable(means) | {
        "grad_norm": grad_norm,
        "param_norm": optax.tree.norm(params),
        "learning_rate": schedule(train.optimizer, train.steps)(updates(state.opt_state)),
        "skipped": state.step + 1 - updates(opt_state),
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics


def state_sharding(mesh: Mesh, model: ModelConfig, train: TrainConfig, compute: ComputeConfig) -> TrainState:
    """Return a TrainState of shardings, found from shapes alone."""
    return jax.tree.map(
        lambda array: sharding.fsdp_sharding(mesh, array, train.fsdp_min_bytes), abstract_state(model, train, compute)
    )


def abstract_state(model: ModelConfig, train: TrainConfig, compute: ComputeConfig) -> TrainState:
    """Return the shapes and dtypes of a TrainState, allocating nothing."""
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in tree.leaves(model).items()}
    return jax.eval_shape(lambda params: new_state(params, model, train, compute), shapes)


def placed_state(mesh: Mesh, model: ModelConfig, train: TrainConfig, compute: ComputeConfig) -> TrainState:
    """Return shapes and dtypes of a TrainState with where each array lives, for who reads one from files."""
    return jax.tree.map(
        lambda array, place: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
        abstract_state(model, train, compute),
        state_sharding(mesh, model, train, compute),
    )


def make_step(
    mesh: Mesh, model: ModelConfig, train: TrainConfig, compute: ComputeConfig
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return the compiled step; the state stays sharded on the mesh and its memory is reused."""
    if train.batch_size % (compute.microbatches * mesh.size):
        raise ConfigError(
            f"batch_size {train.batch_size} is not divisible by {compute.microbatches} microbatches on {mesh.size} "
            f"devices; use compute.microbatches={_divisor(train.batch_size // mesh.size, compute.microbatches)}"
        )
    states = state_sharding(mesh, model, train, compute)
    compute = device.resolve(compute, model, mesh.devices.flat[0])

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = {name: jnp.asarray(pictures) for name, pictures in batch.observation.images.items()}
        images = augment(images, train.augment, train.seed, state.step)
        batch = replace(batch, observation=replace(batch.observation, images=images))
        key = jax.random.fold_in(jax.random.key(train.seed), state.step)
        draws = train.draws_per_sample
        noise, time = flow.draw(key, (draws * batch.actions.shape[0], *batch.actions.shape[1:]))
        noise, time = noise.reshape(draws, *batch.actions.shape), time.reshape(draws, batch.actions.shape[0])
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return update(state, batch, noise, time, model, train, compute)

    return jax.jit(
        step,
        in_shardings=(states, sharding.batch_sharding(mesh)),
        out_shardings=(states, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=device.xla_options(compute, mesh.devices.flat[0]),
    )


def _in_parts(gradient: Callable[[Part], tuple[Flat, Metrics]], whole: Part, parts: int) -> tuple[Flat, Metrics]:
    """Return the means of gradients and metrics over the parts of a batch, one computed after the other.

    Part j has every sample i with i mod parts = j, so each device keeps its own samples.
    """
    if parts == 1:
        return gradient(whole)

    def split(array: Array, axis: int) -> Array:
        shape = array.shape
        split = jnp.asarray(array).reshape(*shape[:axis], shape[axis] // parts, parts, *shape[axis + 1 :])
        return jnp.moveaxis(split, axis + 1, 0)

    batch, noise, time = whole
    every = jax.tree.map(lambda array: split(array, 0), batch), split(noise, 1), split(time, 1)

    def add(total: tuple[Flat, Metrics], part: Part) -> tuple[tuple[Flat, Metrics], None]:
        return jax.tree.map(jnp.add, total, gradient(part)), None

    # From zeros, not from the first part: a loop over the rest of two has one turn, which XLA makes none of, and then
    # both parts are in memory together.
    nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(gradient, jax.tree.map(lambda array: array[0], every)))
    total, _ = jax.lax.scan(add, nothing, every)
    return jax.tree.map(lambda array: array / parts, total)


def _chosen(finite: Bool[Array, ""], new: Arrays, old: Arrays) -> Arrays:
    """Return the new arrays where the step is finite, else the old ones: a select inside the update's own kernels."""
    return jax.tree.map(lambda one, other: jnp.where(finite, one, other), new, old)


def _divisor(number: int, near: int) -> int:
    """Return the smallest divisor of a number that is at least `near`, or the number."""
    return next((divisor for divisor in range(near, number) if number % divisor == 0), number)


def _average(ema: Flat, params: Flat, decay: float | None) -> Flat:
    assert decay is not None
    return jax.tree.map(lambda old, new: old * decay + new * (1 - decay), ema, params)
