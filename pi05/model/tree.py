"""Parameters as arrays, by the table of leaves: drawn, counted, flat and nested."""

import math
import zlib
from collections.abc import Container, Mapping
from typing import Any, cast

import numpy as np
from flax import traverse_util

from pi05.config import ModelConfig
from pi05.model.leaves import EMBEDDING, Leaf, leaves
from pi05.observation import AnyArray

Params = dict[str, Any]
"""A nested dictionary of arrays, of depth as the paths say."""


def initial(config: ModelConfig, seed: int, paths: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Draw all parameters, or those of some paths, on the host.

    Each leaf depends on the seed and its own path alone, so sizes elsewhere and the devices do not change it.
    """

    def draw(path: str, leaf: Leaf) -> np.ndarray:
        if not leaf.std:
            return np.full(leaf.shape, leaf.fill, np.float32)
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(path.encode())])))
        return random.standard_normal(leaf.shape, np.float32) * np.float32(leaf.std)

    return {path: draw(path, leaf) for path, leaf in leaves(config).items() if paths is None or path in paths}


def without_factors(config: ModelConfig) -> ModelConfig:
    """Return the same model without factors of LoRA."""
    vlm, expert = (gemma.model_copy(update={"lora_rank": 0}) for gemma in (config.vlm, config.expert))
    return config.model_copy(update={"vlm": vlm, "expert": expert})


def embed_numbers(params: dict[str, np.ndarray], tokens: np.ndarray, max_frequency: float) -> dict[str, np.ndarray]:
    """Replace the embeddings of the state numbers by Fourier features, smooth in the number.

    A random table says nothing about the order of 256 numbers, and a model without pretraining first has to learn it.
    Row i, before the scaling by sqrt(width), holds sin and cos of pi f x_i for x_i from -1 to 1 and frequencies f
    spaced evenly up to `max_frequency`, so that x_i and x_(i+1) are neighbours.

    Args:
        params: All parameters by path.
        tokens: Ids of the numbers' tokens in ascending order.
        max_frequency: In half-turns over [-1, 1].
    """
    table = params[EMBEDDING].copy()
    width = table.shape[1]
    x = np.linspace(-1, 1, len(tokens))[:, None]
    frequency = np.linspace(max_frequency / (width // 2), max_frequency, width // 2)
    features = np.concatenate([np.sin(np.pi * frequency * x), np.cos(np.pi * frequency * x)], axis=1)
    table[tokens] = features * np.sqrt(2 / width)
    return {**params, EMBEDDING: table}


def count(config: ModelConfig) -> int:
    """Return the number of parameters, without allocating any."""
    return sum(math.prod(leaf.shape) for leaf in leaves(config).values())


def flatten(params: Params) -> dict[str, AnyArray]:
    """Return `{slash-separated path: array}`."""
    return cast(dict[str, AnyArray], traverse_util.flatten_dict(params, sep="/"))


def nest(flat: Mapping[str, Any]) -> Params:
    """Undo `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")
