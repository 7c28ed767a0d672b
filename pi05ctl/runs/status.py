"""Snapshot -> RunStatus: what a target saw of a run becomes one state, progress and a reason.

A pure fold: time comes in, nothing is read. Facts of the machine outrank what the job says of itself. The rules, of
which the first that applies decides, for a process of this machine:

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

and for a Job of a cluster, by the phase that `facts` found:

    13. complete                                                  Done
    14. failed                                                    Failed
    15. queued (Kueue holds it back)                              Queued
    16. pending (unschedulable, no quota, no image)               Pending
    17. stopping                                                  Running, with what stops it
    18. starting, or running without an event of this attempt     Starting, or Retrying from the second attempt on
    19. running, the last event (of a shard at work) long ago     Stalled
    20. running                                                   Running
    21. absent, every shard said finished                         Done
    22. absent, and somebody asked to cancel it                   Cancelled
    23. absent and silent, submitted a moment ago                 Starting: Helm is at work, or a list is old
    24. absent, said failed                                       Failed
    25. absent without a verdict                                  Failed

An event counts for the attempt that it is not older than. A run in shards is one run: steps add up, rates are weighed
by them, and it is finished when every shard is.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from pi05.events import TERMINAL, Event
from pi05.results import interval, limits
from pi05ctl.runs.facts import Facts
from pi05ctl.runs.process import Process
from pi05ctl.spec.changes import Change
from pi05ctl.spec.runspec import RunSpec

STALLED_AFTER = 600.0
"""Seconds without an event after which a live run is Stalled. Compilation is the longest silence of a healthy one."""
_BEING_MADE = 120.0
"""Seconds after a submission in which a Job that is not seen is no reason to worry."""
_TOGETHER = 1.0
_WINDOW = 10
STATES = ("Pending", "Queued", "Starting", "Running", "Stalled", "Retrying", "Done", "Failed", "Cancelled")
ENDED = frozenset({"Done", "Failed", "Cancelled"})


@dataclass(frozen=True)
class Snapshot:
    """What a target saw of a run at one moment.

    Attributes:
        run: The run's name.
        spec: What was asked for.
        created, submitted: When it was first and last submitted, in seconds since 1970.
        parent: The pipeline that submitted it.
        train_run: For an evaluation: whose checkpoint it takes.
        alive: Whether a process of it exists.
        process: Its latest process, on this machine.
        facts: What a cluster says of it.
        cancelled: When somebody asked to cancel the latest attempt.
        changes: What it went on with otherwise when it was resumed, oldest first.
        verdicts: Its last event, or that of each shard, as status.json holds it.
        events: Its latest events, oldest first.
        last_line: The last line of its log that is not an event.
    """

    run: str
    spec: RunSpec
    created: float
    submitted: float | None = None
    parent: str | None = None
    train_run: str | None = None
    alive: bool = False
    process: Process | None = None
    facts: Facts | None = None
    cancelled: float | None = None
    changes: tuple[Change, ...] = ()
    verdicts: tuple[Event, ...] = ()
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
        latest: The latest moment at which something is known to have happened to it, in seconds since 1970.
        attempt: How often it was started.
        parent: The pipeline that submitted it.
        train_run: For an evaluation: whose checkpoint it takes.
        checkpoint: Step of the last checkpoint.
        exit_code: Of its process; negative: a signal.
        changed: What it went on with otherwise when it was resumed, one entry a resume, in words.
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
    latest: float | None = None
    attempt: int = 0
    parent: str | None = None
    train_run: str | None = None
    checkpoint: int | None = None
    exit_code: int | None = None
    changed: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it will not change by itself any more."""
        return self.state in ENDED


Look = Callable[[], tuple[Sequence[RunStatus], Sequence[RunStatus]]]
"""Returns how the runs that are followed stand now, and what to show of them."""


def fold(snapshot: Snapshot, now: float) -> RunStatus:
    """Return what a snapshot means at the time `now`."""
    state, why, remedy = _state(snapshot, now)
    events = _all_events(snapshot)
    shards = _by_shard(events)
    progress = _progress(shards)
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
        seconds_per_step=_together([_speed(own, _started(snapshot)) for own in shards]),
        metrics=_metrics(shards),
        age=max(now - snapshot.created, 0.0),
        created=snapshot.created,
        latest=latest(snapshot),
        attempt=_attempt(snapshot),
        parent=snapshot.parent,
        train_run=snapshot.train_run,
        checkpoint=_checkpoint(events),
        exit_code=_exit_code(snapshot),
        changed=tuple(change.words() for change in snapshot.changes),
    )
    return replace(status, left=_left(status))


def latest(snapshot: Snapshot) -> float:
    """Return the latest moment at which something is known to have happened to a run; of an ended one, its end."""
    process = snapshot.process
    times = [snapshot.created, snapshot.submitted, snapshot.cancelled]
    times += [event.time for event in (*snapshot.verdicts, *snapshot.events)]
    times += [snapshot.facts.started] if snapshot.facts else []
    times += [process.submitted, process.started, process.ended] if process else []
    return max(time for time in times if time is not None)


