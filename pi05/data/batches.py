"""Datasets to training batches: which samples, in which order, with which noise, from the seed and the step alone.

Step k takes the positions k * batch ... of an endless sequence. Which dataset a position takes from is drawn in blocks,
so that each has its share of every block; which sample of the dataset, in epochs, each a permutation of all of them. So
the state of the loader is the step number, and a resumed run reads what an uninterrupted one would have read.

Of several processes, each gets the rows of the batch that its devices hold. The numbers of the others cost next to
nothing and are made anyway: the noise is drawn for a whole batch. Frames are read for its own rows alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from pi05.config import Convention
from pi05.data.dataset import Dataset
from pi05.data.frames import Frames
from pi05.data.split import split
from pi05.data.stats import DataStats, statistics
from pi05.data.transforms import Chunk, Images, Recipe, relative_actions
from pi05.errors import DataError
from pi05.observation import Observation

_ORDER, _NOISE, _MIX = 0, 1, 2
"""Streams of random numbers that must not overlap."""
_BLOCK = 4096
"""Positions in which every dataset has its share."""


@dataclass(frozen=True)
class Samples:
    """Training samples of one step on the host: the rows of one process."""

    observation: Observation
    actions: Float[np.ndarray, "b h a"]
    real: Bool[np.ndarray, "b h a"]


@dataclass(frozen=True)
class Source:
    """A dataset to train on.

    Attributes:
        dataset: Its numbers.
        sentence: The instruction of its task.
        frames: Its images; None where the policy does not see.
        weight: Its share of the samples is this by the sum of all weights.
    """

    dataset: Dataset
    sentence: str
    frames: Frames | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Numbers:
    """The rows of all sources, one source after the other.

    Attributes:
        states: float32 (N, S).
        actions: float32 (N, 8).
        starts: int64 (E + 1,), first row of each episode, and N.
    """

    states: np.ndarray
    actions: np.ndarray
    starts: np.ndarray


class Loader:
    """Makes the batch of any step.

    Args:
        sources: What to train on.
        recipe: From the robot's numbers to the model's.
        batch_size: Samples of a batch, over all processes.
        seed: Of order and noise.
        state_noise: Standard deviation of noise added to normalised states.
        rows: Which of them this process makes.
        held_out: Episodes of each source, or their share, that are kept apart.

    Raises:
        DataError: The sources differ in the numbers of a state.
        ConfigError: The prompt of a source is too long, or no episode is left to train on.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        recipe: Recipe,
        batch_size: int,
        seed: int,
        state_noise: float = 0.0,
        rows: slice = slice(None),
        held_out: float = 0,
    ) -> None:
        self.sources = tuple(sources)
        self.recipe = replace(recipe, others=tuple(source.sentence for source in self.sources))
        self._batch_size, self._seed, self._state_noise, self._rows = batch_size, seed, state_noise, rows
        self._numbers = join([source.dataset for source in self.sources])
        self._trained, self._apart = zip(*(split(source.dataset, held_out) for source in self.sources), strict=True)

    def batches(self, first_step: int) -> Iterator[Samples]:
        """Yield the samples of `first_step` and of every step after it, endlessly."""
        step = first_step
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> Samples:
        """Return the samples of one step.

        The noise disturbs only what the policy is told, never where the arm should go: joint targets are taken
        relative to the state that it is told, so what it learns there is the way back.
        """
        which, rows = self.order(step)
        random = np.random.Generator(_stream(self._seed, _NOISE, step))
        noise = self._state_noise * random.standard_normal((len(rows), self._numbers.states.shape[1]))
        return self._samples(which[self._rows], rows[self._rows], noise[self._rows])

    @property
    def held_out_batches(self) -> int:
        """Batches that the samples kept apart make; 0: there are none."""
        return -(-sum(map(len, self._apart)) // self._batch_size)

    def held_out(self, number: int) -> Samples:
        """Return one batch of the samples that are kept apart, always the same and without noise.

        All batches are full: together they have every sample, and some of them, spread evenly, once more.
        """
        total, size = sum(map(len, self._apart)), self.held_out_batches * self._batch_size
        every = np.concatenate([apart + offset for apart, offset in zip(self._apart, self._offsets, strict=True)])
        which = np.repeat(np.arange(len(self.sources)), [len(apart) for apart in self._apart])
        picked = np.arange(size)[number :: self.held_out_batches][self._rows] * total // size
        return self._samples(which[picked], every[picked], np.zeros((len(picked), self._numbers.states.shape[1])))

    def _samples(self, which: np.ndarray, rows: np.ndarray, noise: np.ndarray) -> Samples:
        """Return the samples of rows of all sources; noise is added to what the policy is told."""
        seen = self.recipe.normalise_state(self._numbers.states[rows]) + noise
        tokens, token_mask = self.recipe.prompt(seen, [self.sources[source].sentence for source in which])
        images = self.recipe.look(self._read(which, rows))
        actions, inside = chunks(self._numbers, rows, self.recipe.model.action_horizon)
        encoded = self.recipe.encode_actions(self.recipe.restore_state(seen), actions)
        real = inside[:, :, None] & (np.arange(encoded.shape[-1]) < actions.shape[-1])
        return Samples(Observation(images, {}, tokens, token_mask), encoded, real)

    def order(self, step: int) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
        """Return the source of each sample of a step, and its row among those of all sources."""
        positions = step * self._batch_size + np.arange(self._batch_size)
        which, draws = self._draws(positions)
        rows = np.empty_like(positions)
        for source, size in enumerate(self._sizes):
            mine = which == source
            picked = self._trained[source][_sample(size, self._seed, source, draws[mine])]
            rows[mine] = self._offsets[source] + picked
        return which, rows

    def taken(self, step: int) -> tuple[Int[np.ndarray, " n"], ...]:
        """Return the rows that a step took from each source, as that source counts them."""
        which, rows = self.order(step)
        return tuple(rows[which == source] - offset for source, offset in enumerate(self._offsets))

    def _draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position, and how many positions before it took from the same source."""
        which, draws = np.empty_like(positions), np.empty_like(positions)
        blocks, slots = np.divmod(positions, _BLOCK)
        counts = np.array(self._counts)
        for block in np.unique(blocks):
            labels, ranks = _block(self._counts, self._seed, int(block))
            mine = blocks == block
            which[mine] = labels[slots[mine]]
            draws[mine] = block * counts[which[mine]] + ranks[slots[mine]]
        return which, draws

    def _read(self, which: np.ndarray, rows: np.ndarray) -> dict[str, Images]:
        """Return the frames of each row, by camera."""
        found: dict[str, Images] = {}
        for source, frames in enumerate(source.frames for source in self.sources):
            mine = np.flatnonzero(which == source)
            if frames is None or not mine.size:
                continue
            for camera, images in frames.read(rows[mine] - self._offsets[source]).items():
                if len(mine) == len(rows):
                    found[camera] = images
                    continue
                whole = found.setdefault(camera, np.empty((len(rows), *images.shape[1:]), np.uint8))
                whole[mine] = images
        return found

    @cached_property
    def _sizes(self) -> tuple[int, ...]:
        """How many samples of each source are trained on."""
        return tuple(map(len, self._trained))

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        """Where the rows of each source begin among those of all."""
        return tuple(np.cumsum([0, *(len(source.dataset.states) for source in self.sources[:-1])]).tolist())

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        """How many positions of a block each source has: its share, rounded so that all are given away."""
        weights = np.array([source.weight for source in self.sources])
        ends = np.rint(np.cumsum(weights) / weights.sum() * _BLOCK).astype(int)
        return tuple(np.diff(ends, prepend=0).tolist())


def join(datasets: Sequence[Dataset]) -> Numbers:
    """Return the rows of some datasets as one; raise DataError when their states are not of the same numbers."""
    first = datasets[0]
    for other in datasets[1:]:
        if other.state_names != first.state_names:
            raise DataError(
                f"{first.meta.task} tells a policy {len(first.state_names)} numbers ({', '.join(first.state_names)}), "
                f"{other.meta.task} {len(other.state_names)} ({', '.join(other.state_names)}); to train on both, they "
                "must be the same: use convention.state=joints"
            )
    offsets = np.cumsum([0, *(len(dataset.states) for dataset in datasets)])
    begins = [dataset.starts[:-1] + offset for dataset, offset in zip(datasets, offsets, strict=False)]
    return Numbers(
        states=np.concatenate([dataset.states for dataset in datasets]),
        actions=np.concatenate([dataset.actions for dataset in datasets]),
        starts=np.concatenate([*begins, offsets[-1:]]),
    )


def data_stats(datasets: Sequence[Dataset], convention: Convention, horizon: int, held_out: float = 0) -> DataStats:
    """Return the statistics of all states and of all action chunks, the repeated last actions included.

    No image is read. Of several datasets every row counts once, whatever the weights they are mixed by; what is kept
    apart does not count.
    """
    numbers = join(datasets)
    offsets = np.cumsum([0, *(len(dataset.states) for dataset in datasets[:-1])])
    rows = np.concatenate(
        [split(dataset, held_out)[0] + offset for dataset, offset in zip(datasets, offsets, strict=True)]
    )
    actions, _ = chunks(numbers, rows, horizon)
    states = numbers.states[rows]
    return DataStats(state=statistics(states), actions=statistics(relative_actions(convention, states, actions)))


def chunks(
    numbers: Numbers | Dataset, rows: Int[np.ndarray, " b"], horizon: int
) -> tuple[Chunk, Bool[np.ndarray, "b h"]]:
    """Return the next `horizon` actions from each row and which of them lie inside the episode.

    Past the end of an episode its last action repeats (LeRobot's rule).
    """
    episodes = np.searchsorted(numbers.starts, rows, side="right")
    wanted = rows[:, None] + np.arange(horizon)
    last = numbers.starts[episodes][:, None] - 1
    return numbers.actions[np.minimum(wanted, last)], wanted <= last


def _sample(size: int, seed: int, source: int, draws: np.ndarray) -> np.ndarray:
    """Return the sample of each draw from a source of `size` samples; each epoch has every sample once."""
    epochs, places = np.divmod(draws, size)
    samples = np.empty_like(draws)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        samples[mine] = _epoch(size, seed, int(epoch), source)[places[mine]]
    return samples


@lru_cache(maxsize=32)
def _epoch(samples: int, seed: int, epoch: int, source: int) -> Int[np.ndarray, " n"]:
    return np.random.Generator(_stream(seed, _ORDER, epoch, source)).permutation(samples)


@lru_cache(maxsize=2)
def _block(counts: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the source of each position of a block, and how many before it in the block have the same."""
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.Generator(_stream(seed, _MIX, block)).permutation(labels)
    ranks = np.empty_like(labels)
    for source, count in enumerate(counts):
        ranks[labels == source] = np.arange(count)
    return labels, ranks


def _stream(*key: int) -> np.random.Philox:
    """Return the random numbers of a key, (seed, stream, counter, ...), independent of those of every other."""
    return np.random.Philox(np.random.SeedSequence(key))
