"""Finished evaluations -> those that differ in nothing but the training seed, as one number with an honest interval.

The trainings were evaluated on the same episodes, so their episodes do not add up: three trainings on 100 seeds are 100
episodes, three times (see pi05.intervals.pooled). Pure.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

from pi05.intervals import Interval, pooled
from pi05.results import interval
from pi05ctl.runs.status import RunStatus
from pi05ctl.stored.evaluations import Evaluation

_SEED = "train.seed"


@dataclass(frozen=True)
class Finished:
    """An evaluation that is done.

    Attributes:
        status: Its run.
        evaluation: What it found.
        settings: All that can change that, by path; empty where nobody knows.
        preset: What it was submitted with.
    """

    status: RunStatus
    evaluation: Evaluation
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    preset: str = ""


@dataclass(frozen=True)
class Pool:
    """Evaluations of one recipe, a training seed each.

    Attributes:
        members: The newest first.
    """

    members: tuple[Finished, ...]

    @property
    def newest(self) -> Finished:
        """The member that was submitted last."""
        return self.members[0]

    @property
    def rates(self) -> dict[int, float]:
        """Success of each training seed; empty where there is but one."""
        if len(self.members) == 1:
            return {}
        found = {int(one.settings[_SEED]): one.evaluation.metrics["success_once"] for one in self.members}
        return dict(sorted(found.items()))

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of one evaluation, or the means of those of several; an interval is no mean and is left out."""
        if len(self.members) == 1:
            return self.newest.evaluation.metrics
        told = [one.evaluation.metrics for one in self.members]
        return {name: mean(one[name] for one in told) for name in ("success_once", "success_at_end", "episodes")}

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of success, over episodes and trainings."""
        if len(self.members) == 1:
            return interval(self.newest.evaluation.metrics)
        episodes = min(len(one.evaluation.episodes) for one in self.members)
        found = pooled(list(self.rates.values()), episodes)
        return found.low, found.high

    @property
    def steps_to_success(self) -> Interval | None:
        """The median of steps to success, with its interval; of several the mean of medians, and their range."""
        found = [steps for one in self.members if (steps := one.evaluation.steps_to_success) is not None]
        if len(self.members) == 1 or not found:
            return found[0] if found else None
        medians = [steps.value for steps in found]
        return Interval(mean(medians), min(medians), max(medians))

    @property
    def failures(self) -> dict[str, int]:
        """How many episodes failed where, of all trainings."""
        counted: dict[str, int] = {}
        for one in self.members:
            for name, count in one.evaluation.failures.items():
                counted[name] = counted.get(name, 0) + count
        return counted


def pools(found: Iterable[Finished]) -> list[Pool]:
    """Return the evaluations by recipe; one that is not complete, or whose jobs are gone, is by itself.

    Of a training seed that was trained or evaluated again with the same values, the newest evaluation counts.
    """
    groups: dict[str, dict[int, Finished]] = {}
    for one in sorted(found, key=lambda one: -(one.status.created or 0.0)):
        groups.setdefault(_recipe(one), {}).setdefault(int(one.settings.get(_SEED, 0)), one)
    return [Pool(tuple(group.values())) for group in groups.values()]


def _recipe(one: Finished) -> str:
    """Return what evaluations have in common that are pooled."""
    evaluation = one.evaluation
    if not evaluation.complete or _SEED not in one.settings:
        return one.status.run
    settings = {path: value for path, value in one.settings.items() if path != _SEED and value is not None}
    of = one.status.task, evaluation.policy, evaluation.step, evaluation.settings.get("simulator")
    return json.dumps([of, settings], sort_keys=True)
