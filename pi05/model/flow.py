"""Flow matching (arXiv 2210.02747, as Pi0 uses it): t = 1 is noise, t = 0 is data, the velocity points to the noise.

Knows arrays and a velocity function, nothing of the network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_MIN_PERIOD, _MAX_PERIOD = 4e-3, 4.0
_BETA = (1.5, 1.0)
_TIME_RANGE, _TIME_FLOOR = 0.999, 0.001


def time_embedding(time: Float[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Return sines then cosines of 2 pi t / period, the periods running geometrically from 4e-3 to 4."""
    fraction = jnp.linspace(0.0, 1.0, width // 2, dtype=jnp.float32)
    period = _MIN_PERIOD * (_MAX_PERIOD / _MIN_PERIOD) ** fraction
    angles = time[:, None] * (2 * jnp.pi / period)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def draw(key: jax.Array, shape: tuple[int, ...]) -> tuple[Float[Array, "b h a"], Float[Array, " b"]]:
    """Draw the noise, N(0, 1) of `shape`, and the time, Beta(1.5, 1) * 0.999 + 0.001, of one training batch."""
    noise_key, time_key = jax.random.split(key)
    # Beta(a, 1) by inversion: its distribution function is t^a.
    time = jax.random.uniform(time_key, shape[:1]) ** (1 / _BETA[0])
    return jax.random.normal(noise_key, shape), time * _TIME_RANGE + _TIME_FLOOR


def interpolate(
    actions: Float[Array, "b h a"], noise: Float[Array, "b h a"], time: Float[Array, " b"]
) -> tuple[Float[Array, "b h a"], Float[Array, "b h a"]]:
    """Return the noisy actions at `time` and the velocity to learn there."""
    t = time[:, None, None]
    return t * noise + (1 - t) * actions, noise - actions


def integrate(
    velocity: Callable[[Float[Array, "b h a"], Float[Array, " b"]], Float[Array, "b h a"]],
    noise: Float[Array, "b h a"],
    steps: int,
) -> Float[Array, "b h a"]:
    """Follow the velocity from noise at t = 1 to data at t = 0 in equal Euler steps."""

    def step(i: Array, x: Array) -> Array:
        time = jnp.full(x.shape[0], 1 - i / steps, jnp.float32)
        return x - velocity(x, time) / steps

    return jax.lax.fori_loop(0, steps, step, noise)
