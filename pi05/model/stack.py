"""A stack of equal layers, run over activations: looped or unrolled, keeping much or little for the backward pass.

    recompute   kept a layer                                        computed again in the backward pass
    nothing     every matrix product's operands                     the insides of norms and GELUs
    cheap       what matrix products and attention made (`kept`)    everything between them
    layers      the layer's input                                   the layer

Looped, one layer's program is compiled and what is kept is copied into a stack and out of it; unrolled, nothing is
copied, and weights that were gathered for the forward pass may serve the backward pass, too.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from pi05.config import ComputeConfig

_FEW = 4
"""Layers that are unrolled anyway: a CPU compiles and runs them a third faster."""
_KEPT = "kept"
_ATTENTION = "dot_product_attention_fwd_wrapper"
"""Primitive of cuDNN's attention in JAX."""

inside = partial(jax.checkpoint, prevent_cse=True)
"""Decorates what is cheap for its size: its backward pass computes its inside again from what it was given."""


def kept(x: Array) -> Array:
    """Mark what a matrix product made."""
    return checkpoint_name(x, _KEPT)


def run(
    layer: Callable[[Array, Any], tuple[Array, Any]], x: Array, stacked: Any, compute: ComputeConfig, recompute: str
) -> tuple[Array, Any]:
    """Return the last layer's activations, and what each layer left beside them, stacked.

    Args:
        layer: Activations and one layer's part of `stacked` to activations and what it leaves.
        x: Activations.
        stacked: Arrays whose leading axis is the layer.
        compute: Whether layers are looped or unrolled.
        recompute: What the backward pass computes again.
    """
    depth = jax.tree.leaves(stacked)[0].shape[0]
    unrolled = compute.layers == "unrolled" or (compute.layers == "auto" and depth <= _FEW)
    if recompute != "nothing":  # between iterations of a loop there is nothing to merge with
        layer = jax.checkpoint(layer, prevent_cse=unrolled, policy=_is_kept if recompute == "cheap" else None)
    return jax.lax.scan(layer, x, stacked, unroll=depth if unrolled else 1)


def _is_kept(primitive: Any, *arguments: Any, **settings: Any) -> bool:
    named = jax.checkpoint_policies.save_only_these_names(_KEPT)
    return primitive.name == _ATTENTION or named(primitive, *arguments, **settings)
