"""A model's sizes -> its arrays, by path, without the packages of the model: the controller has none of them.

The same table as pi05.model.tree.leaves, as shapes alone; a test holds the two together.
"""

from pi05.config import GemmaConfig, ModelConfig, VitConfig

Shapes = dict[str, tuple[int, ...]]
_FACTORS = ("lora_a", "lora_b")
_GEMMAS = "PaliGemma/llm/"


def shapes(model: ModelConfig) -> Shapes:
    """Return the shape of every parameter by its path."""
    width = model.expert.width
    return {
        **_under("PaliGemma/img/", _tower(model.vit, model.image_size, model.vlm.width)),
        **_under(_GEMMAS, _gemmas(model.vlm, model.expert, model.vocab_size)),
        **_dense("action_in_proj", model.action_dim, width),
        **_dense("action_out_proj", width, model.action_dim),
        **_dense("time_mlp_in", width, width),
        **_dense("time_mlp_out", width, width),
    }


def frozen_beside_factors(model: ModelConfig, path: str) -> bool:
    """Return whether a parameter is a Gemma's own, and factors of LoRA are trained in its place."""
    gemma = model.expert if "_1/" in path else model.vlm
    return bool(gemma.lora_rank) and path.startswith(_GEMMAS) and not path.endswith(_FACTORS)


def _under(prefix: str, table: Shapes) -> Shapes:
    return {prefix + path: shape for path, shape in table.items()}


def _stacked(depth: int, table: Shapes) -> Shapes:
    return {path: (depth, *shape) for path, shape in table.items()}


def _dense(path: str, rows: int, columns: int) -> Shapes:
    return {f"{path}/kernel": (rows, columns), f"{path}/bias": (columns,)}


def _norm(path: str, width: int) -> Shapes:
    return {f"{path}/scale": (width,), f"{path}/bias": (width,)}


def _tower(vit: VitConfig, image_size: int, width_out: int) -> Shapes:
    width, heads, patch = vit.width, vit.num_heads, vit.patch_size
    attention: Shapes = {"out/kernel": (heads, width // heads, width), "out/bias": (width,)}
    for name in ("query", "key", "value"):
        attention |= {f"{name}/kernel": (width, heads, width // heads), f"{name}/bias": (heads, width // heads)}
    block = {
        **_norm("LayerNorm_0", width),
        **_under("MultiHeadDotProductAttention_0/", attention),
        **_norm("LayerNorm_1", width),
        **_dense("MlpBlock_0/Dense_0", width, vit.mlp_dim),
        **_dense("MlpBlock_0/Dense_1", vit.mlp_dim, width),
    }
    return {
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "pos_embedding": (1, (image_size // patch) ** 2, width),
        **_under("Transformer/encoderblock/", _stacked(vit.depth, block)),
        **_norm("Transformer/encoder_norm", width),
        **_dense("head", width, width_out),
    }


def _gemmas(vlm: GemmaConfig, expert: GemmaConfig, vocab_size: int) -> Shapes:
    """Return the language model and, with the suffix _1, the action expert, whose norms are adaptive."""
    layers = {
        **_block(vlm, ""),
        **_block(expert, "_1"),
        "pre_attention_norm/scale": (vlm.width,),
        "pre_ffw_norm/scale": (vlm.width,),
        **_dense("pre_attention_norm_1/Dense_0", expert.width, 3 * expert.width),
        **_dense("pre_ffw_norm_1/Dense_0", expert.width, 3 * expert.width),
    }
    return {
        "embedder/input_embedding": (vocab_size, vlm.width),
        **_under("layers/", _stacked(vlm.depth, layers)),
        "final_norm/scale": (vlm.width,),
        **_dense("final_norm_1/Dense_0", expert.width, 3 * expert.width),
    }


def _block(gemma: GemmaConfig, suffix: str) -> Shapes:
    heads, kv, dim, width = gemma.num_heads, gemma.num_kv_heads, gemma.head_dim, gemma.width
    if kv == heads:
        table: Shapes = {f"attn/qkv_einsum{suffix}/w": (3, heads, width, dim)}
    else:
        table = {f"attn/q_einsum{suffix}/w": (heads, width, dim), f"attn/kv_einsum{suffix}/w": (2, kv, width, dim)}
    table |= {
        f"attn/attn_vec_einsum{suffix}/w": (heads, dim, width),
        f"mlp{suffix}/gating_einsum": (2, width, gemma.mlp_dim),
        f"mlp{suffix}/linear": (gemma.mlp_dim, width),
    }
    return table | (_factors(table, gemma.lora_rank) if gemma.lora_rank else {})


def _factors(table: Shapes, rank: int) -> Shapes:
    """Return the shapes of LoRA's factors beside each matrix."""
    found: Shapes = {}
    for path, (*stack, rows, columns) in table.items():
        beside = path.removesuffix("w") if path.endswith("/w") else f"{path}_"
        found |= {f"{beside}lora_a": (*stack, rows, rank), f"{beside}lora_b": (*stack, rank, columns)}
    return found
