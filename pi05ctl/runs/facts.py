"""What the cluster says of a run: its Job, pods and events, as the API server's JSON -> one phase and one reason.

Pure. The words are Kubernetes' own wherever it has some. An exit code of 137 means nothing by itself (out of memory,
preemption and eviction all end so), so a pod's end is explained by the first row that applies:

    1. condition DisruptionTarget     drained, preempted, its node lost: nobody's fault, retried without limit
    2. the pod's own reason           Evicted, DeadlineExceeded, ...
    3. the container's reason         OOMKilled
    4. the last event that it left    the job's own words (its termination message)
    5. the exit code
    6. what ended beside it           a container of the cluster's own (a sidecar, an init container) that failed

A pod that waits is explained, likewise, by the first that says something: why it has no node; what our container waits
for; what an init container, or another one, does; the last event of the pod. A Job without a pod by its own events.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pi05.errors import TERMINATED
from pi05.events import Event, parse

Object = dict[str, Any]
Phase = Literal["absent", "queued", "pending", "starting", "running", "stopping", "complete", "failed"]
_ORDER: tuple[Phase, ...] = ("running", "starting", "pending", "stopping", "queued")
"""Of several pods: the phase that stands for them all is the first that one of them has."""
_DISRUPTIONS = {
    "EvictionByEvictionAPI": "Evicted (node drain)",
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "its node is lost or was tainted",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "Evicted by its node",
}
CONTAINER = "pi05"
"""The container of our pods that works; an injected sidecar may come before it."""
_NO_IMAGE = ("ImagePull", "ErrImage", "InvalidImage", "ImageInspect", "RegistryUnavailable", "SignatureValidation")
"""Beginnings of the reasons for which a container has no image."""
_BEING_MADE = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Reasons that only say that something else comes first."""
_DESCRIBE = "kubectl describe pod shows more"
_INIT = "init container"
_TIMES = ("", "once", "twice")


@dataclass(frozen=True)
class Facts:
    """What the cluster says of one run at one moment.

    Attributes:
        phase: absent (no Job), queued (Kueue holds it back), pending (its pods cannot start), starting, running,
            stopping, complete or failed.
        why: The reason for the phase in one line; empty when there is nothing to explain.
        remedy: What to do about it.
        attempt: How often its pods were started, counting the shard that needed most.
        retries: Why it was started again, `retried once: OOMKilled`.
        started: When the latest container was started, in seconds since 1970.
        exit_code: Of the container that ended last.
        events: The last words of containers that ended.
        pods: Names of the pods that print something now.
    """

    phase: Phase
    why: str = ""
    remedy: str = ""
    attempt: int = 0
    retries: str = ""
    started: float | None = None
    exit_code: int | None = None
    events: tuple[Event, ...] = ()
    pods: tuple[str, ...] = ()


ABSENT = Facts("absent")


@dataclass(frozen=True)
class _Pod:
    """One pod, as far as it matters."""

    name: str
    shard: str
    created: float
    phase: Phase
    why: str = ""
    remedy: str = ""
    started: float | None = None
    exit_code: int | None = None
    event: Event | None = None


def observe(job: Object | None, pods: Sequence[Object], events: Sequence[Object] = (), queue: str = "") -> Facts:
    """Return what a run's objects say.

    Args:
        job: The Job; None when there is none.
        pods: The run's pods, ended ones too.
        events: Kubernetes events about them, the oldest first; only needed while no pod runs.
        queue: What Kueue says of a Job that it holds back.
    """
    seen = sorted((_pod(pod, events) for pod in pods), key=lambda pod: pod.created)
    ended = [pod for pod in seen if pod.phase in ("failed", "complete")]
    phase, why, remedy = _phase(job, seen, events, queue)
    if job is not None and phase == "failed":
        ended = _fatal(job, seen) or ended
    return Facts(
        phase=phase,
        why=why,
        remedy=remedy,
        attempt=max(Counter(pod.shard for pod in seen).values(), default=0) + _restarts(job),
        retries=_retries(seen, _restarts(job)) if phase in _ORDER else "",
        started=max((pod.started for pod in seen if pod.started is not None), default=None),
        exit_code=ended[-1].exit_code if ended else None,
        events=tuple(pod.event for pod in seen if pod.event is not None),
        pods=tuple(pod.name for pod in seen if pod.phase in ("running", "stopping")),
    )


