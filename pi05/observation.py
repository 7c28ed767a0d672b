"""The typed boundary between data and model: what a policy observes, and the actions it predicts.

Legend of letters in shapes: b batch, s prefix tokens, t prompt tokens, h action horizon, a padded action width.
"""

from collections.abc import Mapping

import jax
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int, Num

AnyArray = jax.Array | np.ndarray
"""On the host where data is made, on devices where the model eats it."""
Actions = Float[jax.Array, "b h a"]

TOKEN_BUCKET = 8
"""Prompts are trimmed to a multiple of this, so that few shapes are compiled."""


@struct.dataclass
class Observation:
    """What the model is given for each sample.

    Attributes:
        images: uint8 or float32 in [-1, 1], one array a camera, in prefix order.
        image_masks: Which samples have the camera.
        tokens: Prompt, padded with zeros.
        token_mask: Which tokens exist.
    """

    images: Mapping[str, Num[AnyArray, "b height width 3"]]
    image_masks: Mapping[str, Bool[AnyArray, " b"]]
    tokens: Int[AnyArray, "b t"]
    token_mask: Bool[AnyArray, "b t"]


def compact(observation: Observation) -> Observation:
    """Leave out what no sample of a batch has: absent cameras and the common padding of the prompts.

    Masked tokens take no position and nobody attends to them, so the model's output stays the same and costs less.
    Works on host arrays.
    """
    present = {name: image for name, image in observation.images.items() if np.any(observation.image_masks[name])}
    tokens, token_mask = trim(np.asarray(observation.tokens), np.asarray(observation.token_mask))
    return Observation(present, {name: observation.image_masks[name] for name in present}, tokens, token_mask)


def trim(tokens: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut the padding that all prompts of a batch (b, t) share; a multiple of TOKEN_BUCKET tokens stays."""
    longest = int(np.max(np.sum(mask, axis=1), initial=1))
    keep = min(-(-longest // TOKEN_BUCKET) * TOKEN_BUCKET, tokens.shape[1])
    return tokens[:, :keep], mask[:, :keep]
