"""Evaluated runs -> which of them is better: over the same seeds, with an interval, and beside what else differs.

What makes an episode another one (task, limit, robot, control, simulator) or leaves no seed in common is refused with
both values. What makes a policy another kind of policy (cameras, state) is compared and said. Pure.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from pi05.intervals import CONFIDENCE, Interval, mcnemar, middle, paired
from pi05ctl.errors import UsageError
from pi05ctl.spec.render import decisive
from pi05ctl.stored.evaluations import Evaluation

Points = tuple[tuple[int, float], ...]
Verdict = Literal["better", "equal", "worse"]

_SAME_EPISODES = ("eval.max_steps", "convention.robot", "convention.control_mode", "convention.control_rate")
"""Settings without which the episode of a seed is another one."""
_KIND = ("cameras", "image_size", "state", "delta_joints", "state_in_prompt")
"""Of a convention: what a policy is told, and how."""
_NOT_COMPARED = ("v", "kind", "task", "train_run", "others", "eval.step", "eval.videos")
"""What has another name here (a result says its checkpoint), or changes no number."""


@dataclass(frozen=True)
class Rate:
    """Success of one checkpoint: its step, the rate and its interval."""

    step: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Subject:
    """A run that is compared.

    Attributes:
        run: Its name.
        task: Of its task.
        evaluated: The evaluation that counts for it, perhaps itself.
        evaluation: What that found.
        settings: All that can change its result, by path (`train.seed`); empty where its jobs are gone.
        losses, held_out: (step, loss) of its training.
        course: Success of its checkpoints over the same seeds, the earliest first.
    """

    run: str
    task: str
    evaluated: str
    evaluation: Evaluation
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    losses: Points = ()
    held_out: Points = ()
    course: tuple[Rate, ...] = ()

    @property
    def solved(self) -> dict[int, bool]:
        """Whether each seed was solved at some step."""
        return {episode.seed: episode.success_once for episode in self.evaluation.episodes}

    @property
    def first_success(self) -> dict[int, int]:
        """After how many steps each solved seed was solved."""
        found = ((episode.seed, episode.first_success_step) for episode in self.evaluation.episodes)
        return {seed: step for seed, step in found if step is not None}


@dataclass(frozen=True)
class Pair:
    """A run beside the one that it is compared with, over the seeds of both.

    Attributes:
        run, against: Their names.
        seeds: How many both were evaluated on.
        both, only_run, only_against, neither: How many of these each solved.
        difference: Success of `run` less that of `against`; with several pairs the intervals cover 95 % together.
        p: Of McNemar's exact test, two-sided.
        steps: Steps to success of `run` less those of `against`, over the seeds that both solved: median and interval.
        verdict: What `run` is; `equal` while a gap is smaller than its interval, or chance alone makes it too often.
    """

    run: str
    against: str
    seeds: int
    both: int
    only_run: int
    only_against: int
    neither: int
    difference: Interval
    p: float
    steps: Interval | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes:
        subjects: The runs; all others are compared with the first.
        pairs: Each other beside the first.
        differing: Settings that are not the same in all, by path; None where a run does not say.
        remarks: What to know before the numbers are believed.
    """

    subjects: tuple[Subject, ...]
    pairs: tuple[Pair, ...]
    differing: dict[str, tuple[Any, ...]]
    remarks: tuple[str, ...]


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Compare runs with the first of them.

    Raises:
        UsageError: There are no two, one is not evaluated, or they were not evaluated on the same episodes.
    """
    if len(subjects) < 2:
        raise UsageError("a comparison is of two runs or more; name another one")
    first, *others = subjects
    for one, other in itertools.combinations(subjects, 2):
        if one.evaluated == other.evaluated:
            raise UsageError(f"{one.run} and {other.run} are one evaluation, {one.evaluated}; name two")
    for subject in subjects:
        _refuse_unfinished(subject)
    for other in others:
        _refuse_other_episodes(first, other)
    pairs = tuple(_pair(other, first, len(others)) for other in others)
    return Comparison(tuple(subjects), pairs, differing(subjects), tuple(_remarks(subjects, pairs)))


def settings(jobs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what of the jobs behind a number can change it, by path; a later job's value of a path counts.

    Args:
        jobs: What their job.json says.
    """
    found: dict[str, Any] = {}
    for job in jobs:
        found |= _flat(decisive(job))
    return {path: value for path, value in found.items() if path not in _NOT_COMPARED}


def differing(subjects: Sequence[Subject]) -> dict[str, tuple[Any, ...]]:
    """Return the settings that are not the same in all, in the order of a job; None where a run does not say."""
    paths = dict.fromkeys(path for subject in subjects for path in subject.settings)
    values = {path: tuple(subject.settings.get(path) for subject in subjects) for path in paths}
    return {path: found for path, found in values.items() if any(value != found[0] for value in found)}