def _phase(job: Object | None, pods: Sequence[_Pod], events: Sequence[Object], queue: str) -> tuple[Phase, str, str]:
    """Return the phase of a run with its reason and remedy: the Job's verdict first, then its pods', then events."""
    live = [pod for pod in pods if pod.phase in _ORDER]
    if job is None:
        return ("stopping", "its Job is gone; its pods are being stopped", "") if live else ("absent", "", "")
    conditions = _conditions(job)
    if "Complete" in conditions:
        return "complete", "", ""
    if "Failed" in conditions:
        return _failed(job, conditions["Failed"], pods)
    if job["metadata"].get("deletionTimestamp"):
        return "stopping", "its Job is being deleted", ""
    if job.get("spec", {}).get("suspend"):
        return "queued", queue or "its Job is suspended", ""
    if live:
        return _of_pods(live)
    return "pending", *_no_pod(job, events)


def _of_pods(live: Sequence[_Pod]) -> tuple[Phase, str, str]:
    """Return the phase that stands for several pods; what holds others back is said beside it."""
    phase: Phase = next(phase for phase in _ORDER if any(pod.phase == phase for pod in live))
    waiting = [pod for pod in live if pod.why]
    if not waiting:
        return phase, "", ""
    first = waiting[0]
    share = f"{len(waiting)} of {len(live)} pods: " if len(live) > len(waiting) else ""
    return phase, share + first.why, first.remedy


def _failed(job: Object, condition: Object, pods: Sequence[_Pod]) -> tuple[Phase, str, str]:
    """Return why a Job failed: what its last pod died of, or what Kubernetes says of the Job."""
    dead = _fatal(job, pods)
    reason, message = condition.get("reason", ""), condition.get("message", "")
    indexes = job.get("status", {}).get("failedIndexes", "")
    which = f"shard {indexes}: " if indexes else ""
    if reason == "DeadlineExceeded":
        kind = job["metadata"].get("labels", {}).get("pi05.dev/kind", "KIND")
        return (
            "failed",
            f"DeadlineExceeded: {message}",
            f"raise [cluster.{kind}] deadline_seconds in pi05.toml and resume",
        )
    if not dead:
        return "failed", f"{which}{reason}: {message}", ""
    tries = f" ({reason})" if reason in ("BackoffLimitExceeded", "MaxFailedIndexesExceeded") else ""
    return "failed", f"{which}{dead[-1].why}{tries}", dead[-1].remedy


def _fatal(job: Object, pods: Sequence[_Pod]) -> list[_Pod]:
    """Return the failed pods that a failed Job is to be explained by: with shards, those of the shards that failed."""
    dead = [pod for pod in pods if pod.phase == "failed"]
    failed = set(_numbers(job.get("status", {}).get("failedIndexes", "")))
    return [pod for pod in dead if not failed or int(pod.shard) in failed]


def _numbers(indexes: str) -> Iterator[int]:
    """Yield the numbers of `1,3-5`, as Kubernetes writes indexes."""
    for span in filter(None, indexes.split(",")):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _no_pod(job: Object, events: Sequence[Object]) -> tuple[str, str]:
    """Return why a Job has no pods: what Kubernetes said when it could not create one, and which setting helps."""
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    if not refused:
        warned = [event for event in events if event.get("type") == "Warning"]
        return (_said(str(warned[-1].get("reason", "")), warned[-1]), "") if warned else ("waits for its pods", "")
    message = str(refused[-1].get("message", ""))
    kind = _kind_of(job)
    if "exceeded quota" in message:
        return "quota: " + message.partition("exceeded quota: ")[2], "kubectl describe resourcequota shows who uses it"
    if found := re.search(r"must specify ((?:limits|requests)\.[\w./,-]+)", message):
        return f"FailedCreate: {message}", _to_say(found[1].split(","), kind)
    if found := re.search(r"(maximum|minimum) ([\w./-]+) usage per (?:Container|Pod)", message):
        field = {"ephemeral-storage": "scratch"}.get(found[2], found[2])
        change = "lower" if found[1] == "maximum" else "raise"
        remedy = f"{change} [cluster.{kind}] {field} in pi05.toml; kubectl describe limitrange shows what is allowed"
        return f"FailedCreate: {message}", remedy
    return f"FailedCreate: {message}", "pi05ctl doctor names what is missing"


def _to_say(wanted: Sequence[str], kind: str) -> str:
    """Return the setting with which pods say what a quota wants to be told."""
    limits = [name.removeprefix("limits.") for name in wanted if name.startswith("limits.")]
    if not limits:
        return "a LimitRange with a default says it for all pods of the namespace"
    table = ", ".join(f'"{name}" = "..."' if "-" in name else f'{name} = "..."' for name in limits)
    return f"say it in pi05.toml: [cluster.{kind}] limits = {{ {table} }}"


