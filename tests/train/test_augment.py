"""Random changes of images: exact about what they may not touch, reproducible, and none where none is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pi05.config import AugmentConfig
from pi05.training import augment as module
from pi05.training.augment import augment

NONE = AugmentConfig(crop=1, rotation=0, brightness=0, contrast=0, saturation=0)
move, colour = (jax.jit(function, static_argnums=1) for function in (module._move, module._colour))
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


def test_cameras_have_random_numbers_of_their_own(images: dict) -> None:
    both = changed(images, brightness=0.3)
    assert np.abs(both["base_camera"] - both["hand_camera"]).max() > 0.02


def test_sharding_changes_nothing(images: dict) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = {name: jax.device_put(image, place) for name, image in images.items()}
    for name, image in changed(spread).items():
        np.testing.assert_allclose(image, changed(images)[name], atol=1e-6)


def test_a_crop_shows_95_percent_resized() -> None:
    """Of a ramp, whose values are its coordinates, the first and last pixel say what was kept."""
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 101)[None, :, None], (101, 101, 3))
    for number in range(5):
        seen = move(ramp, NONE.model_copy(update={"crop": 0.95}), jax.random.key(number))
        row = np.asarray(seen)[50, :, 0]
        steps = np.diff(row[1:-1])
        np.testing.assert_allclose(steps, 0.01 * 0.95, atol=1e-4)
        assert row.min() >= -1e-3


def test_a_rotation_stays_within_its_angle_and_keeps_the_middle() -> None:
    line = np.zeros((101, 101, 3), np.float32)
    line[50] = 1  # a horizontal line through the middle
    turning = NONE.model_copy(update={"rotation": 5.0})
    angles = []
    for number in range(200):
        seen = np.asarray(move(jnp.asarray(line), turning, jax.random.key(number)))
        assert seen[50, 50, 0] > 0.9
        left, right = (np.average(np.arange(101), weights=seen[:, column, 0] + 1e-9) for column in (10, 90))
        angles.append(np.degrees(np.arctan2(right - left, 80)))
    assert 4 < max(angles) <= 5.05
    assert -5.05 <= min(angles) < -4
    assert abs(np.mean(angles)) < 0.6


def test_outside_the_image_is_black() -> None:
    white = jnp.ones((65, 65, 3))
    seen = np.asarray(move(white, NONE.model_copy(update={"rotation": 45.0}), jax.random.key(3)))
    assert seen.min() == 0
    assert seen[32, 32].tolist() == [1, 1, 1]


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation"])
def test_colour_factors_stay_within_their_bounds(field: str) -> None:
    largest = getattr(AugmentConfig(), field)
    config = NONE.model_copy(update={field: largest})
    picture = jnp.asarray(np.random.default_rng(0).uniform(0.4, 0.6, (16, 16, 3)), jnp.float32)
    gray = picture @ jnp.array(module._GRAY)
    measured = []
    for number in range(200):
        seen = colour(picture, config, jax.random.key(number))
        if field == "brightness":
            factor = (seen / picture).mean()
        elif field == "contrast":
            factor = (seen - gray.mean()).std() / (picture - gray.mean()).std()
        else:
            factor = (seen - gray[..., None]).std() / (picture - gray[..., None]).std()
        measured.append(float(factor))
    assert 1 - largest - 1e-3 <= min(measured) < 1 - 0.9 * largest
    assert 1 + 0.9 * largest < max(measured) <= 1 + largest + 1e-3
