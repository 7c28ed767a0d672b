"""The learning-rate schedule and AdamW of the recipe (OptimizerConfig), as one optax transformation."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int

from pi05.config import OptimizerConfig

Schedule = Callable[[ArrayLike], Float[Array, ""]]


def schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Return step -> learning rate: linear from peak / (warmup + 1), then half a cosine to end_lr at decay_steps."""
    warmup, decay = config.warmup_steps, config.decay_steps or steps

    def learning_rate(count: ArrayLike) -> Float[Array, ""]:
        step = jnp.asarray(count)
        rising = config.peak_lr * (step + 1) / (warmup + 1)
        fraction = jnp.clip((step - warmup) / (decay - warmup), 0.0, 1.0)
        falling = config.end_lr + (config.peak_lr - config.end_lr) * 0.5 * (1 + jnp.cos(jnp.pi * fraction))
        return jnp.where(step < warmup, rising, falling)

    return learning_rate


def optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return global-norm clipping followed by AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule(config, steps), b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
        ),
    )


def updates(state: optax.OptState) -> Int[Array, ""]:
    """Return how many updates the moments have seen: the steps done, less those that were skipped."""
    return optax.tree.get(state, "count", filtering=lambda path, _: path[-1].tuple_name == "ScaleByAdamState")