def annotate(statuses: Sequence[RunStatus]) -> list[RunStatus]:
    """Return the statuses with each finished training run told what its latest evaluation found."""
    evaluations = sorted(
        (s for s in statuses if s.kind == "eval" and s.state == "Done"), key=lambda s: s.created or 0.0
    )
    found = {s.train_run: s for s in evaluations}
    return [_with_evaluation(status, found.get(status.run)) for status in statuses]


def finished(verdicts: Sequence[Event]) -> bool:
    """Return whether these last events are those of a run, or of all its shards, that ended well."""
    return (
        bool(verdicts) and all(event.kind == "finished" for event in verdicts) and len(verdicts) == _shards(verdicts[0])
    )


def success(metrics: dict[str, float]) -> str:
    """Return `98 % [93, 99] of 100`, as far as the metrics say; empty when they do not."""
    rate = metrics.get("success_once")
    if rate is None:
        return ""
    text = f"{100 * rate:.0f} %"
    if ends := interval(metrics):
        text += f" [{100 * ends[0]:.0f}, {100 * ends[1]:.0f}]"
    episodes = metrics.get("episodes")
    return text + (f" of {episodes:.0f}" if episodes is not None else "")


def _state(snapshot: Snapshot, now: float) -> tuple[str, str, str]:
    """Apply the rules of the module's docstring: state, why and remedy."""
    if snapshot.facts is not None:
        return _in_cluster(snapshot, snapshot.facts, now)
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


def _in_cluster(snapshot: Snapshot, facts: Facts, now: float) -> tuple[str, str, str]:
    """Apply the rules for a run whose Job the cluster knows, or knew."""
    resume = f"pi05ctl resume {snapshot.run}"
    match facts.phase:
        case "complete":
            return "Done", "", ""  # rule 13
        case "failed":
            return "Failed", facts.why, facts.remedy or _remedy_of(_verdict(snapshot), resume)  # rule 14
        case "queued":
            return "Queued", facts.why, facts.remedy  # rule 15
        case "pending":
            return "Pending", facts.why, facts.remedy  # rule 16
        case "stopping":
            why = "cancelling; it saves first" if snapshot.cancelled is not None else f"stopping: {facts.why}"
            return "Running", why, ""  # rule 17
        case "starting" | "running":
            return _in_pods(snapshot, facts, now)
        case "absent":
            return _left_behind(snapshot, resume, now)


def _in_pods(snapshot: Snapshot, facts: Facts, now: float) -> tuple[str, str, str]:
    """Apply the rules for a run that has pods."""
    events = _events_of_this_attempt(snapshot)
    said = "; ".join(text for text in (facts.retries, facts.why) if text)
    quiet = _quietest(events)
    silent = now - (quiet.time if quiet else _started(snapshot) or now)
    if facts.phase == "running" and silent >= STALLED_AFTER:
        shard = _extra(quiet, "shard")
        stalled = (f"shard {shard}: " if shard else "") + f"no event for {silent / 60:.0f} min"
        return "Stalled", "; ".join(text for text in (stalled, said) if text), f"pi05ctl logs {snapshot.run}"  # rule 19
    if facts.phase == "starting" or not events:
        return "Retrying" if facts.attempt > 1 else "Starting", said, facts.remedy  # rule 18
    warning = _warning(events)
    return "Running", "; ".join(text for text in (warning, said) if text), ""  # rule 20


def _quietest(events: Sequence[Event]) -> Event | None:
    """Return the last event of the shard at work that has been silent for longest; one that has ended has no more."""
    last = [own[-1] for own in _by_shard(events)]
    at_work = [event for event in last if event.kind not in TERMINAL]
    if at_work:
        return min(at_work, key=lambda event: event.time)
    return max(last, key=lambda event: event.time, default=None)


def _left_behind(snapshot: Snapshot, resume: str, now: float) -> tuple[str, str, str]:
    """Apply the rules for a run whose Job is gone: what it left in storage decides."""
    verdicts = snapshot.verdicts
    if finished(verdicts):
        return "Done", "", ""  # rule 21
    if snapshot.cancelled is not None:
        return "Cancelled", "", resume  # rule 22
    submitted = snapshot.submitted or 0.0
    since = now - submitted
    spoke = any(event.time >= submitted for event in (*verdicts, *snapshot.events))
    if since < _BEING_MADE and not spoke:
        return "Starting", f"submitted {max(since, 0):.0f} s ago, its Job is being made", ""  # rule 23
    failed = next((event for event in verdicts if event.kind == "failed"), None)
    if failed is not None:
        return "Failed", f"{failed.message or 'failed'} (its Job is gone)", _remedy(failed, resume)  # rule 24
    gone = "its Job is gone and it never said how it ended (helm uninstall? kubectl delete?)"
    return "Failed", gone, resume  # rule 25


