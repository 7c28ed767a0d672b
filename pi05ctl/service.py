"""What the commands do, without words and exit codes: submit, find, look, wait, cancel, resume."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pi05 import tasks
from pi05.config import EvalJob, TrainJob
from pi05.errors import nearest
from pi05.storage import RunPaths, Storage, connect
from pi05ctl.errors import UsageError, unknown
from pi05ctl.runs import comparison, inputs, pooling, status
from pi05ctl.runs.comparison import Comparison
from pi05ctl.runs.pooling import Finished, Pool
from pi05ctl.runs.records import Records
from pi05ctl.runs.status import Look, RunStatus
from pi05ctl.runs.target import Submission, Target
from pi05ctl.spec.changes import asked, changed, remarks
from pi05ctl.spec.render import Local, Rendered, around, refreshed, render, stages
from pi05ctl.spec.runspec import DEFAULT_PRESET, KINDS, Kind, RunSpec, parse_assignment, resolve
from pi05ctl.spec.settings import Settings
from pi05ctl.stored import evaluations
from pi05ctl.stored.evaluations import Evaluation
from pi05ctl.views import several, tables

ALL = "all"
_STEP = "eval.step"
RETRIED = ("Failed", "Cancelled")
"""States of a stage that a pipeline starts again."""


@dataclass(frozen=True)
class Request:
    """The words of a submission, as typed.

    Attributes:
        kind, task: What; `all` is every task.
        preset: Of which size; None takes the target's default.
        assignments: `section.field=value`, a later one of the same path counts.
        of: For an evaluation: the training run.
        every_checkpoint: For an evaluation: one of each checkpoint that the training run has kept.
        again: Whether a run of the same values is wanted in spite of the one that exists.
        only: Whether a training or evaluation is wanted alone: what it needs is there, or it is refused.
    """

    kind: str
    task: str
    preset: str | None = None
    assignments: Sequence[str] = ()
    of: str | None = None
    again: bool = False
    every_checkpoint: bool = False
    only: bool = False


class Service:
    """The runs of one target.

    Args:
        settings: Where runs live and what runs them.
        target: Where they run; None takes the settings' own.
        clock: Seconds since 1970.
    """

    def __init__(self, settings: Settings, target: str | None = None, clock: Callable[[], float] = time.time) -> None:
        self.settings, self._clock = settings, clock
        self.target = _connect(settings, _target(target or settings.target), clock)

    @property
    def storage(self) -> Storage:
        """Where runs live."""
        return self.target.storage

    @property
    def _records(self) -> Records:
        return Records(self.storage)

    @property
    def storage_url(self) -> str:
        """Where runs live, or a placeholder for it."""
        return self.settings.cluster.storage if self.target.name == "cluster" else self.settings.storage

    @property
    def has_storage(self) -> bool:
        """Whether somebody has said where runs live."""
        return self.target.name == "local" or "cluster.storage" not in self.settings.cluster.unset

    def render(self, request: Request) -> list[Rendered]:
        """Return the runs that a request names; refuse words that mean nothing, with the nearest that do.

        A training or evaluation for which something has to be made first is the pipeline that makes that and then it;
        once there is this pipeline, the same words mean it. With `only`, and without `again` and `of`, the storage is
        not asked.
        """
        kind = _kind(request.kind)
        names = list(tasks.TASKS) if request.task == ALL else [_task(request.task)]
        if request.of is not None and (kind != "eval" or request.task == ALL):
            raise UsageError("--of names the training run of one evaluation; use it with: submit eval TASK")
        overrides = dict(parse_assignment(text) for text in request.assignments)
        if request.only and kind not in ("train", "eval"):
            raise UsageError(f"--only is for train and eval, which may need other runs; leave it out for {kind}")
        specs = [self._spec(request, kind, task, overrides) for task in names]
        if request.every_checkpoint:
            if kind != "eval" or request.task == ALL:
                raise UsageError("--every-checkpoint is about one training; use it with: submit eval TASK")
            specs = self._of_every_checkpoint(specs[0])
        return [self._render(spec, request) for spec in specs]

    def submit(self, runs: Sequence[Rendered]) -> list[Submission]:
        """Start runs; those that are running or done are left alone. All of them could start, or none is started."""
        if len(runs) > 1:
            new = [run for run in runs if not self.storage.exists(RunPaths(run.run).spec)]
            problems = [text for run in new if (text := inputs.missing(run, self.storage))]
            if problems:
                raise UsageError("; ".join(dict.fromkeys(problems)))
        return [self.target.submit(run) for run in runs]

    def preview(self, run: Rendered) -> bytes:
        """Return what submitting a run would make: the manifests of a cluster, else job.json."""
        return self.target.preview(run)

    def resume(self, run: Rendered) -> Submission:
        """Start a run again from where it stopped."""
        return self.target.submit(run)

    def going_on(self, run: str, assignments: Sequence[str] = ()) -> Rendered:
        """Return a run as it is stored, or with other settings from its newest checkpoint on.

        Its values are those it was submitted with; what runs it (interpreters, images, memory) is that of today.

        Raises:
            UsageError: It is no training, it is running, or a setting may not change.
        """
        stored = refreshed(self._records.verified(run), self.settings)
        if not assignments:
            return stored
        if not isinstance(stored.job, TrainJob):
            below = [stage.run for stage in stages(stored) if isinstance(stage.job, TrainJob)]
            hint = f"; its training is {below[0]}, resume that one first" if below else "; submit a new run"
            raise UsageError(f"only a training can go on with other settings, {run} is none{hint}")
        if self.target.alive(run):
            raise UsageError(f"{run} is running; pi05ctl cancel {run} lets it save and end, then resume it with --set")
        step = max(self.storage.numbered(RunPaths(run).checkpoints), default=0)
        change = asked(stored.job, dict(map(parse_assignment, assignments)), step, self._clock())
        return replace(stored, job=changed(stored.job, [change]), changes=(*stored.changes, change))

    def remarks(self, run: Rendered) -> list[str]:
        """Return what to know of the settings that a training has just gone on with."""
        return remarks(run.job, run.changes[-1]) if isinstance(run.job, TrainJob) and run.changes else []

    def find(self, name: str) -> str:
        """Return the run of this name, of this unique prefix, or the newest of this task.

        Of a task, a run that a pipeline submitted gives way to the pipeline.
        """
        runs = self.storage.children("runs")
        if name in tasks.TASKS:
            return self._newest(name, runs)
        begin = [name] if name in runs else [run for run in runs if run.startswith(name)]
        matches = sorted(self._records.recorded(begin))
        if len(matches) == 1:
            return matches[0]
        if matches:
            some = ", ".join(matches[:5]) + (", ..." if len(matches) > 5 else "")
            raise UsageError(f"{name!r} is the beginning of {len(matches)} runs: {some}")
        hint = nearest(name, [*runs, *tasks.TASKS])
        raise UsageError(f"there is no run {name!r} in {self.storage.url}{hint}")

    def find_training(self, name: str) -> str:
        """Return the run that `find` does; of a pipeline or an evaluation, the training that it is about."""
        run = self.find(name)
        match run.partition("-")[0]:
            case "eval":
                return cast("EvalJob", self.target.load(run).job).train_run
            case "pipeline":
                trained = [stage.run for stage in stages(self.target.load(run)) if isinstance(stage.job, TrainJob)]
                if not trained:
                    raise UsageError(f"{run} trains nothing: it evaluates demonstrations")
                return trained[0]
            case _:
                return run

    def status(self, run: str) -> RunStatus:
        """Return how one run stands."""
        snapshot = self.target.snapshot(run)
        if snapshot is None:
            return self._not_yet(run)
        return status.fold(snapshot, self._clock())

    def statuses(self) -> tuple[list[RunStatus], list[str]]:
        """Return how every run stands, the newest first, and complaints about those that cannot be read."""
        snapshots, damaged = self.target.snapshots()
        found = [status.fold(snapshot, self._clock()) for snapshot in snapshots]
        found.sort(key=lambda s: s.created or 0.0, reverse=True)
        return status.annotate(found), damaged

    def with_stages(self, run: str) -> list[RunStatus]:
        """Return how a run stands and, for a pipeline, each of its stages."""
        names = [run, *(stage.run for stage in stages(self.target.load(run)))]
        return status.annotate([self.status(name) for name in names])

    def looker(self, runs: Sequence[str]) -> Look:
        """Return what tells how runs stand, and what to show of them: of a pipeline its stages."""
        below = {run: [stage.run for stage in stages(self.target.load(run))] for run in runs}

        def look() -> tuple[list[RunStatus], list[RunStatus]]:
            own = [self.status(run) for run in runs]
            shown = [s for status in own for s in self._shown(status, below[status.run])]
            return own, shown

        return look

    def results(self) -> list[tuple[RunStatus, Evaluation]]:
        """Return every finished evaluation with its episodes."""
        done = [s for s in self.statuses()[0] if s.kind == "eval" and s.state == "Done"]
        return [(s, evaluations.read(self.storage, s.run)) for s in done]

    def pools(self, each: bool = False) -> list[Pool]:
        """Return every finished evaluation, those of a recipe and several training seeds together, or `each` alone."""
        found = self.results()
        records = self._records.told(status.run for status, _ in found)
        jobs = self._records.jobs({name for status, _ in found for name in (status.run, status.train_run) if name})
        done = [
            Finished(status, evaluation, _settings(jobs, status.train_run, status.run), records[status.run].spec.preset)
            for status, evaluation in found
        ]
        return [Pool((one,)) for one in done] if each else pooling.pools(done)

    def compare(self, names: Sequence[str]) -> Comparison:
        """Compare runs, or the newest of tasks, with the first of them, by their evaluations."""
        runs = [self.find(name) for name in names]
        return comparison.compare(several.subjects(self.target, runs, self._clock()))

    def newest(self) -> list[str]:
        """Return the run that stands for each task that has one: the newest that is to end with a success rate."""
        told = self._records.told(self.storage.children("runs")).values()
        found: list[str] = []
        for task in tasks.TASKS:
            every = [record for record in told if record.spec.task == task]
            own = [record for record in every if record.parent is None] or every
            best = [record for record in own if _rates(record.spec)] or own
            found += [max(best, key=lambda record: record.created).run] if best else []
        return found

    def policies(self, statuses: Sequence[RunStatus]) -> list[tables.Policy]:
        """Return what has become of every task, given how the runs that stand for some of them stand."""
        own = {status.task: status for status in statuses}
        return [tables.policy(task, own.get(task), self._found(own.get(task))) for task in tasks.TASKS]

    def _found(self, run: RunStatus | None) -> Evaluation | None:
        """Return the evaluation that is a run, or the last of its stages, when it is done."""
        if run is None or run.state != "Done":
            return None
        last = [run.run, *(stage.run for stage in stages(self.target.load(run.run)))][-1]
        return evaluations.read(self.storage, last) if last.startswith("eval-") else None

    def _shown(self, own: RunStatus, below: Sequence[str]) -> list[RunStatus]:
        """Return what to show of a run; a stage that failed earlier waits while its pipeline is on the way to it."""
        if not below:
            return [own]
        stages_now = [self.status(run) for run in below]
        return [self._not_yet(s.run) if s.state in RETRIED and not own.ended else s for s in stages_now]

    def _spec(self, request: Request, kind: Kind, task: str, overrides: dict[str, Any]) -> RunSpec:
        """Return the spec of one task."""
        target = self.target.name
        if request.of is None:
            preset = request.preset or DEFAULT_PRESET[target]
            return RunSpec(kind=kind, task=task, preset=preset, target=target, overrides=overrides)
        name = self.find_training(request.of)
        base = self.target.load(name).spec
        if base.kind != "train" or task not in _learned(base):
            learned = " and ".join(_learned(base))
            raise UsageError(f"--of {request.of} is a {base.kind} run of {learned}, not the training of {task}")
        if request.preset not in (None, base.preset):
            raise UsageError(f"--of {request.of} was trained with --preset {base.preset}; leave --preset out")
        together = {**base.overrides, **overrides}
        return RunSpec(kind=kind, task=task, preset=base.preset, target=target, overrides=together, train_run=name)

    def _of_every_checkpoint(self, spec: RunSpec) -> list[RunSpec]:
        """Return an evaluation of each checkpoint that is there now, the earliest first."""
        job = cast("EvalJob", render(spec, self.settings).job)
        if job.eval.step is not None or job.eval.policy != "checkpoint":
            raise UsageError(f"--every-checkpoint says what is evaluated; leave --set {_STEP} and eval.policy out")
        steps = self.storage.numbered(RunPaths(job.train_run).checkpoints)
        if not steps:
            raise UsageError(f"{job.train_run} has no complete checkpoint in {self.storage.url} yet")
        return [spec.model_copy(update={"overrides": {**spec.overrides, _STEP: step}}) for step in steps]

    def _render(self, spec: RunSpec, request: Request) -> Rendered:
        """Return the run of a spec, or the pipeline around it; `again` means the first name that is not taken."""
        while True:
            run, whole = render(spec, self.settings), self._around(spec, request)
            if not request.again or not self._taken(run, whole):
                return whole if whole is not None and self._needed(run, whole) else run
            spec = spec.model_copy(update={"again": spec.again + 1})

    def _around(self, spec: RunSpec, request: Request) -> Rendered | None:
        """Return the pipeline that makes a run and what it needs; an evaluation again is of what has been trained."""
        alone = request.only or request.every_checkpoint or (spec.kind == "eval" and spec.again)
        whole = None if alone else around(spec)
        return None if whole is None else render(whole, self.settings)

    def _taken(self, run: Rendered, whole: Rendered | None) -> bool:
        """Return whether there is a run of one of these names."""
        names = [run.run] if whole is None else [run.run, whole.run]
        return any(self.storage.exists(RunPaths(name).spec) for name in names)

    def _needed(self, run: Rendered, whole: Rendered) -> bool:
        """Return whether a run takes the pipeline around it: that is there, or something has to be made first."""
        if not self.has_storage:
            return False
        if self.storage.exists(RunPaths(whole.run).spec):
            return True
        if inputs.absent(run, self.storage) is None:
            return False
        snapshot = self.target.snapshot(run.run)
        now = snapshot and status.fold(snapshot, self._clock())
        return not now or (now.ended and not (now.state == "Done" and inputs.made(run, self.storage)))

    def _newest(self, task: str, runs: Sequence[str]) -> str:
        """Return the newest run of a task that nobody's pipeline submitted."""
        found = self._records.told(run for run in runs if run.split("-")[1:2] == [task])
        if not found:
            raise UsageError(f"there is no run of {task} yet; start one: pi05ctl submit pipeline {task}")
        asked_for = [record for record in found.values() if record.parent is None]
        return max(asked_for or found.values(), key=lambda record: record.created).run

    def _not_yet(self, run: str) -> RunStatus:
        """Return the status of a stage whose turn has not come."""
        kind, task, *_ = run.split("-")
        return RunStatus(run=run, task=task, kind=kind, state="Pending", why="its turn has not come")


