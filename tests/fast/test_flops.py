"""Model FLOPs by the formula, against XLA's count of the real loss and gradient, and the full model's figure."""

import re

import jax
import jax.numpy as jnp
import pytest

from pi05 import chips
from pi05.config import ComputeConfig, GemmaConfig, ModelConfig, VitConfig
from pi05.model import flops, tree
from pi05.observation import Observation
from pi05.training.step import Batch, loss_and_sums
from tests.conftest import options

WIDE = GemmaConfig(width=512, depth=3, mlp_dim=2048, num_heads=4, num_kv_heads=1, head_dim=128)
MODEL = ModelConfig(
    vlm=WIDE,
    expert=WIDE.model_copy(update={"width": 256, "mlp_dim": 1024}),
    vit=VitConfig(width=256, depth=2, mlp_dim=1024, num_heads=2),
    vocab_size=512,
    image_size=112,
    action_dim=32,
    action_horizon=16,
)
CAMERAS, PROMPT, SAMPLES = ("base_camera", "hand_camera"), 40, 2


def counted(draws: int, trained: list[str]) -> float:
    """Return the FLOPs of loss and gradient as XLA counts them; nothing is computed."""
    batch, shape = SAMPLES, (MODEL.action_horizon, MODEL.action_dim)
    images = {name: jax.ShapeDtypeStruct((batch, 112, 112, 3), jnp.float32) for name in CAMERAS}
    tokens = jax.ShapeDtypeStruct((batch, PROMPT), jnp.int32)
    samples = Batch(
        Observation(images, {}, tokens, jax.ShapeDtypeStruct((batch, PROMPT), jnp.bool_)),
        jax.ShapeDtypeStruct((batch, *shape), jnp.float32),
        jax.ShapeDtypeStruct((batch, *shape), jnp.bool_),
    )
    params = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in tree.leaves(MODEL).items()}

    def gradient(params, batch, noise, time):
        def objective(trained):
            nested = tree.nest({**params, **trained})
            return loss_and_sums(nested, MODEL, ComputeConfig(layers="unrolled", attention="xla"), batch, noise, time)

        return jax.grad(objective, has_aux=True)({path: params[path] for path in trained})

    noise = jax.ShapeDtypeStruct((draws, batch, *shape), jnp.float32)
    time = jax.ShapeDtypeStruct((draws, batch), jnp.float32)
    analysis = jax.jit(gradient).lower(params, samples, noise, time).cost_analysis()
    assert analysis is not None
    return analysis["flops"]


@pytest.mark.parametrize(
    ("draws", "frozen"),
    [(1, "nothing"), (4, "nothing"), (1, "PaliGemma/img/.*"), (2, "PaliGemma/(?!.*_1/).*")],
    ids=["all", "draws", "frozen tower", "expert alone"],
)
def test_the_formula_counts_what_xla_counts(draws: int, frozen: str) -> None:
    trained = [path for path in tree.leaves(MODEL) if not re.fullmatch(frozen, path)]
    ours = flops.of_step(MODEL, len(CAMERAS), PROMPT, SAMPLES, draws, trained)
    assert ours == pytest.approx(counted(draws, trained), rel=0.04)


def test_the_full_model_at_eight_samples_a_gpu() -> None:
    model = options("full", "stackcube").model
    assert flops.of_step(model, 2, 64, 8, 1, list(tree.leaves(model))) == pytest.approx(63.7e12, rel=0.005)


def test_a_step_costs_less_when_parts_are_frozen() -> None:
    model = options("full", "stackcube").model
    paths = list(tree.leaves(model))
    rest = [path for path in paths if "/img/" not in path]
    whole, without_tower, lora = (
        flops.of_step(model, 2, 64, 8, 1, trained)
        for trained in (paths, rest, [f"{path}/lora_a" for path in paths if "/layers/" in path])
    )
    assert whole - without_tower == pytest.approx(7.0e12, rel=0.02), "two thirds of the tower"
    assert lora < without_tower


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA B200", 2250),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 PCIe", None),
        ("cpu", None),
    ],
)
def test_peaks_are_those_of_datasheets_and_others_are_not_guessed(kind: str, teraflops: float | None) -> None:
    assert chips.peak_of(kind) == (teraflops and teraflops * 1e12)