def _alive(snapshot: Snapshot, now: float) -> tuple[str, str, str]:
    """Apply the rules for a run that has a process."""
    process = snapshot.process
    if process is not None and process.waiting:
        return "Queued", "waits for a free slot (jobs_at_once in pi05.toml)", ""  # rule 2
    events = _events_of_this_attempt(snapshot)
    since = _started(snapshot) or now
    if not events and now - since < STALLED_AFTER:
        if process is None or process.attempt == 1:
            return "Starting", "", ""  # rule 3
        return "Retrying", f"attempt {process.attempt}", ""  # rule 4
    silent = now - (events[-1].time if events else since)
    if silent >= STALLED_AFTER:
        minutes = f"no event for {silent / 60:.0f} min"
        return "Stalled", minutes, f"pi05ctl logs {snapshot.run}"  # rule 5
    return "Running", _warning(events), ""  # rule 6


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
        return f"{resume} --set train.seed=1, or with a lower --set train.optimizer.peak_lr=..."
    return resume


def _remedy_of(verdict: Event | None, resume: str) -> str:
    return _remedy(verdict, resume) if verdict is not None else resume


def _warning(events: Sequence[Event]) -> str:
    """Return the latest warning, unless the job has moved on since."""
    warning = _latest(events, "warning")
    return (warning.message or "") if warning else ""


def _started(snapshot: Snapshot) -> float:
    """Return when the latest attempt started; 0 when no target started it (then every event counts)."""
    if snapshot.facts is not None:
        return snapshot.facts.started or 0.0
    process = snapshot.process
    if process is None:
        return 0.0
    return process.submitted if process.started is None else process.started


def _attempt(snapshot: Snapshot) -> int:
    known = snapshot.facts or snapshot.process
    return known.attempt if known else 0


def _exit_code(snapshot: Snapshot) -> int | None:
    known = snapshot.facts or snapshot.process
    return known.exit_code if known else None


def _all_events(snapshot: Snapshot) -> list[Event]:
    """Return the events in their order, with the verdicts even when the log does not have them."""
    events = list(snapshot.events)
    last = {_extra(event, "shard"): event.time for event in events}
    events += [event for event in snapshot.verdicts if event.time > last.get(_extra(event, "shard"), float("-inf"))]
    return sorted(events, key=lambda event: event.time)


def _events_of_this_attempt(snapshot: Snapshot) -> list[Event]:
    return [event for event in _all_events(snapshot) if event.time >= _started(snapshot)]


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
    return None if value in (None, "") else str(value)


def _shards(event: Event) -> int:
    """Return how many shards the run of an event has."""
    return int(_extra(event, "shards") or 1)


def _by_shard(events: Sequence[Event]) -> list[list[Event]]:
    """Return the events of each shard; one list when the run has none."""
    found: dict[str | None, list[Event]] = {}
    for event in events:
        found.setdefault(_extra(event, "shard"), []).append(event)
    return list(found.values())


def _progress(shards: Sequence[Sequence[Event]]) -> Event | None:
    """Return the latest progress; that of shards adds up."""
    latest = [event for own in shards if (event := _latest_step(own)) is not None]
    if len(latest) < 2:
        return latest[0] if latest else None
    return latest[0].model_copy(
        update={"step": sum(e.step or 0 for e in latest), "total": sum(e.total or 0 for e in latest)}
    )


def _latest_step(events: Sequence[Event]) -> Event | None:
    """Return the last event that says how far a job is: progress, or the last words that repeat it."""
    told = [event for event in events if event.step is not None and event.kind in ("progress", *TERMINAL)]
    return told[-1] if told else None


def _metrics(shards: Sequence[Sequence[Event]]) -> dict[str, float]:
    """Return the latest value of every metric; a success rate over shards is that of all their episodes."""
    if len(shards) == 1:
        return _latest_metrics(shards[0])
    metrics: dict[str, float] = {}
    weights: dict[str, float] = {}
    for own in shards:
        progress = _latest_step(own)
        weight = float((progress.step if progress else None) or 0)
        for name, value in _latest_metrics(own).items():
            metrics[name] = metrics.get(name, 0.0) + value * weight
            weights[name] = weights.get(name, 0.0) + weight
    metrics = {name: value / weights[name] for name, value in metrics.items() if weights[name]}
    if interval(metrics):  # an interval is no mean of intervals: it is counted anew
        episodes = round(weights["success_once"])
        solved = round(metrics["success_once"] * episodes)
        metrics |= {**limits(solved, episodes, "exact_low" in metrics), "episodes": float(episodes)}
    return metrics


def _latest_metrics(events: Sequence[Event]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for event in events:
        metrics.update(event.metrics or {})
    return metrics


def _together(speeds: Sequence[float | None]) -> float | None:
    """Return the seconds a step of shards that work side by side."""
    rates = [1 / speed for speed in speeds if speed]
    return 1 / sum(rates) if rates else None


def _checkpoint(events: Sequence[Event]) -> int | None:
    """Return the step of the last checkpoint."""
    event = _latest(events, "checkpoint")
    if event is not None:
        return event.step
    told = [step for event in events if event.kind in TERMINAL and (step := _extra(event, "checkpoint"))]
    return int(told[-1]) if told else None


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
