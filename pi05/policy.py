"""A checkpoint that acts: observations of several environments in, action chunks out, in one batched call.

An episode's sampling noise depends on the policy's seed, the episode's seed and the number of the query alone, and
every call computes the same shapes (rows are padded, and prompts have one length), because sums of another shape round
differently. So results do not depend, by a bit, on which episodes share a batch or how many there are.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, UInt8

from pi05.config import FLOAT32, ComputeConfig, Convention
from pi05.data.transforms import Recipe
from pi05.errors import DataError
from pi05.model import device, pi05, tree, weights
from pi05.training import checkpoint
from pi05.training.checkpoint import CheckpointMeta


class Policy:
    """Acts with one set of weights.

    Args:
        params: All parameters, by path, on the devices.
        recipe: The transforms they were trained with.
        meta: What the checkpoint says of itself.
        rows: Of a batch; smaller ones are padded, larger ones are computed in several.
        sampling_steps: Euler steps n.
        seed: Of the sampling noise.
        temperature: Scale of the sampling noise.
        compute: How the numbers are computed.
    """

    def __init__(
        self,
        params: Mapping[str, jax.Array],
        recipe: Recipe,
        meta: CheckpointMeta,
        rows: int,
        sampling_steps: int,
        seed: int,
        temperature: float = 1.0,
        compute: ComputeConfig = FLOAT32,
    ) -> None:
        self.meta, self._recipe, self._params = meta, recipe, tree.nest(params)
        self._rows, self._key = rows, jax.random.key(seed)
        compute = device.resolve(compute, meta.model, jax.devices()[0])
        self._sample = jax.jit(
            partial(
                pi05.sample_episodes, config=meta.model, compute=compute, steps=sampling_steps, temperature=temperature
            )
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        rows: int,
        sampling_steps: int,
        seed: int,
        temperature: float = 1.0,
        task: str | None = None,
        compute: ComputeConfig = FLOAT32,
    ) -> "Policy":
        """Read a verified checkpoint folder; raise DataError when anything in it is missing or does not fit.

        Weights go straight to the device; one that computes in bfloat16 keeps most of them so (weights.for_acting).
        `task` is the one to act on, of those that the checkpoint was trained on; None is the run's own.
        """
        meta = checkpoint.read_meta(folder)
        recipe = checkpoint.read_recipe(folder, meta, task)
        params = weights.read(folder / "params", meta.model, weights.for_acting(meta.model, compute.dtype))
        return cls(params, recipe, meta, rows, sampling_steps, seed, temperature, compute)

    @classmethod
    def untrained(
        cls,
        folder: Path,
        rows: int,
        sampling_steps: int,
        seed: int,
        temperature: float = 1.0,
        task: str | None = None,
        compute: ComputeConfig = FLOAT32,
    ) -> "Policy":
        """Take everything of a checkpoint but its weights, which are those it began with: the row a policy must beat.

        They are drawn from `seed`, the number embedding as in its training.
        """
        meta = checkpoint.read_meta(folder)
        recipe = checkpoint.read_recipe(folder, meta, task)
        drawn = tree.initial(meta.model, seed)
        if meta.train.number_embedding == "fourier":
            drawn = tree.embed_numbers(drawn, recipe.tokenizer.number_tokens, meta.train.number_frequencies)
        target = weights.for_acting(meta.model, compute.dtype)
        params = {path: jax.device_put(drawn.pop(path).astype(one.dtype), one.sharding) for path, one in target.items()}
        return cls(params, recipe, meta, rows, sampling_steps, seed, temperature, compute)

    @property
    def convention(self) -> Convention:
        """What data, checkpoint and evaluation must agree on."""
        return self.meta.convention

    def act(
        self,
        seeds: Sequence[int],
        query: int,
        states: Float[np.ndarray, "b d"],
        images: Mapping[str, UInt8[np.ndarray, "b h w 3"]],
    ) -> Float[np.ndarray, "b horizon 8"]:
        """Return a chunk of absolute joint targets (rad) and gripper for each episode.

        Args:
            seeds: Environment seeds of the episodes.
            query: How many chunks these episodes have asked for before.
            states: float32, not normalised.
            images: One array a camera of the convention.

        Raises:
            DataError: The states have another width than those of training, or a camera is missing.
        """
        wanted = len(self._recipe.stats.state.q01)
        if states.shape[-1] != wanted:
            raise DataError(f"the policy was trained on states of {wanted} numbers, given {states.shape[-1]}")
        parts = [slice(begin, begin + self._rows) for begin in range(0, len(states), self._rows)]
        chunks = [
            self._act(seeds[part], query, states[part], {name: image[part] for name, image in images.items()})
            for part in parts
        ]
        return np.concatenate(chunks)

    def _act(
        self, seeds: Sequence[int], query: int, states: np.ndarray, images: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Return the chunks of at most as many episodes as a batch has rows."""
        padded = self._padded(states)
        seen = {name: self._padded(image) for name, image in images.items()}
        observation = self._recipe.observe(self._recipe.normalise_state(padded), seen)
        episodes = self._padded(np.asarray(seeds, np.uint32))
        chunks = self._sample(self._params, observation, self._key, episodes, np.uint32(query))
        return self._recipe.decode_actions(padded, np.asarray(chunks))[: len(states)]

    def _padded(self, values: np.ndarray) -> np.ndarray:
        """Return as many rows as a batch has, the last one repeated."""
        missing = self._rows - len(values)
        return np.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)], mode="edge")
