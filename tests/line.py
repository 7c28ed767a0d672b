"""A simulator of a few lines, for tests of the rollout; processes of their own import it from here."""

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pi05.errors import ConfigError
from pi05.evaluation.course import Trial
from pi05.simulator import Positions, StepInfo

GOAL = 3
LIMIT = 10


class Line:
    """A point on a line, moved by the first joint, solved while it is at GOAL; `seed` is where it starts."""

    def __init__(self) -> None:
        self.position = 0.0
        self.rendered = 0

    def reset(self, seed: int) -> StepInfo:
        self.position = float(seed)
        return self._info()

    def step(self, action: np.ndarray) -> StepInfo:
        assert np.isfinite(action).all(), "a real simulator would crash"
        self.position += float(action[0])
        return self._info()

    def state(self) -> np.ndarray:
        return np.array([self.position, -1.0], np.float32)

    def images(self) -> dict[str, np.ndarray]:
        """Return an image as bright as the point is far, and remember that somebody looked."""
        self.rendered += 1
        return {"base_camera": np.full((2, 2, 3), 100 + int(self.position), np.uint8)}

    def positions(self) -> Positions:
        point = np.array([self.position, 0, 0], np.float32)
        return Positions(point, point, np.array([GOAL, 0, 0], np.float32))

    def close(self) -> None:
        self.position = np.nan

    def _info(self) -> StepInfo:
        return StepInfo(self.position == GOAL, {"is_left": self.position < GOAL})


class Walker:
    """Walks towards 3 and stops there, or (`overshoots`) walks on; remembers what it was asked."""

    def __init__(self, horizon: int = 4, *, overshoots: bool = False) -> None:
        self.horizon, self.overshoots = horizon, overshoots
        self.asked: list[tuple[tuple[int, ...], int, int]] = []
        self.seen: list[dict[str, np.ndarray]] = []

    def act(self, seeds: Sequence[int], query: int, states: np.ndarray, images: Mapping[str, np.ndarray]) -> np.ndarray:
        self.seen.append({name: image.copy() for name, image in images.items()})
        self.asked.append((tuple(seeds), query, len(states)))
        chunks = np.zeros((len(seeds), self.horizon, 8), np.float32)
        for chunk, (position, _) in zip(chunks, states, strict=True):
            distance = self.horizon if self.overshoots else int(3 - position)
            chunk[: max(distance, 0), 0] = 1
        return chunks


def ignore(trial: Trial) -> None:
    del trial


class Refusing(Line):
    """Cannot be made."""

    def __init__(self) -> None:
        raise ConfigError("no such camera; use another")


class Stubborn(Line):
    """Fails at seed 7 with an error that cannot be pickled, is killed at seed 8, and hangs at seed 9."""

    def reset(self, seed: int) -> StepInfo:
        if seed == 7:
            raise Unportable(lambda: None)
        if seed == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 9:
            threading.Event().wait()
        return super().reset(seed)


class Unportable(Exception):
    """Holds what cannot cross a pipe."""


def chatty(number: int, folder: Path) -> int:
    """Print, as libraries do, and say which process this is."""
    print("a library says hello")
    (folder / f"{number}").write_text(str(os.getpid()))
    return number**2
