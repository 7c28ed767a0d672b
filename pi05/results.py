"""Success of an evaluation: turns episodes into rates with their interval, and shards into one result.

Pure: no simulator, clock or disk.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from pi05.errors import DataError
from pi05.intervals import SEQUENTIAL, exact, narrow, wilson

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
        until: Width of the interval at which it ends, with fewer episodes than `total`; None: it has all.
        first_seed: Seed of its first episode, from which `until` counts; None with the oracle and where nobody said.
        simulator: Versions that decide what the episode of a seed is; "" where nobody said.
        renderer: What drew the images the policy saw, `none` where it does not see.
        dataset_renderer: What drew those it learned from; only with `eval.renderer=any` another one.
        variables: Of the environment, that its numbers may depend on (pi05.variables).
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
    until: float | None = None
    first_seed: int | None = None
    simulator: str = ""
    renderer: str
    dataset_renderer: str = "none"
    variables: dict[str, str] = {}
    episodes: tuple[Episode, ...]


class Outcome(Protocol):
    """What a success rate needs to know of an episode."""

    @property
    def success_once(self) -> bool: ...

    @property
    def success_at_end(self) -> bool: ...


def summary(episodes: Sequence[Outcome], until: float | None = None) -> dict[str, float]:
    """Return the numbers of a result: rates in [0, 1], the 95 % interval of success_once, and episodes.

    Args:
        episodes: All that count.
        until: Width at which the evaluation was to end; then the interval is the one that this leaves valid.
    """
    once = sum(episode.success_once for episode in episodes)
    return {
        "success_once": once / len(episodes),
        "success_at_end": sum(episode.success_at_end for episode in episodes) / len(episodes),
        **limits(once, len(episodes), sequential=until is not None),
        "episodes": float(len(episodes)),
    }


def limits(successes: int, trials: int, sequential: bool) -> dict[str, float]:
    """Return the 95 % interval of a success rate under the names that events use, which say how it was made."""
    if sequential:
        low, high = exact(successes, trials, SEQUENTIAL)
        return {"exact_low": low, "exact_high": high}
    low, high = wilson(successes, trials)
    return {"wilson_low": low, "wilson_high": high}


def interval(metrics: Mapping[str, float]) -> tuple[float, float] | None:
    """Return the 95 % interval that metrics say, however it was made."""
    for name in ("exact", "wilson"):
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        if low is not None and high is not None:
            return low, high
    return None


def end(solved: Mapping[int, bool], first_seed: int, until: float) -> int | None:
    """Return before which seed an evaluation ends whose interval is to be `until` wide; None: that is not known yet.

    Episodes count in the order of their seeds from the first on, up to the first that is missing, whoever ran them and
    when. So it ends at the same seed whatever the number of shards and environments, and of what was run beyond it
    nothing counts.

    Args:
        solved: Whether the episode of a seed was solved, of those that have ended.
        first_seed: Of the evaluation.
        until: Width of the interval.
    """
    in_a_row = itertools.takewhile(solved.__contains__, itertools.count(first_seed))
    number = narrow((solved[seed] for seed in in_a_row), until)
    return None if number is None else first_seed + number


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
