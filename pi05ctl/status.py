"""Snapshot -> RunStatus: what a target saw of a run becomes one state, progress and a reason.

A pure fold: time comes in, nothing is read. Facts of the machine outrank what the job says of itself. The rules, of
which the first that applies decides:

     1. nothing was ever started                                  Pending
     2. alive, and its process waits for a free slot              Queued
     3. alive, no event of this attempt yet, the first attempt    Starting
     4. alive, no event of this attempt yet, a later one          Retrying
     5. alive, the last event long ago                            Stalled
     6. alive                                                     Running
     7. gone, said finished, and did not exit with an error       Done
     8. gone, and somebody asked to cancel it                     Cancelled
     9. gone, and could not be started                            Failed
    10. gone, said finished, but exited with an error             Failed
    11. gone, said failed                                         Failed
    12. gone without a verdict                                    Failed

An event counts for the attempt that it is not older than.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pi05.events import TERMINAL, Event
from pi05ctl.process import Process
from pi05ctl.spec import RunSpec

STALLED_AFTER = 600.0
"""Seconds without an event after which a live run is Stalled. Compilation is the longest silence of a healthy one."""
_TOGETHER = 1.0
_WINDOW = 10
ENDED = frozenset({"Done", "Failed", "Cancelled"})


@dataclass(frozen=True)
class Snapshot:
    """What a target saw of a run at one moment.

    Attributes:
        run: The run's name.
        spec: What was asked for.
        created: When it was first submitted, in seconds since 1970.
        parent: The pipeline that submitted it.
        train_run: For an evaluation: whose checkpoint it takes.
        alive: Whether a process of it exists.
        process: Its latest process.
        cancelled: When somebody asked to cancel the latest attempt.
        verdict: Its last event, as status.json holds it.
        events: Its latest events, oldest first.
        last_line: The last line of its log that is not an event.
    """

    run: str
    spec: RunSpec
    created: float
    parent: str | None = None
    train_run: str | None = None
    alive: bool = False
    process: Process | None = None
    cancelled: float | None = None
    verdict: Event | None = None
    events: tuple[Event, ...] = ()
    last_line: str = ""


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, for tables and JSON.

    Attributes:
        run, task, kind: Its name and what it is.
        state: One of the states above.
        why: The reason for the state, in one line; empty when there is nothing to explain.
        remedy: What to do about it.
        step, total, unit: Progress.
        stage: Of a pipeline: the run it is at.
        seconds_per_step: Speed, over the latest events.
        metrics: The latest numbers.
        left: Seconds until the end of this run (of this stage, for a pipeline), by the speed so far.
        age: Seconds since it was first submitted; None before that.
        created: When that was, in seconds since 1970.
        attempt: How often it was started.
        parent: The pipeline that submitted it.
        train_run: For an evaluation: whose checkpoint it takes.
        checkpoint: Step of the last checkpoint.
        exit_code: Of its process; negative: a signal.
    """

    run: str
    task: str
    kind: str
    state: str
    why: str = ""
    remedy: str = ""
    step: int | None = None
    total: int | None = None
    unit: str | None = None
    stage: str | None = None
    seconds_per_step: float | None = None
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    left: float | None = None
    age: float | None = None
    created: float | None = None
    attempt: int = 0
    parent: str | None = None
    train_run: str | None = None
    checkpoint: int | None = None
    exit_code: int | None = None

    @property
    def ended(self) -> bool:
        """Whether it will not change by itself any more."""
        return self.state in ENDED


