"""A dataset to training batches: which samples, in which order, with which noise, from the seed and the step alone.

Step k takes the samples k * batch ... of an endless sequence of epochs, each a permutation drawn from (seed, epoch).
So the state of the loader is the step number, and a resumed run reads what an uninterrupted one would have read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from pi05.config import Convention
from pi05.data.dataset import Dataset
from pi05.data.stats import DataStats, statistics
from pi05.data.transforms import Chunk, Recipe, relative_actions
from pi05.observation import Observation

_ORDER, _NOISE = 0, 1
"""Streams of random numbers that must not overlap."""


@dataclass(frozen=True)
class Samples:
    """Training samples of one step on the host."""

    observation: Observation
    actions: Float[np.ndarray, "b h a"]
    real: Bool[np.ndarray, "b h a"]


def data_stats(dataset: Dataset, convention: Convention, horizon: int) -> DataStats:
    """Return the statistics of all states and of all action chunks, the repeated last actions included."""
    actions, _ = chunks(dataset, np.arange(len(dataset.states)), horizon)
    return DataStats(
        state=statistics(dataset.states), actions=statistics(relative_actions(convention, dataset.states, actions))
    )


def chunks(dataset: Dataset, rows: Int[np.ndarray, " b"], horizon: int) -> tuple[Chunk, Bool[np.ndarray, "b h"]]:
    """Return the next `horizon` actions from each row and which of them lie inside the episode.

    Past the end of an episode its last action repeats (LeRobot's rule).
    """
    episodes = np.searchsorted(dataset.starts, rows, side="right")
    wanted = rows[:, None] + np.arange(horizon)
    last = dataset.starts[episodes][:, None] - 1
    return dataset.actions[np.minimum(wanted, last)], wanted <= last


def order(samples: int, batch_size: int, seed: int, step: int) -> Int[np.ndarray, " b"]:
    """Return the samples of a step."""
    positions = step * batch_size + np.arange(batch_size)
    return np.array([_epoch(samples, seed, int(p) // samples)[int(p) % samples] for p in positions])


def batches(
    dataset: Dataset,
    recipe: Recipe,
    batch_size: int,
    seed: int,
    state_noise: float,
    first_step: int,
    part: slice = slice(None),
) -> Iterator[Samples]:
    """Yield the samples of `first_step` and of every step after it, endlessly.

    Args:
        dataset, recipe: What is sampled, and how it is transformed.
        batch_size: Of the whole batch.
        seed: Of order and noise.
        state_noise: Standard deviation of noise on the normalised state.
        first_step: Steps done before.
        part: The rows of each batch that are wanted.
    """
    step = first_step
    while True:
        rows = order(len(dataset.states), batch_size, seed, step)
        random = np.random.Generator(_stream(seed, _NOISE, step))
        noise = state_noise * random.standard_normal((batch_size, dataset.states.shape[1]))
        yield _samples(dataset, recipe, rows, noise, part)
        step += 1


def _samples(dataset: Dataset, recipe: Recipe, rows: np.ndarray, noise: np.ndarray, part: slice) -> Samples:
    """Gather and transform; the noise disturbs only what the policy sees, never the actions it should learn.

    Prompts are made for the whole batch, because the longest says how long all of them are.
    """
    seen = recipe.normalise_state(dataset.states[rows]) + noise
    observation = jax.tree.map(lambda array: array[part], recipe.observe(seen, {}))
    states = dataset.states[rows[part]]
    actions, inside = chunks(dataset, rows[part], recipe.model.action_horizon)
    encoded = recipe.encode_actions(states, actions)
    real = inside[:, :, None] & (np.arange(encoded.shape[-1]) < actions.shape[-1])
    return Samples(observation, encoded, real)


@lru_cache(maxsize=4)
def _epoch(samples: int, seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    return np.random.Generator(_stream(seed, _ORDER, epoch)).permutation(samples)


def _stream(seed: int, stream: int, counter: int) -> np.random.Philox:
    """Return the random numbers of (seed, stream, counter), independent of every other triple."""
    return np.random.Philox(np.random.SeedSequence([seed, stream, counter]))
