"""The parameter tree: every leaf's path, shape and initial distribution, from the sizes alone.

Paths, shapes and stacking (the leading axis of a block is the layer) are those of the published Pi0.5 checkpoints, so
that weights interchange without renaming. Drawing, sharding, counting and checking all read this one table.
"""

import math
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from flax import traverse_util

from pi05.config import GemmaConfig, ModelConfig, VitConfig
from pi05.observation import AnyArray

Params = dict[str, Any]
"""A nested dictionary of arrays, of depth as the paths say."""
EMBEDDING = "PaliGemma/llm/embedder/input_embedding"
_FACTOR_STD = 0.01


@dataclass(frozen=True)
class Leaf:
    """Shape of one float32 parameter and the standard deviation it is drawn with (0: all `fill`)."""

    shape: tuple[int, ...]
    std: float = 0.0
    fill: float = 0.0


def leaves(config: ModelConfig) -> dict[str, Leaf]:
    """Return the table from slash-separated path to leaf for a model of these sizes."""
    width = config.expert.width
    return {
        **_under("PaliGemma/img", _image_tower(config.vit, config.image_size, config.vlm.width)),
        **_under("PaliGemma/llm", _gemmas(config.vlm, config.expert, config.vocab_size)),
        **_under("action_in_proj", _dense(config.action_dim, width)),
        **_under("action_out_proj", _dense(width, config.action_dim)),
        **_under("time_mlp_in", _dense(width, width)),
        **_under("time_mlp_out", _dense(width, width)),
    }


