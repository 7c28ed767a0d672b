"""Queries, keys and values to mixtures of values, by what a device has for it.

    xla      logits and softmax in float32 as arrays in memory; every device
    cudnn    one kernel, which keeps no logits; NVIDIA GPUs, bfloat16

Which keys exist is a length: they come first. (Flash attention: arXiv 2205.14135.)

Shapes: b batch, t queries, s keys, n query heads, k kv heads, d head dim.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pi05.sharding import on_batch

_MASKED = -2.3819763e38
"""Logit of a key that does not exist; the value the published model uses."""


def attend(
    q: Float[Array, "b t n d"],
    k: Float[Array, "b s k d"],
    v: Float[Array, "b s k d"],
    lengths: Int[Array, " b"] | None,
    how: str,
) -> Float[Array, "b t n d"]:
    """Let every query see the first `lengths` keys of its sample; None means all.

    Queries are multiplied by d^-0.5 here. `how` is `xla` or `cudnn`; `auto`, which nobody resolved, is xla.
    """
    q, k, v = on_batch(q), on_batch(k), on_batch(v)
    if how == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")
    return _by_xla(q * q.shape[-1] ** -0.5, k, v, lengths)


def _by_xla(q: Array, k: Array, v: Array, lengths: Array | None) -> Array:
    """Attend with logits in memory.

    The g = n / k query heads of a kv head are folded into the query tokens: one batched matrix product instead of g.
    """
    b, t, n, d = q.shape
    kv = k.shape[2]
    folded = q.reshape(b, t, kv, n // kv, d).swapaxes(1, 2).reshape(b, kv, -1, d)
    logits = jnp.einsum("bktd,bskd->bkts", folded, k, preferred_element_type=jnp.float32)
    if lengths is not None:
        exists = jnp.arange(k.shape[1]) < lengths[:, None]
        logits = jnp.where(exists[:, None, None, :], logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bkts,bskd->bktd", weights, v)
    return mixed.reshape(b, kv, t, n // kv, d).swapaxes(1, 2).reshape(b, t, n, d)
