"""Several runs -> what is known of each, and one page about all. Reads storage through a target, as page.py does."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pi05 import tasks
from pi05.config import AnyJob, EvalJob
from pi05.results import interval
from pi05ctl.errors import TargetError, UsageError
from pi05ctl.runs import comparison
from pi05ctl.runs.comparison import Rate, Subject
from pi05ctl.runs.records import Records
from pi05ctl.runs.target import Target
from pi05ctl.spec.render import PipelineJob
from pi05ctl.stored import evaluations
from pi05ctl.stored.evaluations import Evaluation
from pi05ctl.views import page, together
from pi05ctl.views.sections import Report


@dataclass(frozen=True)
class Known:
    """What is known of one of several runs: its report, and what it is compared by; None while it is not evaluated."""

    report: Report
    subject: Subject | None


def write(target: Target, runs: Sequence[str], now: float) -> str:
    """Write one page about several runs, beside the report of the first, and return its address.

    Raises:
        UsageError: One of them is of demonstrations.
    """
    known = [gather(target, run, now) for run in runs]
    return page.publish(target, runs[0], name_of(runs), content(known, page.clock(now)).encode())


def name_of(runs: Sequence[str]) -> str:
    """Return the file name of the page about these runs."""
    return f"{len(runs)}-runs-{hashlib.sha256(' '.join(runs).encode()).hexdigest()[:6]}.html"


def content(known: Sequence[Known], written: str) -> str:
    """Return the page: rates and comparison of each task's runs, curves side by side, and each run by itself."""
    reports = [one.report for one in known]
    of_task = {task: [one for one in known if one.report.status.task == task] for task in tasks.TASKS}
    parts = [part for task, some in of_task.items() if some for part in _of_task(task, some)]
    losses = {one.status.run: one.losses for one in reports}
    kept_apart = {one.status.run: one.held_out for one in reports}
    parts += [together.curves("Loss", "loss", losses), together.curves("Loss kept apart", "loss", kept_apart)]
    parts += [together.alone(one, page.parts(one)) for one in reports]
    names = ", ".join(one.status.run for one in reports)
    states = ", ".join(dict.fromkeys(one.status.state for one in reports))
    return page.document(f"{len(reports)} runs", [names], states, written, parts)


def _of_task(task: str, known: Sequence[Known]) -> Iterator[str]:
    """Yield what a page says of the runs of one task."""
    yield together.success(task, [one.report for one in known])
    found: dict[str, Subject] = {}
    for subject in (one.subject for one in known if one.subject is not None):
        if subject.evaluation.complete:
            found.setdefault(subject.evaluated, subject)  # a training and its own evaluation are one number
    if len(found) > 1:
        try:
            yield together.compared(comparison.compare(list(found.values())))
        except UsageError as error:
            yield together.refused(task, str(error))
    courses = {one.run: tuple((rate.step, 100 * rate.rate) for rate in one.course) for one in found.values()}
    yield together.curves("Success over training steps", "success in %", courses)


def subjects(target: Target, runs: Sequence[str], now: float) -> list[Subject]:
    """Return what the runs are compared by.

    Raises:
        UsageError: One of them has no evaluation.
    """
    found: list[Subject] = []
    for run in runs:
        known = gather(target, run, now)
        if known.subject is None:
            task, train = known.report.status.task, _part(known.report, "train")
            remedy = f"pi05ctl submit eval {task}" + (f" --of {train}" if train else "")
            raise UsageError(f"{run} has no evaluation to compare yet; make one: {remedy}")
        found.append(known.subject)
    return found


def gather(target: Target, run: str, now: float) -> Known:
    """Return what is known of a run; of a pipeline or training, by its evaluation."""
    report = page.gather(target, run, now)
    evaluated, train = _part(report, "eval"), _part(report, "train")
    if evaluated is None or report.evaluation is None:
        return Known(report, None)
    subject = Subject(
        run=run,
        task=report.status.task,
        evaluated=evaluated,
        evaluation=report.evaluation,
        settings=comparison.settings(job.model_dump(mode="json") for job in _jobs(target, evaluated, train)),
        losses=report.losses,
        held_out=report.held_out,
        course=_course(target, train, report.evaluation) if train else (),
    )
    return Known(report, subject)


def _part(report: Report, kind: str) -> str | None:
    """Return the run of a kind that a report is about."""
    return next((part.run for part in report.parts if part.kind == kind), None)


def _jobs(target: Target, evaluated: str, train: str | None) -> Iterator[AnyJob]:
    """Yield the jobs behind a number as far as their records are there: demonstrations, training, evaluation."""
    job = target.load(evaluated).job
    assert isinstance(job, EvalJob)
    _, task, digest = job.dataset.split("/")
    for name in (f"demos-{task}-{digest[:6]}", train):
        with contextlib.suppress(TargetError):
            if name is not None and not isinstance(found := target.load(name).job, PipelineJob):
                yield found
    yield job


def _course(target: Target, train: str, found: Evaluation) -> tuple[Rate, ...]:
    """Return the success of a training's checkpoints, as far as they were evaluated on the same seeds."""
    names = [name for name in target.storage.children("runs") if name.startswith("eval-")]
    own = [name for name, record in Records(target.storage).told(names).items() if record.train_run == train]
    rates: dict[int, Rate] = {}
    for one in (evaluations.read(target.storage, name) for name in own):
        same = [episode.seed for episode in one.episodes] == [episode.seed for episode in found.episodes]
        if same and one.complete and one.policy == found.policy and one.step is not None:
            rates[one.step] = Rate(one.step, one.metrics["success_once"], *(interval(one.metrics) or (0.0, 1.0)))
    return tuple(rates[step] for step in sorted(rates))
