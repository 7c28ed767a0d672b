"""Random changes of training images, on the devices and inside the jitted step.

What happens to an image follows from the seed, the step, the sample's place in the global batch and where its camera
is, so a resumed run sees what an uninterrupted one would have seen, on any number of devices and processes.

    base camera    crop, resized back, and rotation in one resampling (bilinear; black outside the image), then colour
    hand camera    colour only: it turns with the hand, and what it shows says where the hand is

These are the changes that the Pi0.5 release makes; tests/train/test_augment.py holds them to pictures that its library
(augmax 0.4.1) made, given the same amounts. The amounts are drawn by other random numbers.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from pi05.config import AugmentConfig

_STANDS_STILL = frozenset({"base_camera"})
"""Cameras whose picture may be shifted and turned."""
_STREAM = 2**32 - 1
"""Sets these random numbers apart from those of noise and time, which are drawn from (seed, step)."""

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
    """Change the pictures of one camera; all cameras on hands have the same amounts, as in the release."""
    stands = name in _STANDS_STILL
    moves = stands and (config.crop < 1 or config.rotation > 0)
    colours = config.probability > 0 and max(config.brightness, config.contrast, config.hue) > 0
    if not (moves or colours):
        return pictures
    key = jax.random.fold_in(key, int(stands))

    def change(picture: Array, sample: Array) -> Array:
        geometry, colour = jax.random.split(jax.random.fold_in(key, sample))
        picture = picture.astype(jnp.float32) / 255
        picture = _move(picture, *_draw_move(config, len(picture), geometry)) if moves else picture
        return (_draw_colour(picture, config, colour) if colours else picture) * 2 - 1

    return jax.vmap(change)(pictures, jnp.arange(len(pictures)))


def _draw_move(config: AugmentConfig, size: int, key: Key[Array, ""]) -> tuple[float, Float[Array, "2"], Array]:
    """Return the side that is kept and how far its middle is off, as shares of the image, and an angle in rad."""
    place, turn = jax.random.split(key)
    side = int(config.crop * size) / size
    angle = jnp.deg2rad(config.rotation) * jax.random.uniform(turn, minval=-1.0)
    return side, (1 - side) / 2 * jax.random.uniform(place, (2,), minval=-1.0), angle


def _move(picture: Picture, side: float, off: Float[Array, "2"], angle: Float[Array, ""]) -> Picture:
    """Crop, resize back and rotate, in one resampling."""
    height, width, _ = picture.shape
    y, x = jnp.meshgrid(jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij")
    turned_y = jnp.cos(angle) * y + jnp.sin(angle) * x
    turned_x = jnp.cos(angle) * x - jnp.sin(angle) * y
    return _sample(
        picture,
        turned_y * side + off[0] * height + (height - 1) / 2,
        turned_x * side + off[1] * width + (width - 1) / 2,
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


def _draw_colour(picture: Picture, config: AugmentConfig, key: Key[Array, ""]) -> Picture:
    """Change the colours of a picture, or leave it alone."""
    whether, how = jax.random.split(key)
    largest = jnp.array([config.brightness, config.contrast, config.hue / 360])
    changed = _colour(picture, *(largest * jax.random.uniform(how, (3,), minval=-1.0)))
    return jnp.where(jax.random.uniform(whether) < config.probability, changed, picture)


def _colour(picture: Picture, brightness: Array, contrast: Array, hue: Array) -> Picture:
    """Change brightness and contrast of HSV's value, and turn the hue; the saturation stays.

    Args:
        picture: In [0, 1].
        brightness: Share of white that is mixed in, in [-1, 1]; a negative one is of black.
        contrast: In (-1, 1); 0 changes nothing.
        hue: In turns.
    """
    old, saturation, value = _to_hsv(picture)
    value = jnp.where(brightness > 0, value + brightness * (1 - value), value * (1 + brightness))
    return _from_hsv(old + hue, saturation, _curve(value, jnp.tan((1 + contrast) * jnp.pi / 4)))


def _curve(value: Array, slope: Array) -> Array:
    """Return values on a curve of three lines: `slope` through the middle, 1 / slope from (0, 0) and to (1, 1)."""
    middle = (value - 0.5) * slope + 0.5
    low, high = value / slope, 1 - (1 - value) / slope
    return jnp.where(slope > 1, jnp.clip(middle, low, high), jnp.clip(middle, high, low))


def _to_hsv(picture: Picture) -> tuple[Float[Array, "h w"], Float[Array, "h w"], Float[Array, "h w"]]:
    """Return hue in turns, saturation and value (Smith 1978); of grays the hue is 0."""
    red, green, blue = jnp.moveaxis(picture, -1, 0)
    value = picture.max(axis=-1)
    chroma = value - picture.min(axis=-1)
    by = jnp.where(chroma > 0, chroma, 1)
    sixths = jnp.where(
        value == red,
        (green - blue) / by,
        jnp.where(value == green, 2 + (blue - red) / by, 4 + (red - green) / by),
    )
    return sixths / 6, chroma / jnp.where(value > 0, value, 1), value


def _from_hsv(hue: Float[Array, "h w"], saturation: Float[Array, "h w"], value: Float[Array, "h w"]) -> Picture:
    """Undo `_to_hsv`; any hue, whole turns are the same."""
    sixths = (jnp.array([5.0, 3.0, 1.0]) + 6 * hue[..., None]) % 6  # from the colour opposite to red, green, blue
    least = jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * least)
