"""What Jobs, pods and events of a cluster mean. The objects have the fields that a real API server sent."""

from dataclasses import replace

import pytest

from pi05.events import Event
from pi05ctl.runs.facts import ABSENT, observe
from pi05ctl.runs.status import STALLED_AFTER, Snapshot, fold
from pi05ctl.spec.runspec import RunSpec

RUN = "train-pushcube-a8c1f0"
START = "2026-11-24T10:00:00Z"
STARTED = 1_795_514_400.0
NOW = STARTED + 100
WORDS = Event(run=RUN, kind="failed", time=STARTED + 50, message="the loss is not finite", exit_code=66)


def job(*conditions: dict, **fields) -> dict:
    meta = {"name": RUN, "uid": "1", "creationTimestamp": START} | fields.pop("metadata", {})
    return {"metadata": meta, "spec": fields.pop("spec", {}), "status": {"conditions": list(conditions), **fields}}


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> dict:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def pod(
    phase: str, state: dict, *conditions: dict, index: int = 0, after: int = 0, metadata: dict | None = None, **status
):
    meta = {
        "name": f"{RUN}-{index}-{after}",
        "creationTimestamp": f"2026-11-24T10:00:{after:02d}Z",
        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        "labels": {"pi05.dev/kind": "train"},
    }
    limits = {"limits": {"memory": "256Gi"}}
    return {
        "metadata": meta | (metadata or {}),
        "spec": {"containers": [{"name": "istio-proxy"}, {"name": "pi05", "resources": limits}]},
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": "istio-proxy", "state": RUNNING}, {"name": "pi05", "state": state}],
            "conditions": list(conditions),
            **status,
        },
    }


def ended(code: int, reason: str = "Error", message: str = "") -> dict:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "startedAt": START}}


RUNNING = {"running": {"startedAt": START}}
COMPLETE = job(condition("Complete"))
DRAINED = condition("DisruptionTarget", "EvictionByEvictionAPI", "Eviction API: evicting")


def failed(reason: str, message: str = "") -> dict:
    return job(condition("Failed", reason, message))


