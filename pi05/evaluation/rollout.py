"""Closed loop: turns a policy and seeds into episodes, several environments in lockstep with one batched call.

Every episode runs to the limit, because success_at_end needs it. What an episode does depends on its own seed and
actions alone, so results do not depend on how many environments share a wave.
Knows no checkpoint, storage or interval.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from pi05.data.dataset import Dataset
from pi05.errors import ConfigError, DataError
from pi05.results import Episode
from pi05.simulator import Positions, StepInfo


class Actor(Protocol):
    """What is evaluated."""

    def act(self, seeds: Sequence[int], query: int, states: np.ndarray) -> np.ndarray:
        """Return an action chunk for each of n episodes.

        Args:
            seeds: Environment seeds of the episodes.
            query: How many chunks these episodes have asked for before.
            states: float32 (n, S), not normalised.

        Returns:
            (n, H, 8) absolute joint targets in rad and the gripper in [-1, 1].
        """
        ...


class Environment(Protocol):
    """What a rollout needs of a `Simulator`."""

    def reset(self, seed: int) -> StepInfo: ...

    def step(self, action: np.ndarray) -> StepInfo: ...

    def state(self) -> np.ndarray: ...

    def positions(self) -> Positions: ...


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

    def act(self, seeds: Sequence[int], query: int, states: np.ndarray) -> np.ndarray:
        del states
        steps = query * self._execute_steps + np.arange(self._execute_steps)
        return np.stack([self._demo(seed)[np.minimum(steps, len(self._demo(seed)) - 1)] for seed in seeds])

    def _demo(self, seed: int) -> np.ndarray:
        if seed not in self._actions:
            raise DataError(f"the dataset has no demonstration of seed {seed}; the oracle can replay its seeds only")
        return self._actions[seed]


def rollout(
    simulators: Sequence[Environment],
    actor: Actor,
    seeds: Sequence[int],
    limit: int,
    execute_steps: int,
    on_episode: Callable[[Episode], None],
    check_stop: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """Evaluate one episode a seed, in waves of as many as there are simulators.

    Args:
        simulators: Environments of the task.
        actor: The policy.
        seeds: Environment seeds.
        limit: Control steps of every episode.
        execute_steps: Actions of a chunk that are executed before the policy is asked again.
        on_episode: Called with each episode, in the order of `seeds`, when its wave is done.
        check_stop: Called before each query; what it raises ends the rollout, and only this wave is lost.

    Raises:
        ConfigError: execute_steps is longer than the chunks.
        DataError: The policy's actions are not finite.
    """
    episodes: list[Episode] = []
    for wave in waves(seeds, len(simulators)):
        for episode in _wave(simulators[: len(wave)], actor, wave, limit, execute_steps, check_stop):
            episodes.append(episode)
            on_episode(episode)
    return episodes


def waves(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Yield `seeds` in groups of `size`, the last one perhaps smaller."""
    for begin in range(0, len(seeds), size):
        yield seeds[begin : begin + size]


class _Course:
    """One episode under way."""

    def __init__(self, simulator: Environment, seed: int) -> None:
        self._simulator, self._seed = simulator, seed
        self._last = simulator.reset(seed)
        self._course = [simulator.positions()]
        self._first: int | None = 0 if self._last.success else None
        self._steps = 0

    def state(self) -> np.ndarray:
        return self._simulator.state()

    def step(self, action: np.ndarray) -> None:
        self._last = self._simulator.step(action)
        self._course.append(self._simulator.positions())
        self._steps += 1
        if self._last.success and self._first is None:
            self._first = self._steps

    def episode(self) -> Episode:
        return Episode(
            seed=self._seed,
            success_once=self._first is not None,
            success_at_end=self._last.success,
            first_success_step=self._first,
            steps=self._steps,
            distance=round(self._course[-1].distance, 4),
            flags=self._last.flags,
            tcp=tuple(_millimetres(positions.tcp) for positions in self._course),
            object=tuple(_millimetres(positions.object) for positions in self._course),
            goal=_millimetres(self._course[0].goal),
        )


def _wave(
    simulators: Sequence[Environment],
    actor: Actor,
    seeds: Sequence[int],
    limit: int,
    execute_steps: int,
    check_stop: Callable[[], None],
) -> list[Episode]:
    """Run one episode in each simulator."""
    courses = [_Course(simulator, seed) for simulator, seed in zip(simulators, seeds, strict=True)]
    for query, begin in enumerate(range(0, limit, execute_steps)):
        check_stop()
        chunks = actor.act(seeds, query, np.stack([course.state() for course in courses]))
        _check_chunks(chunks, seeds, query, execute_steps)
        for step in range(min(execute_steps, limit - begin)):
            for course, chunk in zip(courses, chunks, strict=True):
                course.step(chunk[step])
    return [course.episode() for course in courses]


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


def _millimetres(point: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 3) for value in point)
    return x, y, z