def _flat(told: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections by path."""
    found: dict[str, Any] = {}
    for name, value in told.items():
        if isinstance(value, dict):
            found |= _flat(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def _refuse_unfinished(subject: Subject) -> None:
    found = subject.evaluation
    if not found.complete:
        raise UsageError(f"{subject.evaluated} has {found.progress} episodes; wait until it is done, then compare")


def _refuse_other_episodes(first: Subject, other: Subject) -> None:
    """Raise UsageError, with both values, unless the episode of a seed was the same for both."""
    names = f"{first.run} and {other.run}"
    if first.task != other.task:
        raise UsageError(
            f"{names} are of different tasks, {first.task} and {other.task}: no seed is the same episode in both; "
            "compare runs of one task (pi05ctl results shows all tasks)"
        )
    for path in _SAME_EPISODES:
        one, two = first.settings.get(path), other.settings.get(path)
        if None not in (one, two) and one != two:
            raise UsageError(f"{names} differ in {path}, {one} and {two}: evaluate one of them again as the other was")
    for name in ("limit", "simulator"):
        one, two = (subject.evaluation.settings.get(name) for subject in (first, other))
        if one and two and one != two:
            raise UsageError(f"{names} differ in {name}, {one} and {two}: evaluate one of them again as the other was")
    if not first.solved.keys() & other.solved.keys():
        raise UsageError(
            f"{names} have no seed in common: {_seeds(first)} and {_seeds(other)}; evaluate one of them on the seeds "
            f"of the other, with --set eval.first_seed={min(first.solved)}"
        )


def _seeds(subject: Subject) -> str:
    return f"{min(subject.solved)} to {max(subject.solved)}"


def _pair(run: Subject, against: Subject, comparisons: int) -> Pair:
    """Compare two runs over the seeds of both."""
    ours, theirs = run.solved, against.solved
    outcomes = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    cells = [outcomes.count(one) for one in ((True, True), (True, False), (False, True), (False, False))]
    both, only_run, only_against, neither = cells
    difference, p = paired(both, only_run, only_against, neither, comparisons), mcnemar(only_run, only_against)
    times, others = run.first_success, against.first_success
    return Pair(
        run=run.run,
        against=against.run,
        seeds=len(outcomes),
        both=both,
        only_run=only_run,
        only_against=only_against,
        neither=neither,
        difference=difference,
        p=p,
        steps=middle([times[seed] - others[seed] for seed in sorted(times.keys() & others.keys())]),
        verdict=_verdict(difference, p, comparisons),
    )


def _verdict(difference: Interval, p: float, comparisons: int) -> Verdict:
    """Return what both the interval and the test call a difference; where only one does, it is none."""
    if difference.low <= 0 <= difference.high or p > (1 - CONFIDENCE) / comparisons:
        return "equal"
    return "better" if difference.value > 0 else "worse"


def _remarks(subjects: Sequence[Subject], pairs: Sequence[Pair]) -> Iterable[str]:
    """Yield what to know before the numbers are believed."""
    first = subjects[0]
    for other, pair in zip(subjects[1:], pairs, strict=True):
        names = f"{first.run} and {other.run}"
        for name in _KIND:
            one, two = (_value(subject.settings.get(f"convention.{name}")) for subject in (first, other))
            if one != two:
                yield f"{names} are policies of other conventions: convention.{name} is {one} and {two}"
        if first.evaluation.policy != other.evaluation.policy:
            yield f"{names} are not of one kind: {first.evaluation.subject} and {other.evaluation.subject}"
        one, two = (subject.evaluation.settings.get("renderer") for subject in (first, other))
        if one and two and one != two and "none" not in (one, two):
            yield f"{names} saw images of different renderers: {one} and {two}"
        numbers = len(first.solved), len(other.solved)
        if pair.seeds < max(numbers):
            yield f"{names} have {pair.seeds} seeds in common, of {numbers[0]} and {numbers[1]}; only these are paired"
    if unknown := [subject.run for subject in subjects if not subject.evaluation.settings.get("simulator")]:
        yield f"of {', '.join(unknown)} nobody wrote down the version of ManiSkill; another version is another test"
    if ended := [subject.run for subject in subjects if subject.evaluation.until]:
        yield (
            f"{', '.join(ended)} ended when its interval was narrow (eval.until): p and the interval of the difference "
            "are made for numbers of seeds that were fixed beforehand, and are somewhat too sure here"
        )
    if len(pairs) > 1:
        yield f"the {len(pairs)} intervals of differences cover 95 % together, so each is wider than it would be alone"


def _value(told: object) -> str:
    """Return a setting in words."""
    if isinstance(told, list):
        return ", ".join(str(one) for one in cast("list[object]", told)) or "none"
    return "unknown" if told is None else str(told)