CASES = {
    "complete": (COMPLETE, [pod("Succeeded", ended(0, "Completed"))], "complete", ""),
    "its Job was just created": (job(), [], "pending", "waits for its pods"),
    "Kueue holds it back": (job(spec={"suspend": True}), [], "queued", "suspended"),
    "no room": (
        job(active=1),
        [pod("Pending", {}, condition("PodScheduled", "Unschedulable", "0/1 nodes are available", "False"))],
        "pending",
        "Unschedulable: 0/1 nodes are available",
    ),
    "no image": (
        job(active=1),
        [pod("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x"}})],
        "pending",
        "ImagePullBackOff: Back-off pulling image x",
    ),
    "being created": (
        job(active=1),
        [pod("Pending", {"waiting": {"reason": "ContainerCreating"}})],
        "starting",
        "its node",
    ),
    "running": (job(active=1), [pod("Running", RUNNING)], "running", ""),
    "two run and one waits for room": (
        job(active=3),
        [
            pod("Running", RUNNING),
            pod("Running", RUNNING, index=1),
            pod("Pending", {}, condition("PodScheduled", "Unschedulable", "no", "False"), index=2),
        ],
        "running",
        "1 of 3 pods: Unschedulable: no",
    ),
    "drained now": (
        job(active=1),
        [pod("Running", RUNNING, DRAINED, metadata={"deletionTimestamp": START})],
        "stopping",
        "Evicted (node drain)",
    ),
    "uninstalled, its pod still saves": (
        None,
        [pod("Running", RUNNING, metadata={"deletionTimestamp": START})],
        "stopping",
        "its Job is gone",
    ),
    "gone": (None, [], "absent", ""),
    "out of memory": (
        failed("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
        [pod("Failed", ended(137, "OOMKilled"), after=second) for second in (0, 1)],
        "failed",
        "OOMKilled: needed more than 256Gi (BackoffLimitExceeded)",
    ),
    "evicted by its node is not out of memory": (
        failed("BackoffLimitExceeded"),
        [pod("Failed", ended(137, "Error"), reason="Evicted", message="low on ephemeral-storage")],
        "failed",
        "Evicted: low on ephemeral-storage (BackoffLimitExceeded)",
    ),
    "preempted is not out of memory either": (
        failed("BackoffLimitExceeded"),
        [pod("Failed", ended(137, "OOMKilled"), condition("DisruptionTarget", "PreemptionByScheduler"))],
        "failed",
        "Preempted (BackoffLimitExceeded)",
    ),
    "its own words": (
        failed("PodFailurePolicy", "Container pi05 failed with exit code 66"),
        [pod("Failed", ended(66, message=WORDS.line()))],
        "failed",
        "the loss is not finite",
    ),
    "no words": (
        failed("BackoffLimitExceeded"),
        [pod("Failed", ended(1, message="Traceback ...\nImportError: no jax"))],
        "failed",
        "exit code 1: ImportError: no jax (BackoffLimitExceeded)",
    ),
    "one shard": (
        job(condition("Failed", "FailedIndexes"), failedIndexes="2"),
        [pod("Succeeded", ended(0), index=1), pod("Failed", ended(65, message=WORDS.line()), index=2)],
        "failed",
        "shard 2: the loss is not finite",
    ),
    "a shard that failed is not explained by one that was tried again": (
        job(condition("Failed", "FailedIndexes"), failedIndexes="1,3-5"),
        [
            pod("Failed", ended(65, message=WORDS.line()), index=4),
            pod("Failed", ended(137, "OOMKilled"), index=0, after=5),
            pod("Succeeded", ended(0), index=0, after=9),
        ],
        "failed",
        "shard 1,3-5: the loss is not finite",
    ),
    "took too long": (
        failed("DeadlineExceeded", "Job was active longer than specified deadline"),
        [],
        "failed",
        "DeadlineExceeded: Job was active longer",
    ),
    "pods are gone": (failed("BackoffLimitExceeded", "no more"), [], "failed", "BackoffLimitExceeded: no more"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_objects_become_a_phase_and_a_reason(case):
    given, pods, phase, why = case
    facts = observe(given, pods)
    assert facts.phase == phase
    assert why in facts.why if why else facts.why == ""


def test_a_quota_is_told_in_kubernetes_own_words():
    message = 'Error creating: pods "x" is forbidden: exceeded quota: gpus, requested: nvidia.com/gpu=8, limited: 8'
    event = {"reason": "FailedCreate", "message": message, "lastTimestamp": START}
    facts = observe(job(), [], [event])
    assert (facts.phase, facts.why) == ("pending", "quota: gpus, requested: nvidia.com/gpu=8, limited: 8")


def test_the_exit_code_is_that_of_the_shard_that_failed():
    pods = [pod("Failed", ended(65), index=2), pod("Succeeded", ended(0), index=1, after=5)]
    assert observe(job(condition("Failed", "FailedIndexes"), failedIndexes="2"), pods).exit_code == 65


@pytest.mark.parametrize(
    ("reason", "message", "phase", "why"),
    [
        ("FailedMount", 'secret "x" not found', "pending", 'FailedMount: secret "x" not found'),
        ("FailedCreatePodSandBox", "no network", "pending", "FailedCreatePodSandBox: no network"),
        ("Pulling", 'Pulling image "train"', "starting", "its image is being pulled"),
        ("Pulled", "Successfully pulled", "starting", "its node makes its containers"),
    ],
)
def test_what_a_starting_pod_waits_for_is_told_by_its_events(reason: str, message: str, phase: str, why: str):
    waits = pod("Pending", {"waiting": {"reason": "ContainerCreating"}})
    about = {"involvedObject": {"name": waits["metadata"]["name"]}}
    others = {"involvedObject": {"name": "another"}, "reason": "FailedMount", "message": "not ours"}
    facts = observe(
        job(active=1),
        [waits],
        [{"reason": "Scheduled", **about}, {**about, "reason": reason, "message": message}, others],
    )
    assert (facts.phase, facts.why) == (phase, why)


def test_the_remedy_of_a_deadline_is_a_key_that_exists():
    late = job(condition("Failed", "DeadlineExceeded", "too long"), metadata={"labels": {"pi05.dev/kind": "train"}})
    assert observe(late, []).remedy == "raise [cluster.train] deadline_seconds in pi05.toml and resume"


def test_kueues_own_words_are_told():
    why = observe(job(spec={"suspend": True}), [], queue="Kueue: insufficient quota for nvidia.com/gpu").why
    assert why == "Kueue: insufficient quota for nvidia.com/gpu"


def test_retries_are_told_apart_by_cause_and_counted():
    dead = pod("Failed", ended(137, "OOMKilled"))
    facts = observe(job(active=1), [dead, pod("Running", RUNNING, after=5)])
    assert (facts.attempt, facts.retries) == (2, "retried once: OOMKilled: needed more than 256Gi")
    shards = [
        pod("Failed", ended(143), DRAINED, index=3),
        pod("Failed", ended(143), DRAINED, index=3, after=1),
        pod("Running", RUNNING, index=3, after=5),
        pod("Running", RUNNING, index=0, after=5),
    ]
    assert observe(job(active=2), shards).retries == "shard 3 retried twice: Evicted (node drain)"


def seen(**fields) -> Snapshot:
    spec = RunSpec(kind="train", task="pushcube", preset="tiny", target="cluster")
    return Snapshot(**{"run": RUN, "spec": spec, "created": STARTED, "facts": ABSENT, **fields})


def event(kind: str, after: float, **fields) -> Event:
    return Event(run=RUN, kind=kind, time=STARTED + after, **fields)


RUNS = observe(job(active=1), [pod("Running", RUNNING)])
AGAIN = observe(job(active=1), [pod("Failed", ended(1)), pod("Running", RUNNING, after=5)])
PROGRESS = event("progress", 90, step=50, total=100)
FINISHED = event("finished", 95)

STATES = {
    "complete outranks what it said": (seen(facts=observe(COMPLETE, []), verdicts=(WORDS,)), "Done", ""),
    "complete and silent": (seen(facts=observe(COMPLETE, [])), "Done", ""),
    "failed outranks what it said": (
        seen(facts=observe(failed("BackoffLimitExceeded", "no more"), []), verdicts=(FINISHED,)),
        "Failed",
        "no more",
    ),
    "queued": (seen(facts=observe(job(spec={"suspend": True}), [])), "Queued", "suspended"),
    "pending": (seen(facts=observe(job(), [])), "Pending", "waits for its pods"),
    "no event yet": (seen(facts=RUNS), "Starting", ""),
    "no event yet, again": (seen(facts=AGAIN), "Retrying", "retried once: exit code 1"),
    "an earlier attempt's event": (seen(facts=RUNS, events=(event("progress", -5, step=1, total=2),)), "Starting", ""),
    "running": (seen(facts=RUNS, events=(PROGRESS,)), "Running", ""),
    "warned": (
        seen(facts=RUNS, events=(PROGRESS, event("warning", 92, message="bucket away"))),
        "Running",
        "bucket away",
    ),
    "said finished but its pod still runs": (seen(facts=RUNS, events=(FINISHED,)), "Running", ""),
    "cancelling": (
        seen(facts=replace(RUNS, phase="stopping"), events=(PROGRESS,), cancelled=NOW),
        "Running",
        "cancelling; it saves first",
    ),
    "gone and finished": (seen(verdicts=(FINISHED,)), "Done", ""),
    "gone and cancelled": (seen(verdicts=(PROGRESS,), cancelled=NOW), "Cancelled", ""),
    "gone and finished although cancelled": (seen(verdicts=(FINISHED,), cancelled=NOW), "Done", ""),
    "gone and failed": (seen(verdicts=(WORDS,)), "Failed", "the loss is not finite"),
    "gone without a word": (seen(verdicts=(PROGRESS,)), "Failed", "its Job is gone"),
    "gone before it said anything": (seen(), "Failed", "its Job is gone"),
    "submitted a moment ago": (seen(submitted=NOW - 5), "Starting", "submitted 5 s ago, its Job is being made"),
    "submitted again after it failed": (seen(submitted=NOW - 5, verdicts=(WORDS,)), "Starting", "is being made"),
    "submitted a moment ago, and failed since": (
        seen(submitted=WORDS.time - 5, verdicts=(WORDS,)),
        "Failed",
        "the loss is not finite",
    ),
    "submitted long ago": (seen(submitted=NOW - 130), "Failed", "its Job is gone"),
    "submitted and cancelled": (seen(submitted=NOW - 5, cancelled=NOW), "Cancelled", ""),
    "replaced as one": (
        seen(facts=observe(job(restarts=2), [pod("Running", RUNNING)])),
        "Retrying",
        "all pods replaced twice",
    ),
    "gone, one of two shards finished": (
        seen(verdicts=(event("finished", 9, shard=0, shards=2),)),
        "Failed",
        "its Job is gone",
    ),
    "gone, both shards finished": (
        seen(verdicts=tuple(event("finished", 9, shard=i, shards=2) for i in range(2))),
        "Done",
        "",
    ),
}


@pytest.mark.parametrize("case", STATES.values(), ids=STATES.keys())
def test_facts_become_a_state(case):
    snapshot, state, why = case
    status = fold(snapshot, NOW)
    assert status.state == state
    assert why in status.why if why else status.why == ""


def test_a_silent_pod_is_stalled():
    status = fold(seen(facts=RUNS, events=(PROGRESS,)), PROGRESS.time + STALLED_AFTER + 1)
    assert (status.state, status.remedy) == ("Stalled", f"pi05ctl logs {RUN}")


def test_a_run_in_shards_is_one_run():
    said = [
        event(
            "progress",
            10 + 20 * n,
            shard=i,
            shards=2,
            step=5 * n,
            total=25,
            unit="episodes",
            metrics={"success_once": rate},
        )
        for n in (1, 2)
        for i, rate in enumerate((1.0, 0.5))
    ]
    status = fold(seen(facts=RUNS, events=tuple(said)), NOW)
    assert (status.step, status.total, status.unit) == (20, 50, "episodes")
    assert status.metrics["success_once"] == pytest.approx(0.75)
    assert status.seconds_per_step == pytest.approx(2.0)  # each does 5 in 20 s
    assert status.left == pytest.approx(60.0)


def test_the_interval_of_shards_is_that_of_all_episodes():
    rates = {"success_once": 1.0, "wilson_low": 0.9, "wilson_high": 1.0, "episodes": 25.0}
    said = [
        event("progress", 10, shard=i, shards=2, step=25, total=25, metrics=rates | {"success_once": rate})
        for i, rate in enumerate((1.0, 0.6))
    ]
    metrics = fold(seen(facts=observe(COMPLETE, []), events=tuple(said)), NOW).metrics
    assert metrics["episodes"] == 50
    assert metrics["success_once"] == pytest.approx(0.8)
    assert (round(metrics["wilson_low"], 3), round(metrics["wilson_high"], 3)) == (0.670, 0.888)
