"""Closed loop: turns a policy and seeds into episodes, several environments in lockstep with one batched call.

Every episode runs to the limit, because success_at_end needs it. What an episode does depends on its own seed and
actions alone, so results do not depend on how many environments share a wave or which process they are in.
Knows no checkpoint, storage or interval.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from pi05.data.dataset import Dataset
from pi05.errors import ConfigError, DataError
from pi05.evaluation.course import Look, Trial


class Actor(Protocol):
    """What is evaluated."""

    def act(self, seeds: Sequence[int], query: int, states: np.ndarray, images: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return an action chunk for each of n episodes.

        Args:
            seeds: Environment seeds of the episodes.
            query: How many chunks these episodes have asked for before.
            states: float32 (n, S), not normalised.
            images: uint8 (n, H, W, 3) a camera; of the cameras that were rendered.

        Returns:
            (n, H, 8) absolute joint targets in rad and the gripper in [-1, 1].
        """
        ...


class Fleet(Protocol):
    """Environments in lockstep, in this process (`Station`) or in others (`Workers`)."""

    @property
    def size(self) -> int: ...

    def begin(self, seeds: Sequence[int]) -> list[Look]: ...

    def advance(self, chunks: np.ndarray, look: bool) -> list[Look]: ...

    def finish(self) -> list[Trial]: ...


class OracleActor:
    """Replays demonstrations, so that evaluation is tested with what must succeed; holds the last action.

    Args:
        dataset: Holds the demonstrations.
        execute_steps: Actions executed before the next query; also H.
    """

    def __init__(self, dataset: Dataset, execute_steps: int) -> None:
        spans = zip(dataset.starts[:-1], dataset.starts[1:], strict=True)
        self._actions = {
            seed: dataset.actions[begin:end] for seed, (begin, end) in zip(dataset.meta.seeds, spans, strict=True)
        }
        self._execute_steps = execute_steps

    def act(self, seeds: Sequence[int], query: int, states: np.ndarray, images: Mapping[str, np.ndarray]) -> np.ndarray:
        del states, images
        steps = query * self._execute_steps + np.arange(self._execute_steps)
        return np.stack([self._demo(seed)[np.minimum(steps, len(self._demo(seed)) - 1)] for seed in seeds])

    def _demo(self, seed: int) -> np.ndarray:
        if seed not in self._actions:
            raise DataError(f"the dataset has no demonstration of seed {seed}; the oracle can replay its seeds only")
        return self._actions[seed]


def rollout(
    fleet: Fleet,
    actor: Actor,
    seeds: Sequence[int],
    limit: int,
    execute_steps: int,
    on_trial: Callable[[Trial], None],
    check_stop: Callable[[], None] = lambda: None,
) -> list[Trial]:
    """Evaluate one episode a seed, in waves of as many as there are environments.

    Args:
        fleet: Environments of the task.
        actor: The policy.
        seeds: Environment seeds.
        limit: Control steps of every episode.
        execute_steps: Actions of a chunk that are executed before the policy is asked again.
        on_trial: Called with each episode, in the order of `seeds`, when its wave is done.
        check_stop: Called before each query; what it raises ends the rollout, and only this wave is lost.

    Raises:
        ConfigError: execute_steps is longer than the chunks.
        DataError: The policy's actions are not finite.
    """
    trials: list[Trial] = []
    for wave in waves(seeds, fleet.size):
        for trial in _wave(fleet, actor, wave, limit, execute_steps, check_stop):
            trials.append(trial)
            on_trial(trial)
    return trials


def waves(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield `seeds` in groups of `size`, the last one perhaps smaller."""
    for begin in range(0, len(seeds), size):
        yield seeds[begin : begin + size]


def _wave(
    fleet: Fleet,
    actor: Actor,
    seeds: Sequence[int],
    limit: int,
    execute_steps: int,
    check_stop: Callable[[], None],
) -> list[Trial]:
    """Run one episode in each environment."""
    looks = fleet.begin(seeds)
    for query, begin in enumerate(range(0, limit, execute_steps)):
        check_stop()
        states = np.stack([look.state for look in looks])
        images = {name: np.stack([look.images[name] for look in looks]) for name in looks[0].images}
        chunks = actor.act(seeds, query, states, images)
        _check_chunks(chunks, seeds, query, execute_steps)
        steps = min(execute_steps, limit - begin)
        looks = fleet.advance(chunks[:, :steps], look=begin + steps < limit)
    return fleet.finish()


def _check_chunks(chunks: np.ndarray, seeds: Sequence[int], query: int, execute_steps: int) -> None:
    """Raise unless the chunks are long enough and finite; physics would crash on a NaN."""
    if chunks.ndim != 3 or chunks.shape[0] != len(seeds) or chunks.shape[2] != 8:
        raise DataError(f"the policy returned actions of shape {chunks.shape}, required are ({len(seeds)}, H, 8)")
    if chunks.shape[1] < execute_steps:
        raise ConfigError(
            f"eval.execute_steps {execute_steps} is longer than the policy's horizon {chunks.shape[1]}; "
            f"use eval.execute_steps={chunks.shape[1]} or fewer"
        )
    bad = [seed for seed, chunk in zip(seeds, chunks, strict=True) if not np.isfinite(chunk).all()]
    if bad:
        raise DataError(
            f"the policy's actions are not finite for seeds {bad[:5]} at query {query}; "
            "the checkpoint is not usable: evaluate an earlier one with eval.step"
        )