def initial(config: ModelConfig, seed: int, paths: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Draw all parameters, or those of some paths, on the host.

    Each leaf depends on the seed and its own path alone, so sizes elsewhere and the devices do not change it.
    """

    def draw(path: str, leaf: Leaf) -> np.ndarray:
        if not leaf.std:
            return np.full(leaf.shape, leaf.fill, np.float32)
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(path.encode())])))
        return random.standard_normal(leaf.shape, np.float32) * np.float32(leaf.std)

    return {path: draw(path, leaf) for path, leaf in leaves(config).items() if paths is None or path in paths}


def is_factor(path: str) -> bool:
    """Return whether a parameter is a factor of LoRA."""
    return path.endswith(("lora_a", "lora_b"))


def beside_factors(config: ModelConfig) -> set[str]:
    """Return the paths of the Gemmas' own weights that are frozen, because factors are trained in their place.

    As the published code has it: all of a Gemma that has factors, norms and embeddings too; no other part.
    """
    ranks = {"": config.vlm.lora_rank, "_1": config.expert.lora_rank}
    gemmas = (path for path in leaves(config) if path.startswith("PaliGemma/llm/") and not is_factor(path))
    return {path for path in gemmas if ranks["_1" if "_1/" in path else ""]}


def without_factors(config: ModelConfig) -> ModelConfig:
    """Return the same model without factors of LoRA."""
    vlm, expert = (gemma.model_copy(update={"lora_rank": 0}) for gemma in (config.vlm, config.expert))
    return config.model_copy(update={"vlm": vlm, "expert": expert})


def embed_numbers(params: dict[str, np.ndarray], tokens: np.ndarray, max_frequency: float) -> dict[str, np.ndarray]:
    """Replace the embeddings of the state numbers by Fourier features, smooth in the number.

    A random table says nothing about the order of 256 numbers, and a model without pretraining first has to learn it.
    Row i, before the scaling by sqrt(width), holds sin and cos of pi f x_i for x_i from -1 to 1 and frequencies f
    spaced evenly up to `max_frequency`, so that x_i and x_(i+1) are neighbours.

    Args:
        params: All parameters by path.
        tokens: Ids of the numbers' tokens in ascending order.
        max_frequency: In half-turns over [-1, 1].
    """
    table = params[EMBEDDING].copy()
    width = table.shape[1]
    x = np.linspace(-1, 1, len(tokens))[:, None]
    frequency = np.linspace(max_frequency / (width // 2), max_frequency, width // 2)
    features = np.concatenate([np.sin(np.pi * frequency * x), np.cos(np.pi * frequency * x)], axis=1)
    table[tokens] = features * np.sqrt(2 / width)
    return {**params, EMBEDDING: table}


def count(config: ModelConfig) -> int:
    """Return the number of parameters, without allocating any."""
    return sum(math.prod(leaf.shape) for leaf in leaves(config).values())


def flatten(params: Params) -> dict[str, AnyArray]:
    """Return `{slash-separated path: array}`."""
    return cast(dict[str, AnyArray], traverse_util.flatten_dict(params, sep="/"))


def nest(flat: Mapping[str, Any]) -> Params:
    """Undo `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _under(prefix: str, table: dict[str, Leaf]) -> dict[str, Leaf]:
    return {f"{prefix}/{path}": leaf for path, leaf in table.items()}


def _stacked(depth: int, table: dict[str, Leaf]) -> dict[str, Leaf]:
    return {path: Leaf((depth, *leaf.shape), leaf.std, leaf.fill) for path, leaf in table.items()}


def _dense(width_in: int, width_out: int) -> dict[str, Leaf]:
    """Return a dense layer; variance 1 / fan-in keeps the scale of its input."""
    return {"kernel": Leaf((width_in, width_out), width_in**-0.5), "bias": Leaf((width_out,))}


def _layer_norm(width: int) -> dict[str, Leaf]:
    return {"scale": Leaf((width,), fill=1.0), "bias": Leaf((width,))}


def _image_tower(vit: VitConfig, image_size: int, width_out: int) -> dict[str, Leaf]:
    patch, width, heads = vit.patch_size, vit.width, vit.num_heads
    tokens, head_dim = (image_size // patch) ** 2, width // heads
    projection = {"kernel": Leaf((width, heads, head_dim), width**-0.5), "bias": Leaf((heads, head_dim))}
    attention = {
        **_under("query", projection),
        **_under("key", projection),
        **_under("value", projection),
        "out/kernel": Leaf((heads, head_dim, width), width**-0.5),
        "out/bias": Leaf((width,)),
    }
    block = {
        **_under("LayerNorm_0", _layer_norm(width)),
        **_under("MultiHeadDotProductAttention_0", attention),
        **_under("LayerNorm_1", _layer_norm(width)),
        **_under("MlpBlock_0/Dense_0", _dense(width, vit.mlp_dim)),
        **_under("MlpBlock_0/Dense_1", _dense(vit.mlp_dim, width)),
    }
    return {
        "embedding/kernel": Leaf((patch, patch, 3, width), (3 * patch * patch) ** -0.5),
        "embedding/bias": Leaf((width,)),
        "pos_embedding": Leaf((1, tokens, width), width**-0.5),
        **_under("Transformer/encoderblock", _stacked(vit.depth, block)),
        **_under("Transformer/encoder_norm", _layer_norm(width)),
        **_under("head", _dense(width, width_out)),
    }


def _gemmas(vlm: GemmaConfig, expert: GemmaConfig, vocab_size: int) -> dict[str, Leaf]:
    """Return the language model and, with the suffix _1, the action expert."""
    plain = {"scale": Leaf((vlm.width,))}
    adaptive = _adaptive_norm(expert.width)
    layers = {
        **_gemma_block(vlm, ""),
        **_gemma_block(expert, "_1"),
        **_under("pre_attention_norm", plain),
        **_under("pre_ffw_norm", plain),
        **_under("pre_attention_norm_1", adaptive),
        **_under("pre_ffw_norm_1", adaptive),
    }
    return {
        "embedder/input_embedding": Leaf((vocab_size, vlm.width), vlm.width**-0.5),
        **_under("layers", _stacked(vlm.depth, layers)),
        **_under("final_norm", plain),
        **_under("final_norm_1", adaptive),
    }


def _gemma_block(gemma: GemmaConfig, suffix: str) -> dict[str, Leaf]:
    heads, kv, dim, width = gemma.num_heads, gemma.num_kv_heads, gemma.head_dim, gemma.width
    if kv == heads:  # then the published code keeps all three in one array
        attention = {f"qkv_einsum{suffix}": Leaf((3, heads, width, dim), width**-0.5)}
    else:
        attention = {
            f"q_einsum{suffix}": Leaf((heads, width, dim), width**-0.5),
            f"kv_einsum{suffix}": Leaf((2, kv, width, dim), width**-0.5),
        }
    attention |= {f"attn_vec_einsum{suffix}": Leaf((heads, dim, width), (heads * dim) ** -0.5)}
    mlp = {
        "gating_einsum": Leaf((2, width, gemma.mlp_dim), width**-0.5),
        "linear": Leaf((gemma.mlp_dim, width), gemma.mlp_dim**-0.5),
    }
    matrices = {f"attn/{name}/w": leaf for name, leaf in attention.items()}
    matrices |= {f"mlp{suffix}/{name}": leaf for name, leaf in mlp.items()}
    return matrices | (_factors(matrices, gemma.lora_rank) if gemma.lora_rank else {})


def _factors(matrices: dict[str, Leaf], rank: int) -> dict[str, Leaf]:
    """Return LoRA's factors of each matrix (its last two axes), named as published.

    Both are drawn with deviation 0.01: where one of them is zero in other implementations, here a model begins a little
    beside its base weights, as the published code does.
    """

    def of(path: str, leaf: Leaf) -> dict[str, Leaf]:
        *stack, rows, columns = leaf.shape
        beside = path.removesuffix("w") if path.endswith("/w") else f"{path}_"
        return {
            f"{beside}lora_a": Leaf((*stack, rows, rank), _FACTOR_STD),
            f"{beside}lora_b": Leaf((*stack, rank, columns), _FACTOR_STD),
        }

    return {name: factor for path, leaf in matrices.items() for name, factor in of(path, leaf).items()}


def _adaptive_norm(width: int) -> dict[str, Leaf]:
    """Return scale, shift and gate as one dense layer of the time vector; zeros, so a new block starts as identity."""
    return {"Dense_0/kernel": Leaf((width, 3 * width)), "Dense_0/bias": Leaf((3 * width,))}
