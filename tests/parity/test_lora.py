"""LoRA against the plain formula: with factors the golden model is the one whose weights they are added to."""

from functools import partial

import jax
import numpy as np
import pytest

from pi05.config import FLOAT32, ModelConfig
from pi05.model import leaves, pi05, tree
from tests.parity.conftest import Golden
from tests.parity.test_golden import F32, relative

RANKS = (3, 2)

# What the published code makes of a matrix's factors, without the layers' axis. Heads of the output share what a makes
# of all of them, so each gets the sum of their b.
ADDED = {
    "attn/q_einsum": "nwr,nrd->nwd",
    "attn/kv_einsum": "ckwr,ckrd->ckwd",
    "attn/attn_vec_einsum": "ndr,mrw->ndw",
    "mlp/gating_einsum": "cwm,cmh->cwh",
    "mlp/linear": "hr,rw->hw",
}


def with_ranks(model: ModelConfig, vlm: int, expert: int) -> ModelConfig:
    ranks = {"vlm": vlm, "expert": expert}
    return model.model_copy(
        update={name: getattr(model, name).model_copy(update={"lora_rank": rank}) for name, rank in ranks.items()}
    )


def factors(model: ModelConfig, scale: float) -> dict[str, np.ndarray]:
    """Return factors large enough to matter; scale 0 leaves b at zero."""
    random = np.random.default_rng(0)
    drawn = {
        path: random.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in tree.leaves(model).items()
        if leaves.is_factor(path)
    }
    return {path: array * (scale if path.endswith("_b") else 0.3) for path, array in drawn.items()}


def merged(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return w + a b of every matrix that has factors, by numpy in float64."""
    plain = {path: np.asarray(array, np.float64) for path, array in params.items() if not leaves.is_factor(path)}
    for name, equation in ADDED.items():
        for suffix in ("", "_1"):
            group, matrix = name.split("/")
            base = f"PaliGemma/llm/layers/{group}{suffix}/{matrix}" if group == "mlp" else f"{name}{suffix}/w"
            base = base if group == "mlp" else f"PaliGemma/llm/layers/{base}"
            beside = base.removesuffix("w") if group == "attn" else f"{base}_"
            if f"{beside}lora_a" in params:
                left, right, out = equation.replace("->", ",").split(",")
                a, b = (np.asarray(params[f"{beside}lora_{which}"], np.float64) for which in "ab")
                plain[base] = plain[base] + np.einsum(f"l{left},l{right}->l{out}", a, b)
    return {path: array.astype(np.float32) for path, array in plain.items()}


def velocity(golden: Golden, model: ModelConfig, params: dict) -> jax.Array:
    @jax.jit
    def run(params: tree.Params) -> jax.Array:
        prefix = pi05.encode(params, model, FLOAT32, golden.observation())
        return pi05.velocity(params, model, FLOAT32, prefix, golden.inputs["noise"], golden.inputs["time"])

    return run(tree.nest(params))


def test_factors_whose_b_is_zero_change_nothing(golden: Golden) -> None:
    model = with_ranks(golden.model(), *RANKS)
    found = velocity(golden, model, dict(golden.params) | factors(model, 0.0))
    np.testing.assert_array_equal(found, velocity(golden, golden.model(), golden.params))


@pytest.mark.parametrize("ranks", [RANKS, (3, 0), (0, 2)])
def test_factors_are_what_is_added_to_the_weights(golden: Golden, ranks: tuple[int, int]) -> None:
    model = with_ranks(golden.model(), *ranks)
    params = dict(golden.params) | factors(model, 0.3)
    wanted = velocity(golden, golden.model(), merged(params))
    assert relative(velocity(golden, model, params), np.asarray(wanted)) < F32
    assert relative(wanted, np.asarray(velocity(golden, golden.model(), golden.params))) > 0.1


def test_a_policy_with_factors_samples_like_one_of_merged_weights(golden: Golden) -> None:
    model = with_ranks(golden.model(), *RANKS)
    params = dict(golden.params) | factors(model, 0.3)
    observation, noise = golden.observation(), golden.inputs["noise"]

    def sample(model: ModelConfig, params: dict) -> jax.Array:
        function = partial(pi05.sample, config=model, compute=FLOAT32, steps=3)
        return jax.jit(function)(tree.nest(params), observation=observation, noise=noise)

    assert relative(sample(model, params), np.asarray(sample(golden.model(), merged(params)))) < F32