def _pod(pod: Object, events: Sequence[Object]) -> _Pod:
    """Return what a pod says of itself, and events of it."""
    meta: Object = pod["metadata"]
    state: Object = _own(pod.get("status", {}).get("containerStatuses")).get("state", {})
    phase, why, remedy = _pod_phase(pod, state)
    if phase == "starting":
        phase, why, remedy = _being_made(pod, state, events)
    ended: Object = state.get("terminated") or {}
    running: Object = state.get("running") or ended
    return _Pod(
        name=meta["name"],
        shard=str(meta.get("annotations", {}).get("batch.kubernetes.io/job-completion-index", "0")),
        created=_seconds(meta["creationTimestamp"]) or 0.0,
        phase=phase,
        why=why,
        remedy=remedy,
        started=_seconds(running.get("startedAt")),
        exit_code=ended.get("exitCode"),
        event=_last_words(ended),
    )


def _own(containers: Iterable[Object] | None) -> Object:
    """Return the container that works, or its status; nothing before there is one."""
    empty: Object = {}
    return next((one for one in containers or () if one.get("name") == CONTAINER), empty)


def _being_made(pod: Object, state: Object, events: Sequence[Object]) -> tuple[Phase, str, str]:
    """Return what a pod waits for that has a node and no running container of ours."""
    for what, one in _others(pod):
        if held := _held(one.get("state", {})):
            return "pending", f"{what} {one['name']}: {held}", _DESCRIBE
    name = pod["metadata"]["name"]
    own = [event for event in events if event.get("involvedObject", {}).get("name") == name]
    last: Object = own[-1] if own else {}
    reason = str(last.get("reason", ""))
    if last.get("type") == "Warning" or reason.startswith("Failed"):
        return "pending", _said(reason, last), _DESCRIBE
    running = [one["name"] for what, one in _others(pod) if what == _INIT and "running" in one.get("state", {})]
    if running:
        return "starting", f"{_INIT} {running[-1]} is at work", ""
    if reason == "Pulling":
        return "starting", "its image is being pulled", ""
    if not state and not pod.get("spec", {}).get("nodeName") and _condition(pod, "PodScheduled") is None:
        scheduler = pod.get("spec", {}).get("schedulerName", "default-scheduler")
        return "pending", f"no scheduler has looked at it yet ({scheduler})", ""
    return "starting", "its node makes its containers", ""


def _others(pod: Object) -> Iterator[tuple[str, Object]]:
    """Yield the containers of a pod that are not ours, with what they are: init containers in their order first."""
    status = pod.get("status", {})
    for one in status.get("initContainerStatuses") or ():
        yield _INIT, one
    for one in status.get("containerStatuses") or ():
        if one.get("name") != CONTAINER:
            yield "container", one


def _held(state: Object) -> str:
    """Return what keeps a container from doing its part; empty when nothing does."""
    waiting: Object = state.get("waiting") or {}
    ended: Object = state.get("terminated") or {}
    if waiting.get("reason", "") not in _BEING_MADE:
        return _said(str(waiting["reason"]), waiting)
    return _end_of(ended) if ended.get("exitCode") else ""


def _end_of(ended: Object) -> str:
    """Return how a container that is not ours ended, in words."""
    last = str(ended.get("message") or "").strip().splitlines()
    return f"exit code {ended.get('exitCode')}" + (f": {last[-1]}" if last else "")


def _pod_phase(pod: Object, state: Object) -> tuple[Phase, str, str]:
    """Return a pod's phase with its reason and remedy."""
    status = pod.get("status", {})
    if status.get("phase") == "Succeeded":
        return "complete", "", ""
    if status.get("phase") == "Failed":
        return "failed", *_cause(pod, state)
    if pod["metadata"].get("deletionTimestamp"):
        return "stopping", _disruption(pod) or "is being stopped", ""
    if "running" in state:
        return "running", "", ""
    left = [one["name"] for _, one in _others(pod) if "running" in one.get("state", {})]
    if "terminated" in state and left:
        ended = _cause(pod, state)[0] if state["terminated"].get("exitCode") else "it has ended"
        return "stopping", f"{ended}, and its pod is kept by container {', '.join(left)}, which has to end, too", ""
    return _waiting(pod, state)


def _waiting(pod: Object, state: Object) -> tuple[Phase, str, str]:
    """Return why a pod does not run yet."""
    scheduled = _condition(pod, "PodScheduled") or {}
    if scheduled.get("status") == "False":
        reason, message = scheduled.get("reason", ""), str(scheduled.get("message") or "")
        if reason == "SchedulingGated":
            return "queued", message or "SchedulingGated: somebody else says when it may start", ""
        return (
            "pending",
            _said(str(reason), scheduled),
            "it starts when there is room",
        )
    waiting: Object = state.get("waiting") or {}
    reason = str(waiting.get("reason") or "")
    if reason.startswith(_NO_IMAGE):
        return "pending", _said(reason, waiting), "put the image there, or set [cluster.images] in pi05.toml"
    if reason not in _BEING_MADE:
        return "pending", _said(reason, waiting), _DESCRIBE
    return "starting", "", ""