def fold(snapshot: Snapshot, now: float) -> RunStatus:
    """Return what a snapshot means at the time `now`."""
    state, why, remedy = _state(snapshot, now)
    events = _all_events(snapshot)
    progress = _latest(events, "progress")
    speed = _speed(events, _started(snapshot))
    process = snapshot.process
    status = RunStatus(
        run=snapshot.run,
        task=snapshot.spec.task,
        kind=snapshot.spec.kind,
        state=state,
        why=why,
        remedy=remedy,
        step=progress.step if progress else None,
        total=progress.total if progress else None,
        unit=progress.unit if progress else None,
        stage=_extra(progress, "stage"),
        seconds_per_step=speed,
        metrics=_metrics(events),
        age=max(now - snapshot.created, 0.0),
        created=snapshot.created,
        attempt=process.attempt if process else 0,
        parent=snapshot.parent,
        train_run=snapshot.train_run,
        checkpoint=_checkpoint(events),
        exit_code=process.exit_code if process else None,
    )
    return replace(status, left=_left(status))


def annotate(statuses: Sequence[RunStatus]) -> list[RunStatus]:
    """Return the statuses with each finished training run told what its latest evaluation found."""
    evaluations = sorted(
        (s for s in statuses if s.kind == "eval" and s.state == "Done"), key=lambda s: s.created or 0.0
    )
    found = {s.train_run: s for s in evaluations}
    return [_with_evaluation(status, found.get(status.run)) for status in statuses]


def success(metrics: dict[str, float]) -> str:
    """Return `98 % [93, 99] of 100`, as far as the metrics say; empty when they do not."""
    rate = metrics.get("success_once")
    if rate is None:
        return ""
    text = f"{100 * rate:.0f} %"
    low, high = metrics.get("wilson_low"), metrics.get("wilson_high")
    if low is not None and high is not None:
        text += f" [{100 * low:.0f}, {100 * high:.0f}]"
    episodes = metrics.get("episodes")
    return text + (f" of {episodes:.0f}" if episodes is not None else "")


def _state(snapshot: Snapshot, now: float) -> tuple[str, str, str]:
    """Apply the rules of the module's docstring: state, why and remedy."""
    if snapshot.alive:
        return _alive(snapshot, now)
    process, verdict = snapshot.process, _verdict(snapshot)
    resume = f"pi05ctl resume {snapshot.run}"
    if process is None and verdict is None:
        return "Pending", "never started", resume  # rule 1
    failed_exit = process is not None and process.exit_code not in (None, 0)
    if verdict is not None and verdict.kind == "finished" and not failed_exit:
        return "Done", "", ""  # rule 7
    if snapshot.cancelled is not None:
        return "Cancelled", "", resume  # rule 8
    if process is not None and process.problem:
        return "Failed", process.problem, resume  # rule 9
    how = process.exit_words() if process else None
    if verdict is not None and verdict.kind == "finished":
        return "Failed", f"said finished, but ended with {how}", resume  # rule 10
    if verdict is not None and verdict.kind == "failed":
        return "Failed", verdict.message or "failed", _remedy(verdict, resume)  # rule 11
    return "Failed", _no_verdict(process, snapshot.last_line), resume  # rule 12


def _alive(snapshot: Snapshot, now: float) -> tuple[str, str, str]:
    """Apply the rules for a run that has a process."""
    process = snapshot.process
    if process is not None and process.waiting:
        return "Queued", "waits for a free slot (jobs_at_once in pi05.toml)", ""  # rule 2
    events = [event for event in _all_events(snapshot) if event.time >= _started(snapshot)]
    since = _started(snapshot) or now
    if not events and now - since < STALLED_AFTER:
        if process is None or process.attempt == 1:
            return "Starting", "", ""  # rule 3
        return "Retrying", f"attempt {process.attempt}", ""  # rule 4
    silent = now - (events[-1].time if events else since)
    if silent >= STALLED_AFTER:
        minutes = f"no event for {silent / 60:.0f} min"
        return "Stalled", minutes, f"pi05ctl logs {snapshot.run}"  # rule 5
    warning = _latest(events, "warning")
    return "Running", (warning.message or "") if warning else "", ""  # rule 6


