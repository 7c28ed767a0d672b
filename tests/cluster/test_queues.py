"""Kueue and JobSet, both real: what runs do in a queue and what status says of it, and several nodes as one gang."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.cluster import runs
from tests.cluster.conftest import until
from tests.cluster.runs import small, status, submit, until_state, until_step

OVERLAY = "kueue"
LONG = {"train__steps": 100_000, "train__save_every": 100_000}
API = "kueue.x-k8s.io/v1beta2"


@pytest.fixture(scope="module")
def site(site, tmp_path_factory):
    for name, value in (("low", 1), ("high", 100)):
        made = {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}
        site.cluster.apply(made | {"description": "of a test"})
    _change_queue(site, quota(8), preemption={"withinClusterQueue": "LowerPriority"})
    runs.settings(site, queue="pi05")
    with pytest.MonkeyPatch.context() as patch:
        runs.put_dataset(site, patch, tmp_path_factory.mktemp("data") / "dataset", **LONG)
    return site


@pytest.fixture(autouse=True)
def _calm(site):
    yield
    runs.settings(site, queue="pi05")
    for name, row in runs.table(site).items():
        if row["state"] not in ("Done", "Failed", "Cancelled"):
            site.pi05ctl("cancel", name, "--now")


def quota(gpus: int, borrow: int | None = None) -> list[dict]:
    """Return resourceGroups as the overlay has them, but for the GPUs."""
    plenty = {"cpu": "512", "memory": "4Ti", "ephemeral-storage": "8Ti"}
    amounts = [{"name": name, "nominalQuota": amount} for name, amount in plenty.items()]
    limit = {} if borrow is None else {"borrowingLimit": str(borrow)}
    amounts.append({"name": "nvidia.com/gpu", "nominalQuota": str(gpus)} | limit)
    return [{"coveredResources": [*plenty, "nvidia.com/gpu"], "flavors": [{"name": "pi05", "resources": amounts}]}]


def _change_queue(site, groups: list[dict], **spec: object) -> None:
    patch = json.dumps({"spec": {"resourceGroups": groups, **spec}})
    site.cluster.kubectl("patch", "clusterqueues.kueue.x-k8s.io", "pi05", "--type=merge", "-p", patch)


def workload(site, run: str) -> dict:
    """Return what Kueue has made of a run."""
    found = site.get("workloads.kueue.x-k8s.io")["items"]
    return next(one for one in found if one["metadata"]["ownerReferences"][0]["name"] == run)


# ---- In a queue ------------------------------------------------------------------------------------------------------
def test_a_second_run_waits_for_the_first_ones_quota_and_then_starts(site):
    first = submit(site, "train", "pushcube", *small(**LONG, train__seed=1))
    until_step(site, first, 1)
    second = submit(site, "train", "pushcube", *small(**LONG, train__seed=2))
    now = until_state(site, second, "Queued", why="Kueue: ")
    assert "insufficient unused quota for nvidia.com/gpu in flavor pi05, 8 more needed" in now["why"]
    assert site.pods(second) == []
    assert site.pi05ctl("cancel", first, "--now").returncode == 0
    until_step(site, second, 1)


def test_a_run_that_outranks_another_takes_its_place_which_then_goes_on_from_its_checkpoint(site, monkeypatch):
    runs.settings(site, queue="pi05", queue_priority="low")
    low = submit(site, "train", "pushcube", *small(**LONG, train__seed=3))
    until_step(site, low, 3)
    runs.settings(site, queue="pi05", queue_priority="high")
    high = submit(site, "train", "pushcube", *small(**LONG, train__seed=4))
    now = until_state(site, low, "Queued", seconds=120, why="Kueue: ")
    assert now["exit_code"] in (None, 143)
    until_step(site, high, 1)
    [saved] = runs.storage(site, monkeypatch).artefacts(f"runs/{low}/checkpoints")
    assert site.pi05ctl("cancel", high, "--now").returncode == 0
    until_step(site, low, int(saved) + 1)
    assert f"resuming from checkpoint {saved}" in site.pi05ctl("logs", low).stdout


def test_a_run_that_an_admin_puts_aside_says_so_and_starts_again_when_it_may(site):
    run = submit(site, "train", "pushcube", *small(**LONG, train__seed=5))
    until_step(site, run, 1)
    name = workload(site, run)["metadata"]["name"]
    site.kubectl("patch", "workloads.kueue.x-k8s.io", name, "--type=merge", "-p", '{"spec": {"active": false}}')
    now = until_state(site, run, "Queued", seconds=90, why="Kueue: ")
    assert "deactivated" in now["why"]
    site.kubectl("patch", "workloads.kueue.x-k8s.io", name, "--type=merge", "-p", '{"spec": {"active": true}}')
    until_state(site, run, "Running", seconds=120)


def test_a_queue_may_borrow_what_another_of_its_cohort_does_not_use(site):
    other = {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": "others"}}
    site.cluster.apply(other | {"spec": {"cohortName": "lab", "namespaceSelector": {}, "resourceGroups": quota(4)}})
    try:
        _change_queue(site, quota(4, borrow=0), cohortName="lab")
        run = submit(site, "train", "pushcube", *small(**LONG, train__seed=6))
        now = until_state(site, run, "Queued", why="Kueue: ")
        assert "nvidia.com/gpu" in now["why"]
        _change_queue(site, quota(4, borrow=4), cohortName="lab")
        until_step(site, run, 1)
    finally:
        _change_queue(site, quota(8), cohortName=None)
        site.cluster.kubectl("delete", "clusterqueues.kueue.x-k8s.io", "others", "--timeout=60s", "--wait=false")


# ---- Several nodes ---------------------------------------------------------------------------------------------------
@pytest.fixture
def gang(site):
    _gang(site, retries=1)
    return site


def _gang(site, retries: int) -> None:
    train = {"nodes": 2, "gpus": 4, "jobset": True, "retries": retries}
    runs.settings(site, devices=4, queue="pi05", train=train)


def _uids(site, run: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in site.pods(run)}


def _process(run: str, number: int) -> int:
    """Return the process of a pod, which this machine sees too."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode().split("\0")
            if f"--process={number}" in words and any(word.startswith(f"--coordinator={run}") for word in words):
                return int(path.parent.name)
    raise AssertionError(f"no process {number} of {run}")


