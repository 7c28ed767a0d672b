"""Attention as the model has it -> milliseconds and errors of each way to compute it, forward and backward.

Errors are the largest ones, relative to the largest magnitude, beside XLA's attention in float32 of the same bfloat16
inputs: what bfloat16 itself costs is in both rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu_kit.clock import milliseconds
from benchmarks.gpu_kit.parts import Case, Row
from benchmarks.gpu_kit.sizes import Sizes
from pi05.model.attention import attend


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention: batch, queries and keys, heads of each, width of a head, and whether keys are missing."""

    name: str
    b: int
    t: int
    n: int
    kv: int
    d: int
    lengths: bool


SHAPES = (Shape("tower", 16, 256, 16, 16, 72, False), Shape("prefix", 8, 576, 8, 1, 256, True))
SMALL = (Shape("tower", 2, 16, 2, 2, 8, False), Shape("prefix", 2, 16, 2, 1, 8, True))
Arrays = tuple[jax.Array, ...]


def cases(sizes: Sizes) -> Iterator[Case]:
    """Compute the tower's attention and the prefix's in each way."""
    for shape in SMALL if sizes.cpu else SHAPES:
        for how in ("xla",) if sizes.cpu else ("xla", "cudnn"):
            yield f"{shape.name}, heads of {shape.d}, {how}", partial(_beside_float32, shape, how)


def _beside_float32(shape: Shape, how: str) -> Row:
    inputs, lengths = _inputs(shape)
    forward, both = _compiled(lengths, how)
    with jax.default_matmul_precision("highest"):
        exact = _compiled(lengths, "xla")[1](*(array.astype(jnp.float32) for array in inputs))
    found = both(*inputs)
    return {
        "error_forward": _relative(found[0], exact[0]),
        "error_of_gradients": max(map(_relative, found[1:], exact[1:])),
        "ms_forward": milliseconds(lambda: forward(*inputs[:3])),
        "ms_both": milliseconds(lambda: both(*inputs)),
    }


def _inputs(shape: Shape) -> tuple[Arrays, jax.Array | None]:
    """Return queries, keys, values and the gradient of what is made of them, bfloat16, and how many keys exist."""
    queries, keys = (shape.b, shape.t, shape.n, shape.d), (shape.b, shape.t, shape.kv, shape.d)
    made = zip(jax.random.split(jax.random.key(0), 4), (queries, keys, keys, queries), strict=True)
    arrays = tuple(jax.random.normal(key, size, jnp.bfloat16) for key, size in made)
    lengths = np.linspace(shape.t // 2, shape.t, shape.b, dtype=np.int32)
    return arrays, jnp.asarray(lengths) if shape.lengths else None


def _compiled(lengths: jax.Array | None, how: str) -> tuple[Callable[..., jax.Array], Callable[..., Arrays]]:
    """Return the forward pass, and that with the gradients of queries, keys and values."""

    def mix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, lengths, how)

    def both(q: jax.Array, k: jax.Array, v: jax.Array, gradient: jax.Array) -> Arrays:
        mixed, back = jax.vjp(mix, q, k, v)
        return (mixed, *back(gradient))

    return jax.jit(mix), jax.jit(both)


def _relative(found: jax.Array, wanted: jax.Array) -> float:
    error = jnp.abs(found.astype(jnp.float32) - wanted).max() / jnp.abs(wanted).max()
    return float(error)
