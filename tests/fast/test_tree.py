"""The parameter table against the published sizes, without allocating them."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi05.config import ModelConfig
from pi05.model import gemma, leaves, tree, weights
from tests.conftest import options

FULL = options("full").model

# Section 3 of the model's description: path -> shape, written out by hand.
PUBLISHED = """
PaliGemma/img/embedding/kernel 14 14 3 1152
PaliGemma/img/pos_embedding 1 256 1152
PaliGemma/img/Transformer/encoderblock/LayerNorm_0/scale 27 1152
PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel 27 1152 16 72
PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/bias 27 16 72
PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel 27 16 72 1152
PaliGemma/img/Transformer/encoderblock/MultiHeadDotProductAttention_0/out/bias 27 1152
PaliGemma/img/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel 27 1152 4304
PaliGemma/img/Transformer/encoderblock/MlpBlock_0/Dense_1/bias 27 1152
PaliGemma/img/Transformer/encoder_norm/bias 1152
PaliGemma/img/head/kernel 1152 2048
PaliGemma/llm/embedder/input_embedding 257152 2048
PaliGemma/llm/layers/attn/q_einsum/w 18 8 2048 256
PaliGemma/llm/layers/attn/q_einsum_1/w 18 8 1024 256
PaliGemma/llm/layers/attn/kv_einsum/w 18 2 1 2048 256
PaliGemma/llm/layers/attn/kv_einsum_1/w 18 2 1 1024 256
PaliGemma/llm/layers/attn/attn_vec_einsum/w 18 8 256 2048
PaliGemma/llm/layers/attn/attn_vec_einsum_1/w 18 8 256 1024
PaliGemma/llm/layers/mlp/gating_einsum 18 2 2048 16384
PaliGemma/llm/layers/mlp/linear 18 16384 2048
PaliGemma/llm/layers/mlp_1/gating_einsum 18 2 1024 4096
PaliGemma/llm/layers/mlp_1/linear 18 4096 1024
PaliGemma/llm/layers/pre_attention_norm/scale 18 2048
PaliGemma/llm/layers/pre_attention_norm_1/Dense_0/kernel 18 1024 3072
PaliGemma/llm/layers/pre_ffw_norm_1/Dense_0/bias 18 3072
PaliGemma/llm/final_norm/scale 2048
PaliGemma/llm/final_norm_1/Dense_0/kernel 1024 3072
action_in_proj/kernel 32 1024
action_out_proj/kernel 1024 32
action_out_proj/bias 32
time_mlp_in/kernel 1024 1024
time_mlp_out/bias 1024
"""


# The published code puts factors beside every matrix of attention and MLP, over its last two axes.
FACTORS = """
PaliGemma/llm/layers/attn/q_einsum/lora_a 18 8 2048 16
PaliGemma/llm/layers/attn/q_einsum/lora_b 18 8 16 256
PaliGemma/llm/layers/attn/kv_einsum/lora_a 18 2 1 2048 16
PaliGemma/llm/layers/attn/kv_einsum/lora_b 18 2 1 16 256
PaliGemma/llm/layers/attn/attn_vec_einsum/lora_a 18 8 256 16
PaliGemma/llm/layers/attn/attn_vec_einsum/lora_b 18 8 16 2048
PaliGemma/llm/layers/mlp/gating_einsum_lora_a 18 2 2048 16
PaliGemma/llm/layers/mlp/gating_einsum_lora_b 18 2 16 16384
PaliGemma/llm/layers/mlp/linear_lora_a 18 16384 16
PaliGemma/llm/layers/mlp/linear_lora_b 18 16 2048
PaliGemma/llm/layers/attn/q_einsum_1/lora_a 18 8 1024 32
PaliGemma/llm/layers/attn/q_einsum_1/lora_b 18 8 32 256
PaliGemma/llm/layers/attn/kv_einsum_1/lora_a 18 2 1 1024 32
PaliGemma/llm/layers/attn/kv_einsum_1/lora_b 18 2 1 32 256
PaliGemma/llm/layers/attn/attn_vec_einsum_1/lora_a 18 8 256 32
PaliGemma/llm/layers/attn/attn_vec_einsum_1/lora_b 18 8 32 1024
PaliGemma/llm/layers/mlp_1/gating_einsum_lora_a 18 2 1024 32
PaliGemma/llm/layers/mlp_1/gating_einsum_lora_b 18 2 32 4096
PaliGemma/llm/layers/mlp_1/linear_lora_a 18 4096 32
PaliGemma/llm/layers/mlp_1/linear_lora_b 18 32 1024
"""


def test_the_full_model_has_the_published_number_of_parameters() -> None:
    assert tree.count(FULL) == 3_353_433_872


@pytest.mark.parametrize("line", PUBLISHED.strip().splitlines())
def test_the_full_model_has_the_published_shapes(line: str) -> None:
    path, *shape = line.split()
    assert tree.leaves(FULL)[path].shape == tuple(map(int, shape))


def test_factors_have_the_published_names_and_shapes() -> None:
    lora = options("lora").model
    beside = {path: leaf.shape for path, leaf in tree.leaves(lora).items() if path not in tree.leaves(FULL)}
    lines = [line.split() for line in FACTORS.strip().splitlines()]
    assert beside == {path: tuple(map(int, shape)) for path, *shape in lines}
    assert all(leaves.is_factor(path) for path in beside)
    assert tree.leaves(tree.without_factors(lora)) == tree.leaves(FULL)


def test_both_factors_begin_small_and_not_at_zero() -> None:
    model = ranked(options("tiny").model, 4)
    for path, array in tree.initial(model, 0).items():
        if leaves.is_factor(path):
            assert np.std(array) == pytest.approx(0.01, rel=0.2), path


def ranked(model: ModelConfig, rank: int, **sizes: int) -> ModelConfig:
    """Return a model with factors of one rank in both Gemmas, and other sizes of both."""
    change = {"lora_rank": rank, **sizes}
    gemmas = {name: getattr(model, name).model_copy(update=change) for name in ("vlm", "expert")}
    return model.model_copy(update=gemmas)


def test_initial_weights_match_the_table() -> None:
    tiny = options("tiny").model
    params = tree.initial(tiny, 0)
    assert {path: array.shape for path, array in params.items()} == {
        path: leaf.shape for path, leaf in tree.leaves(tiny).items()
    }
    for path, leaf in tree.leaves(tiny).items():
        if leaf.std and params[path].size > 1000:
            assert np.std(params[path]) == pytest.approx(leaf.std, rel=0.2), path


def test_a_leaf_is_drawn_from_its_path_alone() -> None:
    tiny = options("tiny").model
    wide = tiny.model_copy(update={"vit": tiny.vit.model_copy(update={"width": 32})})
    one, other = (tree.initial(config, 0) for config in (tiny, wide))
    np.testing.assert_array_equal(one["action_in_proj/kernel"], other["action_in_proj/kernel"])


def test_every_difference_is_reported_leaf_by_leaf() -> None:
    tiny = options("tiny").model
    found = {path: jax.ShapeDtypeStruct(leaf.shape, np.float32) for path, leaf in tree.leaves(tiny).items()}
    assert weights.check(found, tiny) == []
    del found["time_mlp_in/bias"]
    found["lora_a"] = jax.ShapeDtypeStruct((1,), np.float32)
    found["action_in_proj/bias"] = jax.ShapeDtypeStruct((7,), np.float32)
    found["action_out_proj/bias"] = jax.ShapeDtypeStruct((tiny.action_dim,), np.int8)
    assert weights.check(found, tiny) == [
        f"action_in_proj/bias: expected [{tiny.expert.width}], found [7]",
        "action_out_proj/bias: expected float32 or bfloat16, found int8",
        "lora_a: not a parameter of this model",
        f"time_mlp_in/bias: expected [{tiny.expert.width}], missing",
    ]


def test_number_embeddings_are_smooth_and_leave_other_tokens_alone() -> None:
    tiny = options("tiny").model
    params = tree.initial(tiny, 0)
    path = "PaliGemma/llm/embedder/input_embedding"
    tokens = np.arange(5, 262)
    table = tree.embed_numbers(params, tokens, 4.0)[path]
    near, far = table[5:261] - table[6:262], table[5] - table[133]
    assert np.linalg.norm(near, axis=1).max() < 0.1 * np.linalg.norm(far)
    np.testing.assert_array_equal(np.delete(table, tokens, axis=0), np.delete(params[path], tokens, axis=0))


def test_nothing_but_weights_is_a_weight_file(tmp_path: Path) -> None:
    (tmp_path / "_METADATA").write_text("{")
    with pytest.raises(weights.DataError, match=re.escape("damaged Orbax checkpoint")):
        weights.read(tmp_path, options("tiny").model)


PARTS = {"q_einsum": 0, "kv_einsum": slice(1, None)}
"""Of the array that holds queries, keys and values."""


@pytest.mark.parametrize("rank", [0, 4])
def test_as_many_kv_heads_as_heads_share_one_array(rank: int) -> None:
    tiny = options("tiny").model
    params = tree.nest(tree.initial(ranked(tiny, rank, num_kv_heads=tiny.vlm.num_heads), 0))
    layer = jax.tree.map(lambda w: w[0], params["PaliGemma"]["llm"]["layers"])
    x = jax.random.normal(jax.random.key(0), (2, 3, tiny.vlm.width))
    positions = jnp.arange(6).reshape(2, 3)
    together = gemma._project(layer, "", x, positions)
    qkv = layer["attn"].pop("qkv_einsum")
    layer["attn"] |= {name: {leaf: w[part] for leaf, w in qkv.items()} for name, part in PARTS.items()}
    for one, other in zip(together, gemma._project(layer, "", x, positions), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
