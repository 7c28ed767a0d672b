"""The image tower: pictures to tokens of the language model's width (SigLIP, arXiv 2303.15343).

A pre-norm vision transformer without pooling: every patch becomes one token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pi05.model.tree import Params

_EPS = 1e-6


def encode_images(
    params: Params, images: Float[Array, "b h w 3"], patch_size: int, dtype: jnp.dtype, remat: bool = False
) -> Float[Array, "b tokens width"]:
    """Turn images in [-1, 1] into patch tokens in row-major order.

    Args:
        params: The tree under `PaliGemma/img`.
        images: float32 in [-1, 1].
        patch_size: Side of a patch in pixels.
        dtype: Compute type after the patch embedding, which stays float32.
        remat: Whether the backward pass recomputes each block.
    """
    x = _embed_patches(params, images, patch_size).astype(dtype)
    block = jax.checkpoint(_block) if remat else _block
    x, _ = jax.lax.scan(lambda x, layer: (block(layer, x), None), x, params["Transformer"]["encoderblock"])
    x = _layer_norm(params["Transformer"]["encoder_norm"], x)
    return _dense(params["head"], x)


def _embed_patches(params: Params, images: Array, patch: int) -> Array:
    """Cut into patches and project them: a convolution whose stride is its size."""
    b, h, w, c = images.shape
    patches = images.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    kernel = params["embedding"]["kernel"]
    tokens = patches.reshape(b, -1, patch * patch * c) @ kernel.reshape(-1, kernel.shape[-1])
    return tokens + params["embedding"]["bias"] + params["pos_embedding"]


def _block(layer: Params, x: Array) -> Array:
    x = x + _attention(layer["MultiHeadDotProductAttention_0"], _layer_norm(layer["LayerNorm_0"], x))
    hidden = _dense(layer["MlpBlock_0"]["Dense_0"], _layer_norm(layer["LayerNorm_1"], x))
    return x + _dense(layer["MlpBlock_0"]["Dense_1"], jax.nn.gelu(hidden, approximate=True))


def _attention(layer: Params, x: Array) -> Array:
    """Every token sees every token; b batch, t and s tokens, n heads, d head dim, w width."""

    def project(name: str) -> Array:
        kernel, bias = layer[name]["kernel"].astype(x.dtype), layer[name]["bias"].astype(x.dtype)
        return jnp.einsum("btw,wnd->btnd", x, kernel) + bias

    q, k, v = project("query"), project("key"), project("value")
    logits = jnp.einsum("btnd,bsnd->bnts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
    mixed = jnp.einsum("bnts,bsnd->btnd", weights, v)
    out = layer["out"]
    return jnp.einsum("btnd,ndw->btw", mixed, out["kernel"].astype(x.dtype)) + out["bias"].astype(x.dtype)


def _layer_norm(layer: Params, x: Array) -> Array:
    """Normalise in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + _EPS)
    return (y * layer["scale"] + layer["bias"]).astype(x.dtype)


def _dense(layer: Params, x: Array) -> Array:
    return x @ layer["kernel"].astype(x.dtype) + layer["bias"].astype(x.dtype)
