"""Random changes of images: exact about what they may not touch, reproducible, and none where none is asked for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi05.config import AugmentConfig
from pi05.training import augment as module
from pi05.training.augment import augment

NONE = AugmentConfig(crop=1, rotation=0, probability=0)
GOLDEN = Path(__file__).parents[1] / "golden/augment.npz"
"""Pictures that the library of the release changed, and by how much: made by make_augment.py beside it."""
CAMERAS = ("base_camera", "hand_camera")
SIZE = 32


def changed(images: dict, step: int = 0, seed: int = 0, **fields: float) -> dict[str, np.ndarray]:
    config = NONE.model_copy(update=fields) if fields else AugmentConfig()
    made = jax.jit(augment, static_argnums=(1, 2))(images, config, seed, step)
    return {name: np.asarray(image) for name, image in made.items()}


@pytest.fixture(scope="module")
def images() -> dict[str, jax.Array]:
    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (4, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2).astype(np.uint8)
    return {name: jnp.asarray(smooth) for name in CAMERAS}


def plain(image: jax.Array) -> np.ndarray:
    return np.asarray(image, np.float32) / 127.5 - 1


def test_nothing_asked_for_is_nothing_done(images: dict) -> None:
    same = augment(images, NONE, 0, 0)
    assert all(same[name] is images[name] for name in CAMERAS)


def test_images_are_floats_in_range_and_every_camera_is_changed(images: dict) -> None:
    for name, image in changed(images).items():
        assert (image.dtype, image.shape) == (np.float32, (4, SIZE, SIZE, 3))
        assert np.abs(image).max() <= 1
        assert np.abs(image - plain(images[name])).max() > 0.05


def test_the_hand_camera_is_never_shifted_or_turned(images: dict) -> None:
    moved = changed(images, crop=0.8, rotation=30)
    np.testing.assert_array_equal(moved["hand_camera"], np.asarray(images["hand_camera"]))
    assert np.abs(moved["base_camera"] - plain(images["base_camera"])).mean() > 0.05


def test_it_depends_on_seed_step_and_sample_alone(images: dict) -> None:
    one = changed(images, step=7)
    np.testing.assert_array_equal(one["base_camera"], changed(images, step=7)["base_camera"])
    for other in (changed(images, step=8), changed(images, step=7, seed=1)):
        assert np.abs(one["base_camera"] - other["base_camera"]).max() > 0.05
    same = {name: jnp.repeat(image[:1], 4, axis=0) for name, image in images.items()}
    rows = changed(same)["base_camera"]
    assert min(np.abs(rows[0] - row).max() for row in rows[1:]) > 0.05
    alone = changed({"hand_camera": images["hand_camera"]}, step=7)
    np.testing.assert_array_equal(alone["hand_camera"], one["hand_camera"])


def test_hands_have_the_same_random_numbers_and_the_base_others(images: dict) -> None:
    same = dict.fromkeys(("base_camera", "hand_camera", "other_hand_camera"), images["base_camera"])
    seen = changed(same, probability=1, brightness=0.3)
    np.testing.assert_array_equal(seen["hand_camera"], seen["other_hand_camera"])
    assert np.abs(seen["base_camera"] - seen["hand_camera"]).max() > 0.02


def test_sharding_changes_nothing(images: dict) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = {name: jax.device_put(image, place) for name, image in images.items()}
    for name, image in changed(spread).items():
        np.testing.assert_allclose(image, changed(images)[name], atol=1e-6)


@pytest.mark.parametrize("number", range(6))
def test_pictures_are_changed_as_by_the_library_of_the_release(number: int) -> None:
    with np.load(GOLDEN) as file:
        golden = {name: values[number] for name, values in file.items()}
    picture = jnp.asarray(golden["pictures"], jnp.float32) / 255
    side = module._draw_move(AugmentConfig(), len(picture), jax.random.key(0))[0]
    moved = module._move(picture, side, golden["off"], golden["angles"])
    np.testing.assert_allclose(moved, golden["moved"], atol=1e-5)
    coloured = module._colour(picture, *jnp.asarray(golden["colours"]))
    np.testing.assert_allclose(coloured, golden["coloured"], atol=1e-5)


def draws(config: AugmentConfig, count: int = 300) -> np.ndarray:
    """Return the rows (side, off y, off x, angle) of many pictures of 224 pixels."""
    keys = jax.random.split(jax.random.key(1), count)
    side, off, angle = jax.vmap(lambda key: module._draw_move(config, 224, key))(keys)
    return np.column_stack([np.broadcast_to(side, count), off, np.degrees(angle)])


def test_a_crop_is_whole_pixels_anywhere_in_the_image_and_a_rotation_within_its_angle() -> None:
    side, y, x, angle = draws(AugmentConfig()).T
    assert set(side.tolist()) == {np.float32(212 / 224)}
    for amount, largest in ((y, 6 / 224), (x, 6 / 224), (angle, 5)):
        assert -largest <= amount.min() < -0.95 * largest
        assert 0.95 * largest < amount.max() <= largest
    assert np.abs(np.corrcoef([y, x, angle]) - np.eye(3)).max() < 0.2


def test_a_crop_shows_its_part_resized() -> None:
    """Of a ramp, whose values are its coordinates, the pixels say what was kept."""
    ramp = jnp.broadcast_to(jnp.arange(100.0)[None, :, None] + 0.5, (100, 100, 3))
    row = np.asarray(module._move(ramp, 0.9, jnp.array([0.0, 0.02]), jnp.array(0.0)))[50, :, 0]
    np.testing.assert_allclose(row, 7 + 0.9 * (np.arange(100) + 0.5), atol=1e-4)


def test_outside_the_image_is_black() -> None:
    seen = np.asarray(module._move(jnp.ones((65, 65, 3)), 1.0, jnp.zeros(2), jnp.deg2rad(45.0)))
    assert seen.min() == 0
    assert seen[32, 32].tolist() == [1, 1, 1]


def test_the_colours_of_half_of_the_pictures_are_left_alone() -> None:
    picture = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 4, 3)), jnp.float32)
    colour = jax.jit(jax.vmap(lambda key: module._draw_colour(picture, AugmentConfig(), key)))
    seen = colour(jax.random.split(jax.random.key(0), 1000))
    changed = np.abs(seen - picture).max(axis=(1, 2, 3)) > 1e-4
    assert 0.45 < changed.mean() < 0.55


@pytest.mark.parametrize("field", ["brightness", "contrast", "hue"])
def test_colours_change_no_further_than_was_asked_for(field: str) -> None:
    largest = getattr(AugmentConfig(), field)
    config = NONE.model_copy(update={"probability": 1, "brightness": 0, "contrast": 0, "hue": 0, field: largest})
    picture = jnp.array([[[0.5, 0.25, 0.25], [0.51, 0.25, 0.25]]])
    colour = jax.jit(jax.vmap(lambda key: module._to_hsv(module._draw_colour(picture, config, key))))
    hue, _, value = colour(jax.random.split(jax.random.key(0), 300))
    measured = {
        "brightness": value[:, 0, 0] * 2 - 1,
        "contrast": np.arctan((value[:, 0, 1] - value[:, 0, 0]) / 0.01) * 4 / np.pi - 1,
        "hue": ((hue[:, 0, 0] + 0.5) % 1 - 0.5) * 360,
    }[field]
    assert -largest * 1.001 <= measured.min() < -0.95 * largest
    assert 0.95 * largest < measured.max() <= largest * 1.001


def test_an_old_checkpoint_says_what_it_did() -> None:
    old = {"crop": 0.95, "rotation": 5, "brightness": 0.3, "contrast": 0.4, "saturation": 0.5}
    assert AugmentConfig.model_validate(old) == AugmentConfig(probability=1, hue=0)
