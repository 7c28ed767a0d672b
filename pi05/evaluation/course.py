"""Episodes under way: turns environments and actions into what a policy looks at, and at the end into episodes.

A `Station` is some environments in one process, stepped in turn; several stations work in processes of their own
(workers.py). Every episode depends on its own seed and actions alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pi05.evaluation import stages
from pi05.results import Episode
from pi05.simulator import Positions, StepInfo

Images = dict[str, np.ndarray]
"""uint8 (H, W, 3) a camera."""


class Environment(Protocol):
    """What an evaluation needs of a `Simulator`."""

    def reset(self, seed: int) -> StepInfo: ...

    def step(self, action: np.ndarray) -> StepInfo: ...

    def state(self) -> np.ndarray: ...

    def images(self) -> Images: ...

    def positions(self) -> Positions: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Look:
    """What one environment shows: float32 (S,) of the state, not normalised, and its images, where they were wanted."""

    state: np.ndarray
    images: Images = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """An episode that has ended, and the actions that repeat it, float32 (steps, 8)."""

    episode: Episode
    actions: np.ndarray


class Course:
    """One episode from its reset to its limit.

    Args:
        environment: Is reset here.
        seed: Of the environment.
    """

    def __init__(self, environment: Environment, seed: int) -> None:
        self._environment, self._seed = environment, seed
        self._infos = [environment.reset(seed)]
        self._positions = [environment.positions()]
        self._actions: list[np.ndarray] = []

    def look(self, images: bool) -> Look:
        """Return what the policy is told now; nothing is rendered unless it wants images."""
        return Look(self._environment.state(), self._environment.images() if images else {})

    def step(self, action: np.ndarray) -> StepInfo:
        """Advance one control step with float32 (8,), joint targets in rad and the gripper in [-1, 1]."""
        self._infos.append(self._environment.step(action))
        self._positions.append(self._environment.positions())
        self._actions.append(np.array(action, np.float32))
        return self._infos[-1]

    def trial(self) -> Trial:
        """Return the episode so far."""
        solved = [step for step, info in enumerate(self._infos) if info.success]
        objects = [positions.object for positions in self._positions]
        episode = Episode(
            seed=self._seed,
            success_once=bool(solved),
            success_at_end=self._infos[-1].success,
            first_success_step=solved[0] if solved else None,
            failure=None if solved else stages.failure([info.flags for info in self._infos], np.stack(objects)),
            steps=len(self._actions),
            distance=round(self._positions[-1].distance, 4),
            flags=self._infos[-1].flags,
            tcp=tuple(_millimetres(positions.tcp) for positions in self._positions),
            object=tuple(_millimetres(point) for point in objects),
            goal=_millimetres(self._positions[0].goal),
        )
        return Trial(episode, np.array(self._actions, np.float32).reshape(-1, 8))


class Station:
    """Some environments in one process.

    Args:
        environments: One episode each at a time.
        images: Whether to render when the policy looks.
    """

    def __init__(self, environments: Sequence[Environment], images: bool) -> None:
        self._environments, self._images = environments, images
        self._courses: list[Course] = []

    @property
    def size(self) -> int:
        """How many environments there are."""
        return len(self._environments)

    def begin(self, seeds: Sequence[int]) -> list[Look]:
        """Begin one episode a seed, at most as many as there are environments, and return what they show."""
        here = zip(self._environments, seeds, strict=False)
        self._courses = [Course(environment, seed) for environment, seed in here]
        return self._look()

    def advance(self, chunks: np.ndarray, look: bool) -> list[Look]:
        """Execute actions (n, steps, 8) in the n episodes, and return what they show then (nothing without `look`)."""
        for course, chunk in zip(self._courses, chunks, strict=True):
            for action in chunk:
                course.step(action)
        return self._look() if look else []

    def finish(self) -> list[Trial]:
        """Return the episodes, in the order of their seeds."""
        return [course.trial() for course in self._courses]

    def close(self) -> None:
        """Free the environments."""
        for environment in self._environments:
            environment.close()

    def _look(self) -> list[Look]:
        return [course.look(self._images) for course in self._courses]


def _millimetres(point: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 3) for value in point)
    return x, y, z