def _no_verdict(process: Process | None, last_line: str) -> str:
    """Return why a run ended that did not say why itself."""
    if process is None or process.exit_code is None:
        how = "its supervisor was stopped with it (a reboot?)"
    elif process.exit_code < 0:
        return f"killed (no verdict; {process.exit_words()})"
    else:
        how = process.exit_words() or ""
    return f"ended without a verdict ({how})" + (f": {last_line}" if last_line else "")


def _remedy(verdict: Event, resume: str) -> str:
    """Return what to do after a failure; the codes are those of pi05.errors."""
    if verdict.exit_code == 64:
        return "change the options and submit again"
    if verdict.exit_code == 66:
        return "submit again with another --set train.seed=..., or a lower learning rate"
    return resume


def _started(snapshot: Snapshot) -> float:
    """Return when the latest attempt started; 0 when no target started it (then every event counts)."""
    process = snapshot.process
    if process is None:
        return 0.0
    return process.submitted if process.started is None else process.started


def _all_events(snapshot: Snapshot) -> list[Event]:
    """Return the events, the verdict last even when the log does not have it."""
    events = list(snapshot.events)
    verdict = snapshot.verdict
    if verdict is not None and (not events or verdict.time > events[-1].time):
        events.append(verdict)
    return events


def _verdict(snapshot: Snapshot) -> Event | None:
    """Return the event with which the latest attempt ended itself."""
    events = _all_events(snapshot)
    if not events or events[-1].kind not in TERMINAL or events[-1].time < _started(snapshot):
        return None
    return events[-1]


def _latest(events: Iterable[Event], kind: str) -> Event | None:
    """Return the last event of a kind."""
    return next((event for event in reversed(list(events)) if event.kind == kind), None)


def _extra(event: Event | None, name: str) -> str | None:
    """Return a field that only some events have, as text."""
    value = (event.model_extra or {}).get(name) if event else None
    return str(value) if value else None


def _metrics(events: Sequence[Event]) -> dict[str, float]:
    """Return the latest value of every metric of progress, result and finished events."""
    metrics: dict[str, float] = {}
    for event in events:
        metrics.update(event.metrics or {})
    return metrics


def _checkpoint(events: Sequence[Event]) -> int | None:
    """Return the step of the last checkpoint."""
    event = _latest(events, "checkpoint")
    return event.step if event else None


def _speed(events: Sequence[Event], since: float) -> float | None:
    """Return seconds a step over the latest progress of this attempt.

    Episodes end in bursts, several environments at once, so what was said within a second counts as said together.
    """
    points: list[tuple[float, int]] = []
    stage, burst = None, 0.0
    for event in events:
        if event.kind != "progress" or event.step is None or event.time < since:
            continue
        if _extra(event, "stage") != stage or (points and event.step < points[-1][1]):
            points.clear()
        if points and event.time - burst < _TOGETHER:
            points[-1] = (event.time, event.step)
        else:
            points.append((event.time, event.step))
            burst = event.time
        stage = _extra(event, "stage")
    points = points[-_WINDOW:]
    steps = points[-1][1] - points[0][1] if points else 0
    return (points[-1][0] - points[0][0]) / steps if steps > 0 else None


def _left(status: RunStatus) -> float | None:
    """Return the seconds left by the speed so far."""
    if status.state not in ("Running", "Stalled"):
        return None
    if status.step is None or status.total is None or status.seconds_per_step is None:
        return None
    return max(status.total - status.step, 0) * status.seconds_per_step


def _with_evaluation(status: RunStatus, evaluation: RunStatus | None) -> RunStatus:
    """Return a training run's status with its checkpoint and what was found of it as the reason."""
    if status.kind != "train" or status.state != "Done":
        return status
    parts = [f"checkpoint {status.checkpoint}"] if status.checkpoint is not None else []
    if evaluation is not None:
        parts.append(f"evaluated: {success(evaluation.metrics)}")
    return replace(status, why="; ".join(parts))
