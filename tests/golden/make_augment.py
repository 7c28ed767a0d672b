"""Makes augment.npz: pictures that augmax 0.4.1, the library of the Pi0.5 release, changed by amounts that are known.

    python -m venv /tmp/augmax && /tmp/augmax/bin/pip install augmax==0.4.1 "jax[cpu]"
    /tmp/augmax/bin/python tests/golden/make_augment.py

The library draws its amounts with jax.random.uniform, which is told here what to return. What is asked for is what the
release asks for: crop to 95 % in whole pixels, back to the size, rotation within 5 degrees, then the colours.
"""

from pathlib import Path
from typing import Any

import augmax  # pyright: ignore[reportMissingImports]
import jax
import jax.numpy as jnp
import numpy as np

SIZE, CROP, ROTATION = 20, 0.95, 5.0
JITTER = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5}


def changed(transform: Any, picture: np.ndarray, amounts: list[Any]) -> np.ndarray:
    """Return a picture as a transformation leaves it that draws these amounts, in the order in which it asks."""
    left = list(amounts)

    def uniform(*_: Any, **__: Any) -> Any:
        return jnp.asarray(left.pop(0), jnp.float32)

    jax.random.uniform = uniform
    return np.asarray(augmax.Chain(transform)(jax.random.key(0), jnp.asarray(picture, jnp.float32) / 255))


def main() -> None:
    """Write the file."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (6, SIZE, SIZE, 3), np.uint8)
    pictures[:, 0] = np.linspace(0, 255, SIZE)[:, None]  # grays, black and white among them
    off = random.uniform(-1, 1, (6, 2)) * (SIZE - int(CROP * SIZE)) / 2
    angles = np.deg2rad(ROTATION) * random.uniform(-1, 1, 6)
    colours = np.array(
        [[0.3, 0.4, 0.1], [-0.3, -0.4, -0.1], [0.2, -0.3, 0.05], [-0.1, 0.2, -0.07], [0, 0.4, 0], [0.3, 0, 0]]
    )
    side = int(CROP * SIZE)
    geometry = augmax.Chain(
        augmax.RandomCrop(side, side), augmax.Resize(SIZE, SIZE), augmax.Rotate((-ROTATION, ROTATION))
    )
    moved = [
        changed(geometry, *one)
        for one in zip(pictures, [[a, o] for a, o in zip(angles, off, strict=True)], strict=True)
    ]
    jitter = augmax.ColorJitter(**JITTER, p=1.0)
    coloured = [changed(jitter, picture, [*amounts, 0.5]) for picture, amounts in zip(pictures, colours, strict=True)]
    np.savez_compressed(
        Path(__file__).with_name("augment.npz"),
        pictures=pictures,
        off=off / SIZE,
        angles=angles,
        moved=np.stack(moved),
        colours=colours,
        coloured=np.stack(coloured),
    )


if __name__ == "__main__":
    main()