def _cause(pod: Object, state: Object) -> tuple[str, str]:
    """Return what a failed pod died of and the remedy; see the module's table."""
    status: Object = pod["status"]
    ended: Object = state.get("terminated") or {}
    event = _last_words(ended)
    if disruption := _disruption(pod):
        return disruption, ""
    if reason := status.get("reason"):
        return _said(reason, status), ""
    if ended.get("reason") == "OOMKilled":
        remedy = f"raise [cluster.{_kind_of(pod)}] memory in pi05.toml and resume"
        return f"OOMKilled: needed more than {_memory_limit(pod)}", remedy
    if event is not None and event.kind == "failed" and event.message:
        return event.message, ""
    code = ended.get("exitCode")
    if not code and (beside := _failed_beside(pod)):
        return beside, _DESCRIBE
    if code is None:
        return "failed before its container was started", _DESCRIBE
    if code == TERMINATED:
        return "stopped by a signal", ""
    last = str(ended.get("message") or "").strip().splitlines()
    return f"exit code {code}" + (f": {last[-1]}" if last else ""), ""


def _kind_of(obj: Object) -> str:
    """Return which table of the settings a Job or pod is told by; a probe's that of the kind that it tries out."""
    labels: Object = obj["metadata"].get("labels", {})
    kind = str(labels.get("pi05.dev/kind", "train"))
    return str(labels.get("pi05.dev/task", "train")) if kind == "probe" else kind


def _failed_beside(pod: Object) -> str:
    """Return how a container that is not ours failed, and its pod with it; empty when none did."""
    for what, one in _others(pod):
        ended: Object = one.get("state", {}).get("terminated") or {}
        if ended.get("exitCode"):
            return f"{what} {one['name']}: {_end_of(ended)}"
    return ""


def _disruption(pod: Object) -> str:
    """Return what the cluster did to a pod, in words; empty when it did nothing."""
    condition = _condition(pod, "DisruptionTarget")
    if condition is None or condition.get("status") != "True":
        return ""
    reason = str(condition.get("reason", ""))
    words = _DISRUPTIONS.get(reason, reason)
    own = pod.get("status", {}).get("message") if reason == "TerminationByKubelet" else None
    return f"{words}: {own}" if own else words


def _last_words(ended: Object) -> Event | None:
    """Return the event in a termination message."""
    lines = str(ended.get("message") or "").splitlines()
    return next((event for line in reversed(lines) if (event := parse(line)) is not None), None)


def _restarts(job: Object | None) -> int:
    """Return how often a JobSet has replaced all its pods; their predecessors are gone."""
    return int((job or {}).get("status", {}).get("restarts") or 0)


def _retries(pods: Sequence[_Pod], restarts: int) -> str:
    """Return `retried once: OOMKilled` or `shard 3 retried twice: Evicted (node drain)`; empty without a retry."""
    dead = [pod for pod in pods if pod.phase == "failed"]
    if restarts:
        return f"all pods replaced {_times(restarts)}" + (f": {dead[-1].why}" if dead else "")
    if not dead:
        return ""
    last = dead[-1]
    times = _times(len([pod for pod in dead if pod.shard == last.shard]))
    shards = {pod.shard for pod in pods}
    which = f"shard {last.shard} " if len(shards) > 1 else ""
    return f"{which}retried {times}: {last.why}"


def _times(count: int) -> str:
    return _TIMES[count] if count < len(_TIMES) else f"{count} times"


def _conditions(obj: Object) -> dict[str, Object]:
    """Return the conditions that are true, by type."""
    found: Iterable[Object] = obj.get("status", {}).get("conditions") or ()
    return {condition["type"]: condition for condition in found if condition.get("status") == "True"}


def _condition(pod: Object, kind: str) -> Object | None:
    found: Iterable[Object] = pod.get("status", {}).get("conditions") or ()
    return next((condition for condition in found if condition.get("type") == kind), None)


def _said(reason: str, where: Object) -> str:
    message = " ".join(str(where.get("message") or "").split())
    return f"{reason}: {message}" if message else reason


def _memory_limit(pod: Object) -> str:
    limits = _own(pod.get("spec", {}).get("containers")).get("resources", {}).get("limits", {})
    return str(limits.get("memory", "its memory limit"))


def _seconds(text: str | None) -> float | None:
    """Return a Kubernetes time as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp() if text else None
