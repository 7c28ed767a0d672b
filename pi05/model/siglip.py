"""The image tower: pictures to tokens of the language model's width (SigLIP, arXiv 2303.15343).

A pre-norm vision transformer without pooling: every patch becomes one token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pi05.config import ComputeConfig
from pi05.model import stack
from pi05.model.attention import attend
from pi05.model.stack import inside, kept
from pi05.model.tree import Params
from pi05.sharding import on_batch

_EPS = 1e-6


def encode_images(
    params: Params, images: Float[Array, "b h w 3"], patch_size: int, compute: ComputeConfig
) -> Float[Array, "b tokens width"]:
    """Turn images in [-1, 1] into patch tokens in row-major order.

    Args:
        params: The tree under `PaliGemma/img`.
        images: float32 in [-1, 1].
        patch_size: Side of a patch in pixels.
        compute: How; the patch embedding stays float32.
    """
    x = on_batch(_embed_patches(params, images, patch_size).astype(compute.dtype))

    def block(x: Array, layer: Params) -> tuple[Array, None]:
        return on_batch(_block(layer, x, compute.attention)), None

    x, _ = stack.run(block, x, params["Transformer"]["encoderblock"], compute, compute.recompute)
    x = _layer_norm(params["Transformer"]["encoder_norm"], x)
    return _dense(params["head"], x)


def _embed_patches(params: Params, images: Array, patch: int) -> Array:
    """Cut into patches and project them: a convolution whose stride is its size."""
    b, h, w, c = images.shape
    patches = images.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
    kernel = params["embedding"]["kernel"]
    tokens = patches.reshape(b, -1, patch * patch * c) @ kernel.reshape(-1, kernel.shape[-1])
    return tokens + params["embedding"]["bias"] + params["pos_embedding"]


def _block(layer: Params, x: Array, how: str) -> Array:
    x = x + _attention(layer["MultiHeadDotProductAttention_0"], _layer_norm(layer["LayerNorm_0"], x), how)
    hidden = kept(_dense(layer["MlpBlock_0"]["Dense_0"], _layer_norm(layer["LayerNorm_1"], x)))
    return x + _dense(layer["MlpBlock_0"]["Dense_1"], _gelu(hidden))


@inside
def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _attention(layer: Params, x: Array, how: str) -> Array:
    """Every token sees every token; b batch, t tokens, n heads, d head dim, w width."""

    def project(name: str) -> Array:
        kernel, bias = layer[name]["kernel"].astype(x.dtype), layer[name]["bias"].astype(x.dtype)
        return kept(jnp.einsum("btw,wnd->btnd", x, kernel) + bias)

    mixed = attend(project("query"), project("key"), project("value"), None, how)
    out = layer["out"]
    return jnp.einsum("btnd,ndw->btw", mixed, out["kernel"].astype(x.dtype)) + out["bias"].astype(x.dtype)


@inside
def _layer_norm(layer: Params, x: Array) -> Array:
    """Normalise in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + _EPS)
    return (y * layer["scale"] + layer["bias"]).astype(x.dtype)


def _dense(layer: Params, x: Array) -> Array:
    return x @ layer["kernel"].astype(x.dtype) + layer["bias"].astype(x.dtype)
