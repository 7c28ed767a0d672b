"""Encoded images to pixels, and pixels to the size a model takes: used alike for training and for acting."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

_FORMS = ("PNG", "JPEG")
"""What is decoded, in PIL's words."""
_BLACK = 8
"""Mean of 255 up to which a bar is black: videos are not exact."""

Picture = UInt8[np.ndarray, "h w 3"]


def decode(content: bytes, size: int) -> Picture:
    """Return the pixels of an encoded image, looking at its form, size and colours before anything is unpacked.

    Args:
        content: PNG or JPEG; nothing else is tried, because other decoders run programs or unpack without bound.
        size: Height and width that it must have, in pixels.

    Raises:
        ValueError: There is no RGB image of this size in it, in words.
    """
    with _opened(content) as image:
        if image.mode != "RGB":
            raise ValueError(f"its pixels are {image.mode}, RGB is required")
        if image.size != (size, size):
            given = f"{image.height} x {image.width}"
            raise ValueError(f"it has {given} pixels, {size} x {size} are required (convention.image_size)")
        return np.asarray(image)


def pixels(content: bytes) -> Picture:
    """Return the pixels of an encoded image of any size and colours, as RGB; ValueError when there is none in it."""
    with _opened(content) as image:
        return np.asarray(image.convert("RGB"))


def as_given(content: bytes, size: int) -> bool:
    """Return whether an encoded image is one of ours as it is: RGB, and `size` pixels square."""
    with _opened(content) as image:
        return image.mode == "RGB" and image.size == (size, size)


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open an image; what PIL says of a bad one while it is used becomes a ValueError."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMS) as image:
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"it is far too large: {error}") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL says broken PNG with a SyntaxError
        raise ValueError(f"it is no {' or '.join(_FORMS)} image: {error}") from error


def square(picture: Picture) -> Picture:
    """Return a square picture: as it is, or the middle of a wide or high one whose sides are black bars.

    ManiSkill's converter to LeRobot pads its square renders so (640 x 480 unless told).

    Raises:
        ValueError: There is more than black beside the middle.
    """
    height, width, _ = picture.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = picture[top : top + side, left : left + side]
    beside = picture.sum(dtype=np.int64) - middle.sum(dtype=np.int64)
    if beside > _BLACK * (height * width - side * side) * 3:
        raise ValueError(
            f"it has {height} x {width} pixels and no black bars; square pictures are required, because an evaluation "
            "renders such: crop them, or leave the camera out with --map FEATURE=none"
        )
    return middle


def fit(picture: Picture, size: int) -> Picture:
    """Return a picture of `size` pixels square: resized with its aspect kept (bilinear, antialiased), padded black.

    Sides are rounded down, rounding errors and all, as the Pi0.5 release does.
    """
    height, width, _ = picture.shape
    if height == width == size:
        return picture
    ratio = max(height / size, width / size)
    rows, columns = max(int(height / ratio), 1), max(int(width / ratio), 1)
    resized = Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR)
    top, left = (size - rows) // 2, (size - columns) // 2
    padded = np.zeros((size, size, 3), np.uint8)
    padded[top : top + rows, left : left + columns] = np.asarray(resized)
    return padded


def fit_all(pictures: UInt8[np.ndarray, "b h w 3"], size: int) -> UInt8[np.ndarray, "b {size} {size} 3"]:
    """Return `fit` of every picture of a batch."""
    if pictures.shape[1:3] == (size, size):
        return pictures
    return np.stack([fit(picture, size) for picture in pictures])
