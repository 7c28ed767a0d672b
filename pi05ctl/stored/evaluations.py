"""results/<shard>.json of an evaluation -> episodes, success rates and their interval.

The rates are counted here from the episodes, so that the shards of one evaluation add up, and a number in a table is
one that its episodes bear out. While a shard is missing there are episodes and no rates: a part is not the result.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from pi05.errors import DataError
from pi05.intervals import Interval, middle
from pi05.results import FAILURES, end, summary
from pi05.storage import RunPaths, Storage

Track = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        seed: Seed of the environment.
        success_once: Whether the task was solved at some step.
        success_at_end: Whether it was solved at the last step.
        first_success_step: When it was first solved.
        steps: How long it was.
        tracks: Paths on the table (x, y in metres) of `tcp` (the gripper), `object` and `goal`, where they were kept.
        failure: Where it failed, one of pi05.results.FAILURES; None when it was solved, or the result does not say.
    """

    seed: int
    success_once: bool
    success_at_end: bool
    first_success_step: int | None = None
    steps: int | None = None
    tracks: dict[str, Track] = field(default_factory=dict[str, Track])
    failure: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found.

    Attributes:
        episodes: In the order of their seeds.
        policy: `checkpoint`, `oracle` or `untrained`, as the results say; empty when they do not.
        step: Step of the evaluated checkpoint.
        total: Episodes of the whole evaluation; None when the results do not say, and then these are all.
        until: Width of the interval at which it was to end before it has them.
        ended: Whether it has so ended; what was run beyond that is not among the episodes.
        settings: Everything else that the results say of themselves.
    """

    episodes: tuple[Episode, ...]
    policy: str = ""
    step: int | None = None
    total: int | None = None
    until: float | None = None
    ended: bool = False
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def subject(self) -> str:
        """Who was evaluated: `checkpoint 2400`, `oracle` or `untrained`."""
        return f"{self.policy} {self.step}" if self.step is not None else self.policy

    @property
    def described(self) -> str:
        """Who was evaluated, and that it does not see, if so: `checkpoint 2400, no camera`."""
        return self.subject + (", no camera" if self.blind else "")

    @property
    def complete(self) -> bool:
        """Whether every episode is there."""
        return bool(self.episodes) and (self.ended or self.total is None or len(self.episodes) >= self.total)

    @property
    def progress(self) -> str:
        """How many episodes there are: `50`, or `31 of 50` while some are missing."""
        return f"{len(self.episodes)}" if self.complete else f"{len(self.episodes)} of {self.total or 0}"

    @property
    def blind(self) -> bool:
        """Whether a policy was evaluated that does not see."""
        return self.policy not in ("", "oracle") and self.settings.get("renderer") == "none"

    @property
    def failures(self) -> dict[str, int]:
        """How many episodes failed where, in the order of a success."""
        counted = Counter(episode.failure for episode in self.episodes if episode.failure)
        order = [*FAILURES, *(name for name in counted if name not in FAILURES)]
        return {name: counted[name] for name in order if counted[name]}

    @property
    def metrics(self) -> dict[str, float]:
        """The rates under the names that events use; empty until every episode is there."""
        return summary(self.episodes, self.until) if self.complete else {}

    @property
    def steps_to_success(self) -> Interval | None:
        """The median number of control steps after which solved episodes were solved, with its 95 % interval."""
        steps = [one.first_success_step for one in self.episodes if one.first_success_step is not None]
        return middle(steps) if self.complete else None


def read(storage: Storage, run: str) -> Evaluation:
    """Return the episodes of all shards.

    Raises:
        DataError: A file is not of our form, or two are of different evaluations.
    """
    episodes: dict[int, Episode] = {}
    header: dict[str, Any] = {}
    folder = RunPaths(run).results
    for name in storage.children(folder):
        if not name.endswith(".json"):
            continue
        key = f"{folder}/{name}"
        try:
            shard = cast("dict[str, Any]", json.loads(storage.read(key)))
            episodes.update((int(row["seed"]), _episode(row)) for row in shard["episodes"])
            found = {name: value for name, value in shard.items() if name not in ("v", "episodes")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{storage.url}/{key} is not the result of an evaluation ({error!r})") from error
        _refuse_other(key, found, header)
        header = found
    until, stop = header.get("until"), None
    if until is not None:
        solved = {seed: one.success_once for seed, one in episodes.items()}
        stop = end(solved, int(header.get("first_seed") or 0), until)
    step = str(header.get("checkpoint")).rpartition("/")[2]
    return Evaluation(
        episodes=tuple(episodes[seed] for seed in sorted(episodes) if stop is None or seed < stop),
        policy=header.get("policy") or "",
        step=int(step) if step.isdecimal() else None,
        total=header.get("total"),
        until=until,
        ended=stop is not None,
        settings={name: value for name, value in header.items() if name not in ("policy", "total", "until")},
    )


def videos(storage: Storage, run: str, seeds: Iterable[int]) -> dict[int, bytes]:
    """Return the videos (mp4) that an evaluation made of some of its episodes, by seed, in the order of `seeds`."""
    folder = f"{RunPaths(run).results}/videos"
    kept = set(storage.children(folder))
    return {seed: storage.read(f"{folder}/{seed}.mp4") for seed in seeds if f"{seed}.mp4" in kept}


def _refuse_other(key: str, found: dict[str, Any], before: dict[str, Any]) -> None:
    """Raise DataError when a shard is of another evaluation than the one before it."""
    for name, value in before.items():
        if found.get(name) != value:
            raise DataError(
                f"{key} has {name} {found.get(name)!r}, the other shards have {value!r}: they do not add up to one "
                f"evaluation; delete {key.rpartition('/')[0]} and submit it again"
            )


def _episode(row: dict[str, Any]) -> Episode:
    """Return one episode; fields we do not know are ignored."""
    return Episode(
        seed=int(row["seed"]),
        success_once=bool(row["success_once"]),
        success_at_end=bool(row["success_at_end"]),
        first_success_step=row.get("first_success_step"),
        steps=row.get("steps"),
        failure=row.get("failure"),
        tracks={name: _track(row[name]) for name in ("tcp", "object", "goal") if row.get(name)},
    )


def _track(points: list[Any]) -> Track:
    """Return the x and y of a path; a single point is one too (a goal that does not move)."""
    path = points if isinstance(points[0], list) else [points]
    return tuple((float(point[0]), float(point[1])) for point in path)
