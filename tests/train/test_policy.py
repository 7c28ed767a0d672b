"""A policy opened from a checkpoint: which weights are kept as what, and that this changes no bit."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi05.config import FLOAT32, ComputeConfig
from pi05.data import stats
from pi05.model import tree, weights
from pi05.policy import Policy
from pi05.training import checkpoint
from tests.train.conftest import CONVENTION, GEMMA, MODEL, NAMES, TRAIN, make_training

BFLOAT16 = ComputeConfig(dtype="bfloat16")
SIZES = MODEL.model_copy(update={"vlm": GEMMA.model_copy(update={"width": 96}), "image_size": 28})
"""The root of this width is no power of two, so scaling an embedding rounds."""
SEEING = CONVENTION.model_copy(update={"cameras": ("base_camera", "hand_camera")})
RANDOM = np.random.default_rng(0)
STATES = RANDOM.normal(size=(3, len(NAMES))).astype(np.float32)
IMAGES = {camera: RANDOM.integers(0, 256, (3, 28, 28, 3), np.uint8) for camera in SEEING.cameras}


def drawn() -> dict[str, np.ndarray]:
    """Return weights of which none is round, so that all of them count and rounding changes each."""
    random = np.random.default_rng(1)
    return {
        path: array if array.std() else array + 0.1 * random.standard_normal(array.shape, np.float32)
        for path, array in tree.initial(SIZES, 0).items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of these weights."""
    training, folder = make_training(TRAIN, model=SIZES), tmp_path_factory.mktemp("checkpoint")
    weights.write(folder / "params", drawn())
    stats.write(folder / "assets" / checkpoint.ASSET_ID, training.loader.recipe.stats)
    (folder / checkpoint.TOKENIZER).write_bytes(training.loader.recipe.tokenizer.model)
    train = TRAIN.model_copy(update={"number_embedding": "fourier"})
    meta = training.meta(1).model_copy(update={"train": train, "convention": SEEING})
    (folder / checkpoint.META).write_text(meta.model_dump_json())
    return folder


def given(folder: Path, params: dict[str, np.ndarray], compute: ComputeConfig) -> Policy:
    """Return a policy whose weights are float32."""
    meta = checkpoint.read_meta(folder)
    there = {path: jnp.asarray(array) for path, array in params.items()}
    return Policy(there, checkpoint.read_recipe(folder, meta), meta, 3, 3, seed=0, compute=compute)


def chunk(policy: Policy) -> np.ndarray:
    return policy.act([1, 2, 3], 0, STATES, IMAGES)


def test_a_policy_in_bfloat16_acts_to_the_bit_as_with_float32_weights(folder: Path) -> None:
    opened = Policy.load(folder, rows=3, sampling_steps=3, seed=0, compute=BFLOAT16)
    kept = tree.flatten(opened._params)
    small = [path for path, array in kept.items() if array.dtype == jnp.bfloat16]
    assert all("norm/scale" not in path and "_proj" not in path for path in small)
    assert sum(kept[path].size for path in small) > 0.5 * tree.count(SIZES)
    np.testing.assert_array_equal(chunk(opened), chunk(given(folder, drawn(), BFLOAT16)))


def test_a_policy_in_float32_keeps_all_weights_as_they_are(folder: Path) -> None:
    opened = Policy.load(folder, rows=3, sampling_steps=3, seed=0)
    for path, array in tree.flatten(opened._params).items():
        np.testing.assert_array_equal(array, drawn()[path], strict=True)
    np.testing.assert_array_equal(chunk(opened), chunk(given(folder, drawn(), FLOAT32)))


def test_exactly_those_weights_are_kept_in_float32_that_would_change_the_result(folder: Path) -> None:
    policy, params = given(folder, drawn(), BFLOAT16), {path: jnp.asarray(array) for path, array in drawn().items()}
    before, rounded = chunk(policy), weights.for_acting(SIZES, "bfloat16")
    for path in (path for path in params if "llm/final_norm/" not in path):  # which nobody reads
        less = params[path].astype(jnp.bfloat16).astype(jnp.float32)
        policy._params = tree.nest({**params, path: less})
        assert np.array_equal(chunk(policy), before) == (rounded[path].dtype == jnp.bfloat16), path


def test_an_untrained_policy_is_what_its_training_began_with(folder: Path) -> None:
    policy = Policy.untrained(folder, rows=3, sampling_steps=3, seed=5)
    params = tree.flatten(policy._params)
    assert all(isinstance(array, jax.Array) for array in params.values()), "else every query would send them again"
    train = TRAIN.model_copy(update={"number_embedding": "fourier", "seed": 5})
    began = tree.initial(SIZES, train.seed)
    began = tree.embed_numbers(began, policy._recipe.tokenizer.number_tokens, train.number_frequencies)
    for path, array in began.items():
        np.testing.assert_array_equal(params[path], array)
