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
    Works on host arrays; the prompt keeps a multiple of TOKEN_BUCKET tokens.
    """
    present = {name: image for name, image in observation.images.items() if np.any(observation.image_masks[name])}
    longest = int(np.max(np.sum(observation.token_mask, axis=1), initial=1))
    keep = min(-(-longest // TOKEN_BUCKET) * TOKEN_BUCKET, observation.tokens.shape[1])
    return Observation(
        images=present,
        image_masks={name: observation.image_masks[name] for name in present},
        tokens=observation.tokens[:, :keep],
        token_mask=observation.token_mask[:, :keep],
    )
