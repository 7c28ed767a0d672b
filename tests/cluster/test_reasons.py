"""Why a run waits or failed, in Kubernetes' own words, and what becomes of it: each provoked on a real cluster."""

import pytest

from pi05 import tasks
from tests.cluster import runs
from tests.cluster.conftest import until
from tests.cluster.harness import kwok
from tests.cluster.runs import small, status, submit, until_state, until_step

LONG = {"train__steps": 100_000, "train__save_every": 100_000}


@pytest.fixture(scope="module")
def site(site, tmp_path_factory):
    runs.settings(site)
    folder = tmp_path_factory.mktemp("data") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        for task in tasks.TASKS:
            runs.put_dataset(site, patch, folder, task, **LONG)
    return site


@pytest.fixture(autouse=True)
def _settings(site):
    yield
    runs.settings(site)
    for name, row in runs.table(site).items():
        if row["state"] not in ("Done", "Failed", "Cancelled"):
            site.pi05ctl("cancel", name, "--now")


def test_six_trainings_queue_for_eight_gpus(site):
    # Data of another task would end the first one, so none may start: a pod that nobody sees has the GPUs.
    done = site.pi05ctl("submit", "train", "all", *small(**LONG), "--set", "train.seed=6")
    assert done.returncode == 0, done.stderr
    rows = until(
        "all six to be known",
        lambda: len(found := runs.table(site)) == 6 and all(_settled(r) for r in found.values()) and found,
    )
    waiting = [row for row in rows.values() if row["state"] == "Pending"]
    assert len(waiting) >= 4
    assert all("Unschedulable: 0/" in row["why"] and "Insufficient nvidia.com/gpu" in row["why"] for row in waiting)


def _settled(row: dict) -> bool:
    return row["state"] != "Pending" or "Unschedulable" in row["why"]


def test_a_quota(site):
    site.kubectl("create", "quota", "gpus", "--hard=requests.nvidia.com/gpu=4")
    try:
        run = submit(site, "train", "pushcube", *small(**LONG, train__seed=1))
        now = until_state(site, run, "Pending", why="quota: gpus")
        assert "requested: requests.nvidia.com/gpu=8" in now["why"]
    finally:
        site.kubectl("delete", "quota", "gpus")
    until_step(site, run, 1)  # the Job controller tries again by itself


def test_an_image_that_is_not_there(site):
    name = site.images["train"].rpartition(":")[0]
    runs.settings(site, images=site.images | {"train": f"{name}:nowhere"})
    run = submit(site, "train", "pushcube", *small(**LONG, train__seed=2))
    now = until_state(site, run, "Pending", why="ImagePull")
    assert f"{name}:nowhere" in now["why"]
    assert "[cluster.images]" in now["remedy"]


def test_a_bad_configuration_is_not_tried_again(site):
    runs.settings(site, devices=3)
    run = submit(site, "train", "pushcube", *small(**LONG, train__seed=3))
    now = until_state(site, run, "Failed")
    assert "batch_size 8 is not divisible by 3 devices" in now["why"]
    assert (now["exit_code"], now["attempt"]) == (64, 1)


def test_too_little_memory_is_tried_again_and_then_told(site):
    runs.settings(site, train={"memory": "80Mi", "shm": "8Mi", "retries": 1})
    run = submit(site, "train", "pushcube", *small(**LONG, train__seed=4))
    retried = until_state(site, run, "Starting", "Retrying", "Running", "Failed", why="OOMKilled")
    assert retried["attempt"] >= 1
    now = until_state(site, run, "Failed", seconds=200)
    assert "OOMKilled: needed more than 80Mi" in now["why"]
    assert "BackoffLimitExceeded" in now["why"]
    assert "raise [cluster.train] memory" in now["remedy"]
    assert now["attempt"] == 2


def test_a_drained_node_costs_no_retry_and_loses_nothing(site, monkeypatch):
    runs.settings(site, train={"retries": 1})  # fewer than the drains below
    run = submit(site, "train", "pushcube", *small(**LONG, train__seed=5))
    for _ in range(2):
        until_step(site, run, 3)
        [pod] = [pod["metadata"]["name"] for pod in site.pods(run) if pod["status"]["phase"] == "Running"]
        runs.evict(site, pod)
        until("the pod to be replaced", lambda pod=pod: pod not in _names(site, run) and _names(site, run))
        saved = max(int(step) for step in runs.storage(site, monkeypatch).artefacts(f"runs/{run}/checkpoints"))
        now = until_step(site, run, saved + 1)
    assert now["state"] == "Running"
    log = site.pi05ctl("logs", run).stdout
    assert log.count("resuming from checkpoint") == 2
    assert log.count("==> ") == 3


def _names(site, run: str) -> list[str]:
    return [pod["metadata"]["name"] for pod in site.pods(run)]


def test_a_lost_node_is_replaced(site):
    if not site.cluster.own:
        pytest.skip("this cluster's nodes are not ours to lose (PI05_TEST_KUBECONFIG)")
    kwok.up(nodes=1)
    try:
        toleration = [{"key": kwok.TAINT, "operator": "Exists"}]
        selector = {"pi05.dev/test-node": "fake"}
        runs.settings(site, tolerations=toleration, train={"node_selector": selector})
        run = submit(site, "train", "pushcube", *small(**LONG, train__seed=7))
        until("its pod to run", lambda: [p for p in site.pods(run) if p["status"]["phase"] == "Running"])
        before = _names(site, run)
    finally:
        kwok.down()  # the Node object goes, as when a cloud has taken the machine away
    until("another pod", lambda: set(_names(site, run)) - set(before), seconds=120)
    now = until_state(site, run, "Pending", why="Unschedulable")
    assert "its node is gone" in now["why"] or now["attempt"] >= 1
    assert status(site, run)["state"] == "Pending"
