"""How often each shade of red, green and blue is in the frames of an episode: what LeRobot's statistics need of them.

A worker that renders counts them while it has the pixels, so whoever writes the dataset decodes nothing. Which frames
count is LeRobot's rule (0.4.4): at most a hundred of a short episode, spread evenly; of large ones every n-th pixel.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, UInt8

from pi05.data.images import pixels

Shades = Int[np.ndarray, "3 256"]

_AT_LEAST, _AT_MOST, _POWER = 100, 10_000, 0.75
"""Frames of an episode of T steps that count: T ** 0.75, but at least so many (or all) and at most so many."""
_LARGE, _ABOUT = 300, 150
"""Pixels of the longer side from which on some are left out, and how many of it then stay, at least."""


def counted(steps: int) -> list[int]:
    """Return which frames of an episode count."""
    number = max(min(steps, _AT_LEAST), min(int(steps**_POWER), _AT_MOST))
    return np.round(np.linspace(0, steps - 1, number)).astype(int).tolist()


def of_frame(picture: UInt8[np.ndarray, "h w 3"]) -> Shades:
    """Return how often each shade is in a picture."""
    height, width, _ = picture.shape
    every = 1 if max(height, width) < _LARGE else int(max(height, width) / _ABOUT)
    thinned = picture[::every, ::every]
    return np.stack([np.bincount(thinned[..., channel].ravel(), minlength=256) for channel in range(3)])


def of_episode(by_frame: Sequence[Shades]) -> Shades:
    """Return the shades of an episode, given those of each frame."""
    return np.sum([by_frame[frame] for frame in counted(len(by_frame))], axis=0)


def of_encoded(frames: Sequence[bytes]) -> Shades:
    """Return the shades of an episode whose frames have to be decoded for it; decoding frees Python's lock."""
    wanted = counted(len(frames))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return np.sum(list(threads.map(lambda frame: of_frame(pixels(frames[frame])), wanted)), axis=0)
