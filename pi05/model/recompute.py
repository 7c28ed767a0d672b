"""What a layer's backward pass computes again instead of keeping it (ComputeConfig.recompute)."""

from collections.abc import Callable
from typing import Any

import jax

_KEPT = frozenset({"dot_product_attention_fwd_wrapper"})
"""Primitives whose results are kept beside those of matrix products."""


def recomputed(layer: Callable, what: str) -> Callable:
    """Return the layer of a scan with a backward pass that recomputes `nothing`, what is `cheap`, or whole `layers`."""
    if what == "nothing":
        return layer
    return jax.checkpoint(layer, prevent_cse=False, policy=_is_dear if what == "cheap" else None)


def _is_dear(primitive: Any, *arguments: Any, **settings: Any) -> bool:
    """Return whether a result is kept: matrix products without a batch axis, and attention."""
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return primitive.name in _KEPT or bool(products(primitive, *arguments, **settings))
