"""Random changes of training images, on the devices and inside the jitted step.

What happens to an image follows from the seed, the step, the sample's place in the global batch and the camera's name,
so a resumed run sees what an uninterrupted one would have seen, on any number of devices and processes.

    base camera    crop, resized back, and rotation in one resampling (bilinear; black outside the image), then colour
    hand camera    colour only: it turns with the hand, and what it shows says where the hand is
"""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from pi05.config import AugmentConfig

_STANDS_STILL = frozenset({"base_camera"})
"""Cameras whose picture may be shifted and turned."""
_STREAM = 2**32 - 1
"""Sets these random numbers apart from those of noise and time, which are drawn from (seed, step)."""
_GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""

Picture = Float[Array, "h w 3"]


def augment(
    images: Mapping[str, UInt8[Array, "b h w 3"]], config: AugmentConfig, seed: int, step: Array | int
) -> dict[str, Array]:
    """Return float32 images in [-1, 1]; with a config that changes nothing, the images as they are.

    Args:
        images: By camera.
        config: Which changes, and how large.
        seed: Of the run.
        step: Optimizer steps done.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _STREAM), step)
    return {name: _camera(name, pictures, config, key) for name, pictures in images.items()}


def _camera(name: str, pictures: Array, config: AugmentConfig, key: Key[Array, ""]) -> Array:
    """Change the pictures of one camera, each with random numbers of its own."""
    moves = name in _STANDS_STILL and (config.crop < 1 or config.rotation > 0)
    if not (moves or config.brightness or config.contrast or config.saturation):
        return pictures
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))

    def change(picture: Array, sample: Array) -> Array:
        geometry, colour = jax.random.split(jax.random.fold_in(key, sample))
        picture = picture.astype(jnp.float32) / 255
        picture = _move(picture, config, geometry) if moves else picture
        return _colour(picture, config, colour) * 2 - 1

    return jax.vmap(change)(pictures, jnp.arange(len(pictures)))


def _move(picture: Picture, config: AugmentConfig, key: Key[Array, ""]) -> Picture:
    """Crop, resize back and rotate, in one resampling."""
    place, turn = jax.random.split(key)
    height, width, _ = picture.shape
    corner = jax.random.uniform(place, (2,)) * (1 - config.crop)
    angle = jnp.deg2rad(jax.random.uniform(turn, (), minval=-config.rotation, maxval=config.rotation))
    y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")
    turned_y = jnp.cos(angle) * y - jnp.sin(angle) * x + height / 2
    turned_x = jnp.sin(angle) * y + jnp.cos(angle) * x + width / 2
    return _sample(
        picture, turned_y * config.crop + corner[0] * height - 0.5, turned_x * config.crop + corner[1] * width - 0.5
    )


def _sample(picture: Picture, y: Float[Array, "h w"], x: Float[Array, "h w"]) -> Picture:
    """Return the picture at coordinates in pixels, bilinear; black outside."""
    height, width, _ = picture.shape
    pixels = picture.reshape(-1, 3)
    top, left = jnp.floor(y), jnp.floor(x)

    def corner(row: Array, column: Array) -> Array:
        weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
        return jnp.where(inside, weight, 0)[..., None] * pixels[index.astype(jnp.int32)]

    return corner(top, left) + corner(top, left + 1) + corner(top + 1, left) + corner(top + 1, left + 1)


def _colour(picture: Picture, config: AugmentConfig, key: Key[Array, ""]) -> Picture:
    """Scale brightness, contrast about the mean and saturation about the gray, in [0, 1]."""
    largest = jnp.array([config.brightness, config.contrast, config.saturation])
    brightness, contrast, saturation = 1 + largest * jax.random.uniform(key, (3,), minval=-1.0, maxval=1.0)
    weights = jnp.array(_GRAY)
    picture = jnp.clip(picture * brightness, 0, 1)
    mean = (picture @ weights).mean()
    picture = jnp.clip(mean + (picture - mean) * contrast, 0, 1)
    gray = (picture @ weights)[..., None]
    return jnp.clip(gray + (picture - gray) * saturation, 0, 1)
