"""Every parameter's path, shape and initial distribution, from a model's sizes alone.

Paths, shapes and stacking (the leading axis of a block is the layer) are those of the published Pi0.5 checkpoints, so
that weights interchange without renaming. Drawing, sharding, counting, checking and planning all read this one table.
It needs no package of the model's: the controller reads it, too.
"""

import re
from dataclasses import dataclass

from pi05.config import GemmaConfig, ModelConfig, VitConfig

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


def trained(config: ModelConfig, freeze: tuple[str, ...]) -> list[str]:
    """Return the paths that no pattern of `freeze` matches and that have no factors of LoRA trained in their place."""
    beside = beside_factors(config)
    paths = (path for path in leaves(config) if path not in beside)
    return [path for path in paths if not any(re.fullmatch(pattern, path) for pattern in freeze)]


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
