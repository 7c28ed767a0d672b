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


@struct.dataclass
class Observation:
    """What the model is given for each sample.

    Attributes:
        images: uint8 or float32 in [-1, 1], one array a camera. Their tokens come in the order of the cameras' names,
            whatever that of the mapping: the published base, left wrist, right wrist, and base before hand.
        image_masks: Which samples have the camera; of one that is not named here, all have it. A camera that no sample
            has is better left out of both: nothing attends to what is masked, but it is computed.
        tokens: Prompt, padded with zeros to one length for a whole run (Recipe.prompt_length).
        token_mask: Which tokens exist; those that do come first.
    """

    images: Mapping[str, Num[AnyArray, "b height width 3"]]
    image_masks: Mapping[str, Bool[AnyArray, " b"]]
    tokens: Int[AnyArray, "b t"]
    token_mask: Bool[AnyArray, "b t"]