def _settings(jobs: Mapping[str, dict[str, Any]], train: str | None, evaluation: str) -> dict[str, Any]:
    """Return the settings behind an evaluation; none where one of its jobs is gone."""
    if train is None or not {train, evaluation} <= jobs.keys():
        return {}
    return comparison.settings([jobs[train], jobs[evaluation]])


def _kind(name: str) -> Kind:
    for kind in KINDS:
        if name == kind:
            return kind
    raise unknown("kind of run", name, KINDS)


def _rates(spec: RunSpec) -> bool:
    """Return whether a run ends with the success rate of a policy."""
    policy = spec.overrides.get("eval.policy", "checkpoint") == "checkpoint"
    return policy and (spec.kind == "eval" or (spec.kind == "pipeline" and spec.goal != "train"))


def _learned(spec: RunSpec) -> list[str]:
    """Return the tasks of a run: its own, and those that a training mixes in."""
    return [spec.task, *(resolve(spec).train.weights_of_others if spec.kind == "train" else ())]


def _task(name: str) -> str:
    if name in tasks.TASKS:
        return name
    raise unknown("task", name, [*tasks.TASKS, ALL])


def _target(name: str) -> str:
    if name not in DEFAULT_PRESET:
        raise unknown("target", name, list(DEFAULT_PRESET))
    return name


def _connect(settings: Settings, name: str, clock: Callable[[], float]) -> Target:
    """Return the target of this name; the cluster's modules are loaded for the cluster alone."""
    if name == "cluster":
        from pi05ctl.cluster.target import ClusterTarget

        return ClusterTarget(settings.cluster, clock)
    from pi05ctl.local.target import LocalTarget

    return LocalTarget(
        connect(settings.storage), Local(python=settings.python, jobs_at_once=settings.jobs_at_once), clock
    )
