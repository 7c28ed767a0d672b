"""Settings that a training goes on with: its job and `section.field=value` -> the same job, otherwise from here on.

The run keeps its name, which says how it began; run.json keeps every change, when it was made and from which checkpoint
on it counts, and each checkpoint tells the settings it was made with. Pure: no storage and no clock.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue, ValidationError

from pi05.config import ComputeConfig, Section, TrainConfig, TrainJob, explain
from pi05.resuming import RESULT_FREE, STEERING, differences
from pi05ctl.errors import UsageError
from pi05ctl.spec.runspec import assign, format_value

_STEPS, _DECAY = "train.steps", "train.optimizer.decay_steps"


class _Sections(Section):
    """What of a job may change."""

    compute: ComputeConfig
    train: TrainConfig


class Change(Section):
    """What was different from a resume on.

    Attributes:
        time: When it was asked for, in seconds since 1970.
        step: Of the newest checkpoint then; 0: there was none.
        values: The new values, by path.
        before: What they were.
    """

    time: float
    step: int
    values: dict[str, JsonValue]
    before: dict[str, JsonValue]

    def words(self) -> str:
        """Return `since step 12000 (2026-11-26): train.steps=40000 instead of 30000, train.seed=1 instead of 0`."""
        parts = [
            f"{path}={format_value(value)} instead of {format_value(self.before[path])}"
            for path, value in self.values.items()
        ]
        day = time.strftime("%Y-%m-%d", time.gmtime(self.time))
        return f"since step {self.step} ({day}): {', '.join(parts)}"


def asked(job: TrainJob, values: Mapping[str, JsonValue], step: int, now: float) -> Change:
    """Return the change that makes a job go on with other values.

    Args:
        job: What it has been told so far.
        values: What was asked for, by path.
        step: Of its newest checkpoint; 0: there is none.
        now: Seconds since 1970.

    Raises:
        UsageError: A setting may not change, a value is impossible, or there is nothing to go on to.
    """
    _refuse_others(values)
    values = {**values, **_decay_as_planned(job, values)}
    found = differences(_sections(job), _sections(with_values(job, values)))
    if not found:
        raise UsageError(f"{job.run} has these values already; leave --set out to go on")
    _refuse_a_new_beginning(job, found, step)
    steps = int(str(values.get(_STEPS, job.train.steps)))
    if steps <= step:
        raise UsageError(
            f"{job.run} has a checkpoint of step {step} and would end at train.steps={steps}; "
            f"add --set {_STEPS}={2 * step}, or another number above {step}"
        )
    return Change(
        time=now,
        step=step,
        values={path: after for path, (_, after) in found.items()},
        before={path: before for path, (before, _) in found.items()},
    )


def changed(job: TrainJob, changes: Sequence[Change]) -> TrainJob:
    """Return a job as it is after some changes."""
    return with_values(job, {path: value for change in changes for path, value in change.values.items()})


def with_values(job: TrainJob, values: Mapping[str, JsonValue]) -> TrainJob:
    """Return a job with other values; raise UsageError when they are impossible."""
    data: dict[str, Any] = job.model_dump(mode="json", include={"compute", "train"})
    for path, value in values.items():
        assign(data, path, value)
    try:
        sections = _Sections.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UsageError(f"--set: {explain(error)}") from error
    return job.model_copy(update=dict(sections))


def remarks(job: TrainJob, change: Change) -> list[str]:
    """Return what a person should know of a change, given the job with it."""
    found = [change.words()]
    decay = job.train.optimizer.decay_steps or job.train.steps
    if _STEPS in change.values and decay < job.train.steps:
        found.append(
            f"the learning rate falls as planned and stays at train.optimizer.end_lr={job.train.optimizer.end_lr:g} "
            f"from step {decay} on; --set {_DECAY}={job.train.steps} lets it fall until the last step instead"
        )
    return found


def _sections(job: TrainJob) -> dict[str, Section]:
    return {"compute": job.compute, "train": job.train}


def _decay_as_planned(job: TrainJob, values: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the decay that a job has by its steps where those change: what was planned up to there stays as it was."""
    if _STEPS not in values or _DECAY in values:
        return {}
    return {_DECAY: job.train.optimizer.decay_steps or job.train.steps}


def _refuse_others(values: Mapping[str, JsonValue]) -> None:
    if others := sorted(values.keys() - RESULT_FREE - STEERING):
        may = ", ".join(sorted(STEERING | RESULT_FREE))
        raise UsageError(
            f"{', '.join(others)} cannot change when a training goes on; submit a new run with other values. "
            f"What can change: {may}"
        )


def _refuse_a_new_beginning(job: TrainJob, found: Mapping[str, Any], step: int) -> None:
    """Refuse values that change the numbers of a training that has not begun: its name would be another's."""
    steering = sorted(path for path in found if path in STEERING)
    if step == 0 and steering:
        raise UsageError(
            f"{job.run} has no checkpoint to go on from, so {', '.join(steering)} would make another training of it; "
            "submit a new run with these values"
        )
