"""The two Gemmas: a prefix pass that leaves keys and values behind, and a suffix pass that reads them.

The published model attends jointly over prefix and suffix with a mask in which the prefix does not see the suffix:

              prefix  suffix
    prefix      1       0
    suffix      1       1

So the prefix can run first and alone; the suffix then needs only its keys and values. Training and sampling share
these two passes, several suffixes can share one prefix, and the last layer's prefix output, which nobody reads, is
never computed. (Gemma: arXiv 2403.08295; the mixture: arXiv 2410.24164; adaptive norms: arXiv 2504.16054.)

A matrix w may have factors of LoRA (arXiv 2106.09685) beside it: then x w becomes x w + (x a) b. The sum w + a b is
never made, because w may be of a coarser type and its gradient is not wanted.

Shapes: b batch, s prefix tokens, h suffix tokens, w width, n heads, k kv heads, d head dim, l layers, r rank.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pi05.config import ComputeConfig
from pi05.model import leaves, stack, tree
from pi05.model.attention import attend
from pi05.model.stack import inside, kept
from pi05.model.tree import Params
from pi05.sharding import on_batch

_EPS = 1e-6
_MAX_WAVELENGTH = 10_000
_ADAPTIVE = ("pre_attention_norm_1", "pre_ffw_norm_1")
"""The expert's norms in a layer; what the time vector makes of them is one product for all layers."""


class KeyValues(NamedTuple):
    """What the prefix leaves for the suffix.

    Attributes:
        keys, values: Of all layers, keys already rotated.
        lengths: How many of a sample's prefix tokens exist; they come first.
    """

    keys: Float[Array, "l b s k d"]
    values: Float[Array, "l b s k d"]
    lengths: Int[Array, " b"]


def embed(params: Params, tokens: Int[Array, "b s"], dtype: jnp.dtype) -> Float[Array, "b s w"]:
    """Look up token embeddings, scaled by sqrt(width) in float32, whatever a frozen table is stored in."""
    table = params["embedder"]["input_embedding"]
    return (table[tokens].astype(jnp.float32) * math.sqrt(table.shape[-1])).astype(dtype)


def encode_prefix(
    params: Params, x: Float[Array, "b s w"], lengths: Int[Array, " b"], compute: ComputeConfig
) -> KeyValues:
    """Run the language model over the prefix.

    Args:
        params: The tree under `PaliGemma/llm`.
        x: Image and prompt tokens, those that exist first.
        lengths: How many of them exist; the others are seen by nobody.
        compute: How.
    """
    positions = jnp.arange(x.shape[1])[None]
    layers = tree.flatten(params["layers"])
    in_place = [path for path in layers if _has_factors(params["layers"]) and not leaves.is_factor(path)]

    def layer_step(x: Array, scanned: tuple[Array, dict[str, Array]]) -> tuple[Array, tuple[Array, Array]]:
        i, layer = scanned
        frozen = {path: jax.lax.dynamic_index_in_dim(layers[path], i, keepdims=False) for path in in_place}
        layer = tree.nest({**layer, **frozen})
        q, k, v = _project(layer, "", _rms_norm(layer["pre_attention_norm"], x), positions)
        x = x + _merge(layer["attn"]["attn_vec_einsum"], attend(q, k, v, lengths, compute.attention))
        x = x + _mlp(layer["mlp"], _rms_norm(layer["pre_ffw_norm"], x))
        return on_batch(x), (on_batch(k), on_batch(v))

    # Frozen weights have no gradient to collect, so a layer may read its own where they lie: no copy without the last.
    before_last = {path: w[:-1] for path, w in layers.items() if path not in in_place}
    stacked = jnp.arange(len(layers["mlp/linear"]) - 1), before_last
    x, (keys, values) = stack.run(layer_step, on_batch(x), stacked, compute, compute.recompute)
    last = jax.tree.map(lambda w: w[-1], params["layers"])
    _, k, v = _project(last, "", _rms_norm(last["pre_attention_norm"], x), positions)
    return KeyValues(jnp.concatenate([keys, k[None]]), jnp.concatenate([values, v[None]]), lengths)


def decode_suffix(
    params: Params, prefix: KeyValues, x: Float[Array, "b h w"], condition: Float[Array, "b w"], compute: ComputeConfig
) -> Float[Array, "b h w"]:
    """Run the action expert over the suffix, which sees the whole prefix and itself.

    Args:
        params: The tree under `PaliGemma/llm`.
        prefix: Keys and values of `encode_prefix`.
        x: Suffix tokens.
        condition: Time vector that scales, shifts and gates every norm.
        compute: How; nothing is computed again.
    """
    h, condition = x.shape[1], condition.astype(x.dtype)
    positions = prefix.lengths[:, None] + jnp.arange(h)
    norms = {name: _modulation(params["layers"][name], condition) for name in _ADAPTIVE}
    layers = {name: layer for name, layer in params["layers"].items() if name not in _ADAPTIVE}

    def layer_step(x: Array, scanned: tuple[Params, dict[str, Array], Array, Array]) -> tuple[Array, None]:
        layer, norm, keys, values = scanned
        y, gate = _adaptive_norm(x, norm["pre_attention_norm_1"])
        q, k, v = _project(layer, "_1", y, positions)
        k, v = jnp.concatenate([k, keys], axis=1), jnp.concatenate([v, values], axis=1)  # what exists comes first
        mixed = attend(q, k, v, h + prefix.lengths, compute.attention)
        x = x + _merge(layer["attn"]["attn_vec_einsum_1"], mixed) * gate
        y, gate = _adaptive_norm(x, norm["pre_ffw_norm_1"])
        return on_batch(x + _mlp(layer["mlp_1"], y) * gate), None

    stacked = layers, norms, prefix.keys, prefix.values
    x, _ = stack.run(layer_step, on_batch(x), stacked, compute, recompute="nothing")
    return _adaptive_norm(x, _modulation(params["final_norm_1"], condition))[0]