def jobset(site, run: str) -> dict:
    return site.get("jobset", run)


def test_a_jobset_is_admitted_whole_and_replaced_whole(gang):
    _change_queue(gang, quota(4))
    run = submit(gang, "train", "pushcube", *small(**LONG, train__seed=7))
    now = until_state(gang, run, "Queued", why="Kueue: ")
    assert "nvidia.com/gpu" in now["why"]
    assert gang.pods(run) == []
    _change_queue(gang, quota(8))
    until_step(gang, run, 3)
    before = _uids(gang, run)
    assert len(before) == 2
    os.kill(_process(run, 1), signal.SIGKILL)
    until("all pods to be new", lambda: len(now := _uids(gang, run)) == 2 and not before & now)
    now = until_step(gang, run, 3, seconds=200)
    assert jobset(gang, run)["status"]["restarts"] == 1
    assert (now["attempt"], now["state"]) == (2, "Running")


def test_an_evicted_pod_of_a_gang_costs_no_retry(gang, monkeypatch):
    _gang(gang, retries=0)
    run = submit(gang, "train", "pushcube", *small(**LONG, train__seed=8))
    until_step(gang, run, 3, seconds=200)
    pod = gang.pods(run)[0]["metadata"]["name"]
    runs.evict(gang, pod)
    until("the pod to be replaced", lambda: pod not in {p["metadata"]["name"] for p in gang.pods(run)})
    now = until_step(gang, run, 3, seconds=200)
    assert now["state"] == "Running"
    counted = jobset(gang, run)["status"]
    assert counted.get("restartsCountTowardsMax", 0) == 0
    saved = runs.storage(gang, monkeypatch).artefacts(f"runs/{run}/checkpoints")
    assert saved


def test_a_gang_that_is_done_is_done(gang):
    run = submit(gang, "train", "pushcube", *small(train__seed=9))
    now = until_state(gang, run, "Done", "Failed", seconds=300)
    assert (now["state"], now["step"]) == ("Done", 20)
    assert status(gang, run)["state"] == "Done"
    gang.pi05ctl("gc", "-y", "--older-than", "0s")
    assert gang.get("jobsets")["items"] == []
    assert status(gang, run)["state"] == "Done"
