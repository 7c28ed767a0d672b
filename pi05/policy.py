"""A checkpoint that acts: observations of several environments in, action chunks out, in one batched call.

An episode's sampling noise depends on the policy's seed, the episode's seed and the number of the query alone, so
results do not depend on which episodes share a batch.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from pi05.config import Convention
from pi05.data.transforms import Recipe
from pi05.errors import DataError
from pi05.model import pi05, tree, weights
from pi05.observation import Observation
from pi05.training import checkpoint
from pi05.training.checkpoint import CheckpointMeta


class Policy:
    """Acts with one set of weights.

    Args:
        params: All parameters.
        recipe: The transforms they were trained with.
        meta: What the checkpoint says of itself.
        environments: Rows of a batch; smaller ones are padded, so that one shape is compiled.
        sampling_steps: Euler steps n.
        seed: Of the sampling noise.
        temperature: Scale of the sampling noise.
    """

    def __init__(
        self,
        params: tree.Params,
        recipe: Recipe,
        meta: CheckpointMeta,
        environments: int,
        sampling_steps: int,
        seed: int,
        temperature: float = 1.0,
    ) -> None:
        self.meta, self._recipe, self._params = meta, recipe, params
        self._rows, self._key = environments, jax.random.key(seed)
        self._sample = jax.jit(partial(_sample, config=meta.model, steps=sampling_steps, temperature=temperature))

    @classmethod
    def load(
        cls, folder: Path, environments: int, sampling_steps: int, seed: int, temperature: float = 1.0
    ) -> "Policy":
        """Read a verified checkpoint folder; raise DataError when anything in it is missing or does not fit."""
        meta = checkpoint.read_meta(folder)
        params = tree.nest(weights.read(folder / "params", meta.model))
        return cls(params, checkpoint.read_recipe(folder, meta), meta, environments, sampling_steps, seed, temperature)

    @classmethod
    def untrained(
        cls, folder: Path, environments: int, sampling_steps: int, seed: int, temperature: float = 1.0
    ) -> "Policy":
        """Take everything of a checkpoint but its weights, which are drawn at random: the row a policy must beat."""
        meta = checkpoint.read_meta(folder)
        params = tree.nest(tree.initial(meta.model, seed))
        return cls(params, checkpoint.read_recipe(folder, meta), meta, environments, sampling_steps, seed, temperature)

    @property
    def convention(self) -> Convention:
        """What data, checkpoint and evaluation must agree on."""
        return self.meta.convention

    def act(self, seeds: Sequence[int], query: int, states: Float[np.ndarray, "b d"]) -> Float[np.ndarray, "b h 8"]:
        """Return a chunk of absolute joint targets (rad) and gripper for each episode.

        Args:
            seeds: Environment seeds of the episodes.
            query: How many chunks these episodes have asked for before.
            states: float32, not normalised.

        Raises:
            DataError: The states have another width than those of training.
        """
        wanted = len(self._recipe.stats.state.q01)
        if states.shape[-1] != wanted:
            raise DataError(f"the policy was trained on states of {wanted} numbers, given {states.shape[-1]}")
        rows = len(states)
        padding = [(0, self._rows - rows), (0, 0)]
        padded = np.pad(states, padding, mode="edge")
        observation = self._recipe.observe(self._recipe.normalise_state(padded), {})
        episodes = np.pad(np.asarray(seeds, np.uint32), padding[0])
        chunks = self._sample(self._params, observation, self._key, episodes, np.uint32(query))
        return self._recipe.decode_actions(padded, np.asarray(chunks))[:rows]


def _sample(
    params: tree.Params,
    observation: Observation,
    key: jax.Array,
    episodes: jax.Array,
    query: jax.Array,
    *,
    config: pi05.ModelConfig,
    steps: int,
    temperature: float,
) -> jax.Array:
    """Draw each episode's noise and integrate the flow."""

    def draw(episode: jax.Array) -> jax.Array:
        episode_key = jax.random.fold_in(jax.random.fold_in(key, episode), query)
        return temperature * jax.random.normal(episode_key, (config.action_horizon, config.action_dim))

    return pi05.sample(params, config, observation, jax.vmap(draw)(episodes), steps)