def _project(layer: Params, suffix: str, x: Array, positions: Array) -> tuple[Array, Array, Array]:
    """Return rotated queries (b t n d), rotated keys and values (b t k d)."""
    attention = layer["attn"]
    if f"qkv_einsum{suffix}" in attention:
        q, k, v = _to_heads("bsw,cnwd->cbsnd", x, attention[f"qkv_einsum{suffix}"])
    else:
        q = _to_heads("btw,nwd->btnd", x, attention[f"q_einsum{suffix}"])
        k, v = _to_heads("bsw,ckwd->cbskd", x, attention[f"kv_einsum{suffix}"])
    return kept(_rotate(q, positions)), kept(_rotate(k, positions)), kept(v)


def _has_factors(layers: Params) -> bool:
    """Return whether the language model has factors of LoRA; its own weights are then frozen."""
    return "lora_a" in layers["attn"]["attn_vec_einsum"]


def _to_heads(equation: str, x: Array, part: Params) -> Array:
    """Multiply x by w; with factors of LoRA also by a, which has r in place of d, and b, which has r in place of w."""
    y = jnp.einsum(equation, x, part["w"].astype(x.dtype))
    if "lora_a" not in part:
        return y
    weight, out = equation.split(",")[1].split("->")
    low, narrow = jnp.einsum(equation.replace("d", "r"), x, part["lora_a"].astype(x.dtype)), out.replace("d", "r")
    return y + jnp.einsum(f"{narrow},{weight.replace('w', 'r')}->{out}", low, part["lora_b"].astype(x.dtype))


def _merge(out: Params, mixed: Array) -> Array:
    """Bring the heads' mixtures (b t n d) to the width."""
    b, t, n, d = mixed.shape
    w = out["w"].astype(mixed.dtype)
    tokens = mixed.reshape(b * t, n * d)
    y = tokens @ w.reshape(n * d, -1)
    if "lora_a" in out:  # the heads share what a makes of them, so in the published code their b add up
        y += _low_rank(tokens, out["lora_a"].reshape(n * d, -1), out["lora_b"].sum(axis=0))
    return y.reshape(b, t, -1)


def _mlp(layer: Params, x: Array) -> Array:
    """Work on tokens without their batch axis: its gradients are then plain matrix products."""
    tokens = x.reshape(-1, x.shape[-1])
    gate, up = (tokens @ w for w in layer["gating_einsum"].astype(x.dtype))
    if "gating_einsum_lora_a" in layer:
        beside = _low_rank(tokens, layer["gating_einsum_lora_a"], layer["gating_einsum_lora_b"])
        gate, up = gate + beside[0], up + beside[1]
    hidden = _gated(kept(gate), kept(up))
    y = hidden @ layer["linear"].astype(x.dtype)
    if "linear_lora_a" in layer:
        y += _low_rank(hidden, layer["linear_lora_a"], layer["linear_lora_b"])
    return y.reshape(x.shape)


def _low_rank(x: Array, a: Array, b: Array) -> Array:
    """Multiply tokens (t i) by LoRA's factors a (.. i r) and b (.. r o), of which there may be several: (.. t o)."""
    return (x @ a.astype(x.dtype)) @ b.astype(x.dtype)


@inside
def _gated(gate: Array, up: Array) -> Array:
    return jax.nn.gelu(gate, approximate=True) * up


def _rotate(x: Array, positions: Array) -> Array:
    """Rotary embedding (arXiv 2104.09864) of split halves, angles in float32."""
    half = x.shape[-1] // 2
    wavelengths = _MAX_WAVELENGTH ** (jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None] / wavelengths
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _normalise(x: Array) -> Array:
    """Divide by the root mean square; float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + _EPS)


@inside
def _rms_norm(layer: Params, x: Array) -> Array:
    return (_normalise(x) * (1 + layer["scale"])).astype(x.dtype)


def _modulation(layer: Params, condition: Array) -> Array:
    """Return what the time vector makes of an adaptive norm, (b 3w); of stacked norms all at once, (l b 3w)."""
    dense = layer["Dense_0"]
    kernel, bias = dense["kernel"].astype(condition.dtype), dense["bias"].astype(condition.dtype)
    return jnp.einsum("bw,...wm->...bm", condition, kernel) + bias[..., None, :]


@inside
def _adaptive_norm(x: Array, modulation: Array) -> tuple[Array, Array]:
    """Return the normalised, scaled and shifted input and the gate of the block's residual."""
    scale, shift, gate = jnp.split(modulation[:, None, :], 3, axis=-1)
    return (_normalise(x) * (1 + scale) + shift).astype(x.dtype), gate
