"""PNG bytes to pixels, and pixels to the size a model takes: used alike for training and for acting."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

Picture = UInt8[np.ndarray, "h w 3"]


def decode(content: bytes) -> Picture:
    """Return the pixels of an encoded image; raise ValueError in words when there is no RGB image in it."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.mode != "RGB":
                raise ValueError(f"its pixels are {image.mode}, RGB is required")
            return np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:  # PIL says broken PNG with a SyntaxError
        raise ValueError(f"it is no image: {error}") from error


def fit(picture: Picture, size: int) -> Picture:
    """Return a picture of `size` pixels square: resized with its aspect kept (bilinear, antialiased), padded black."""
    height, width, _ = picture.shape
    if height == width == size:
        return picture
    scale = size / max(height, width)
    inside = max(round(height * scale), 1), max(round(width * scale), 1)
    resized = Image.fromarray(picture).resize(inside[::-1], Image.Resampling.BILINEAR)
    top, left = (size - inside[0]) // 2, (size - inside[1]) // 2
    padded = np.zeros((size, size, 3), np.uint8)
    padded[top : top + inside[0], left : left + inside[1]] = np.asarray(resized)
    return padded


def fit_all(pictures: UInt8[np.ndarray, "b h w 3"], size: int) -> UInt8[np.ndarray, "b {size} {size} 3"]:
    """Return `fit` of every picture of a batch."""
    if pictures.shape[1:3] == (size, size):
        return pictures
    return np.stack([fit(picture, size) for picture in pictures])
