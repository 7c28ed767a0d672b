"""Success of an evaluation: turns episodes into rates with their interval, and shards into one result.

Pure: no simulator, clock or disk.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from pi05.errors import DataError

FAILURES = {
    "never touched": "The object did not move by a centimetre.",
    "never grasped": "The gripper never held the object.",
    "dropped": "The object was let go of before it was where it belongs.",
    "not placed": "The object never came to where it belongs.",
    "not inserted": "The peg was before the hole, and not deep enough in it.",
    "not released": "The object came to where it belongs, and the gripper held on to it.",
    "not still": "The object came to where it belongs, and never came to rest there.",
}
"""Where an episode that was never solved failed, in the order of a success."""
_Z95 = 1.959963984540054
"""Standard normal quantile of 97.5 %, so that the interval covers 95 %."""


class Episode(BaseModel):
    """One evaluated episode.

    Attributes:
        seed: Environment seed.
        success_once: Whether the task was solved at some step.
        success_at_end: Whether it was solved at the last step.
        first_success_step: Steps until it was solved first, None when it never was.
        failure: Where it failed, one of FAILURES; None when the task was solved at some step.
        steps: Control steps made.
        distance: From object to goal at the end, in m.
        flags: ManiSkill's other flags at the end.
        tcp, object: Path of gripper and object, (steps + 1) points xyz in m, in mm resolution; for drawings.
        goal: Where the object belongs at the start, xyz in m.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    success_once: bool
    success_at_end: bool
    first_success_step: int | None
    failure: str | None = None
    steps: int
    distance: float
    flags: dict[str, bool] = {}
    tcp: tuple[tuple[float, float, float], ...] = ()
    object: tuple[tuple[float, float, float], ...] = ()
    goal: tuple[float, float, float]


class Result(BaseModel):
    """Episodes of an evaluation or of one shard, and whose they are.

    Attributes:
        policy: `checkpoint`, `oracle` or `untrained`.
        checkpoint: Key of the checkpoint; None for the oracle.
        execute_steps, sampling_steps, temperature, policy_seed, batch_size: Settings the rate depends on.
        limit: Control steps of every episode.
        total: Episodes of the whole evaluation, of which a shard has a part.
        renderer: What drew the images the policy saw, `none` where it does not see.
        dataset_renderer: What drew those it learned from; only with `eval.renderer=any` another one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    v: Literal[1] = 1
    task: str
    policy: str
    checkpoint: str | None
    dataset: str
    total: int
    limit: int
    execute_steps: int
    sampling_steps: int
    temperature: float
    policy_seed: int
    batch_size: int = 10
    renderer: str
    dataset_renderer: str = "none"
    episodes: tuple[Episode, ...]


def wilson(successes: int, trials: int, z: float = _Z95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate, both ends in [0, 1].

    With p = successes / trials and n = trials, the ends are
    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes of {trials} trials; trials must be positive and not fewer")
    p = successes / trials
    spread = z * math.sqrt(p * (1 - p) / trials + z**2 / (4 * trials**2))
    centre, scale = p + z**2 / (2 * trials), 1 + z**2 / trials
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


class Outcome(Protocol):
    """What a success rate needs to know of an episode."""

    @property
    def success_once(self) -> bool: ...

    @property
    def success_at_end(self) -> bool: ...


def summary(episodes: Sequence[Outcome]) -> dict[str, float]:
    """Return the numbers of a result: rates in [0, 1], the 95 % interval of success_once, and episodes."""
    once = sum(episode.success_once for episode in episodes)
    low, high = wilson(once, len(episodes))
    return {
        "success_once": once / len(episodes),
        "success_at_end": sum(episode.success_at_end for episode in episodes) / len(episodes),
        "wilson_low": low,
        "wilson_high": high,
        "episodes": float(len(episodes)),
    }


def merge(shards: Iterable[Result]) -> Result:
    """Return one result of several shards, episodes in the order of their seeds.

    Raises:
        DataError: The shards are not of one evaluation, or an episode is in two of them.
    """
    results = list(shards)
    if not results:
        raise DataError("there is no result to merge; the evaluation has not finished a shard")
    first = results[0]
    for other in results[1:]:
        for name in Result.model_fields.keys() - {"episodes"}:
            if getattr(first, name) != getattr(other, name):
                raise DataError(
                    f"shards differ in {name}: {getattr(first, name)!r} and {getattr(other, name)!r}; "
                    "they belong to different evaluations"
                )
    episodes = sorted((episode for result in results for episode in result.episodes), key=lambda episode: episode.seed)
    for one, two in itertools.pairwise(episodes):
        if one.seed == two.seed:
            raise DataError(f"seed {one.seed} was evaluated by two shards; their ranges must not overlap")
    return first.model_copy(update={"episodes": tuple(episodes)})
