"""A training in real pods: FSDP over 8 devices, checkpoints in the bucket, a status that stays true throughout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pi05ctl.cluster.helm import CHART
from tests.cluster import runs
from tests.cluster.conftest import until
from tests.cluster.runs import small, status, submit, until_state, until_step

LONG = small(train__steps=100_000, train__save_every=100_000)


@pytest.fixture(scope="module")
def site(site, tmp_path_factory):
    runs.settings(site)
    with pytest.MonkeyPatch.context() as patch:
        runs.put_dataset(site, patch, tmp_path_factory.mktemp("data") / "dataset")
    return site


@pytest.fixture(scope="module")
def trained(site) -> str:
    """A training that was followed to its end."""
    run = submit(site, "train", "pushcube", *small())
    done = site.pi05ctl("wait", run, "--timeout", "400", seconds=420)
    assert done.returncode == 0, done.stderr + site.pi05ctl("logs", run).stdout[-3000:]
    return run


def test_it_asks_for_8_gpus_and_has_neither_rights_nor_a_token(site, trained):
    [pod] = site.pods(trained)
    spec, [container] = pod["spec"], pod["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert spec["automountServiceAccountToken"] is False
    assert not any("serviceaccount" in mount["mountPath"] for mount in container["volumeMounts"])
    assert (
        site.kubectl("auth", "can-i", "--list", "--as", f"system:serviceaccount:{site.namespace}:pi05-job").count(
            "pods"
        )
        == 0
    )


def test_its_state_was_sharded_over_8_devices(site, trained):
    assert "{'data': 1, 'fsdp': 8}" in site.pi05ctl("logs", trained).stdout


def test_the_verdict_outlives_the_pod_the_job_and_the_release(site, trained):
    before = status(site, trained)
    assert (before["state"], before["step"], before["checkpoint"]) == ("Done", 20, 20)
    log = site.pi05ctl("logs", trained).stdout
    assert "Step 20: loss=" in log
    site.kubectl("delete", "pods", "-l", f"pi05.dev/run={trained}")
    assert status(site, trained)["state"] == "Done"
    site.pi05ctl("gc", "-y", "--older-than", "0s")
    assert site.get("jobs", "-l", f"pi05.dev/run={trained}")["items"] == []
    after = status(site, trained)
    assert (after["state"], after["step"], after["checkpoint"]) == ("Done", 20, 20)
    assert after["metrics"]["loss"] == pytest.approx(before["metrics"]["loss"])
    assert site.pi05ctl("logs", trained).stdout == log


def test_the_checkpoint_is_in_the_bucket_and_every_checksum_agrees(site, trained, monkeypatch):
    assert runs.storage(site, monkeypatch).verify(f"runs/{trained}/checkpoints/20") == []


def test_submitting_it_again_finds_it_done(site, trained):
    assert submit(site, "train", "pushcube", *small(), outcome="done") == trained


def test_two_submissions_at_the_same_moment_are_one_run(site):
    both = [site.start("submit", "train", "pushcube", *LONG, "-o", "json") for _ in range(2)]
    outcomes = [json.loads(runs.ended(process)[1])[0] for process in both]
    assert {one["outcome"] for one in outcomes} == {"started", "running"}
    assert len({one["run"] for one in outcomes}) == 1
    assert len(site.get("jobs")["items"]) == 1


@pytest.fixture(scope="module")
def long(site) -> str:
    """The name of a training that does not end by itself."""
    return runs.name(site, "train", "pushcube", *LONG)


def test_while_it_runs_status_has_progress_speed_and_the_time_left(site, long):
    now = until_step(site, long, 12)
    assert now["total"] == 100_000
    assert now["seconds_per_step"] > 0
    assert now["left"] > 0
    row = site.pi05ctl("status").stdout
    assert "/100,000" in row
    assert "loss" in row


def test_an_api_server_that_restarts_is_waited_for(site, long):
    if not site.cluster.own:
        pytest.skip("this cluster is not ours to break (PI05_TEST_KUBECONFIG)")
    waiting = site.start("wait", long, "--timeout", "25")
    site.cluster.stop("apiserver")
    gone = site.pi05ctl("status")
    assert gone.returncode == 3
    assert "cannot be reached" in gone.stderr or "unreachable" in gone.stderr
    site.cluster.start("apiserver")
    until_state(site, long, "Running", seconds=60)
    assert runs.ended(waiting)[0] == 124


def test_cancel_saves_first_and_resume_goes_on_from_there(site, monkeypatch, long):
    run = long
    done = site.pi05ctl("cancel", run)
    assert done.returncode == 0, done.stderr
    assert status(site, run)["state"] == "Cancelled"
    [saved] = runs.storage(site, monkeypatch).artefacts(f"runs/{run}/checkpoints")
    assert int(saved) > 12
    assert site.pi05ctl("resume", run).returncode == 0
    until_step(site, run, int(saved) + 1)
    assert f"resuming from checkpoint {saved}" in site.pi05ctl("logs", run).stdout


def test_a_job_that_somebody_deletes_is_told_and_can_be_resumed(site, long):
    run = long
    site.kubectl("delete", "job", run)
    now = until_state(site, run, "Failed", why="its Job is gone")
    assert "stopped by a signal" in now["why"]
    assert "resume" in now["remedy"]
    assert submit(site, "train", "pushcube", *LONG, outcome="resumed") == run
    until_step(site, run, 1)


def test_cancel_now_does_not_wait(site, long):
    done = site.pi05ctl("cancel", long, "--now")
    assert done.returncode == 0, done.stderr
    assert status(site, long)["state"] == "Cancelled"
    assert site.pods(long) == []


def test_what_an_interrupted_helm_left_is_no_obstacle(site, long):
    helm = [str(Path(sys.executable).with_name("helm")), "--namespace", site.namespace]
    install = [*helm, "install", long, str(CHART), "--values", "-", "--wait", "--wait-for-jobs"]
    hand = subprocess.Popen(install, stdin=subprocess.PIPE, env=site.cluster.environment())
    assert hand.stdin
    hand.stdin.write(runs.values(site, "train", "pushcube", *LONG))
    hand.stdin.close()
    until("Helm to make the Job", lambda: site.get("jobs", "-l", f"pi05.dev/run={long}")["items"], 60)
    hand.kill()
    hand.wait()

    def state() -> str:
        listed = subprocess.run(
            [*helm, "list", "-a", "-o", "json"], env=site.cluster.environment(), capture_output=True
        )
        return next(release["status"] for release in json.loads(listed.stdout) if release["name"] == long)

    assert state() == "pending-install"
    site.kubectl("delete", "job", long, "--cascade=foreground")  # as if Helm had not come so far
    assert submit(site, "train", "pushcube", *LONG, outcome="resumed") == long
    assert state() == "deployed"
    until_step(site, long, 1)
    assert site.pi05ctl("cancel", long, "--now").returncode == 0


HOOKS = {
    "labels": {"team": "robots"},
    "annotations": {"karpenter.sh/do-not-disrupt": "true"},
    "env_from": [{"secretRef": {"name": "tokens"}}],
    "volumes": [{"name": "notes", "configMap": {"name": "notes"}}],
    "volume_mounts": [{"name": "notes", "mountPath": "/notes"}],
    "security_context": {  # a user of the cluster's choice, whom the image does not know: OpenShift
        "runAsNonRoot": True,
        "runAsUser": 1_000_650_000,
        "fsGroup": 1_000_650_000,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


def test_two_nodes_train_as_one_with_all_that_an_admin_asks_for(site, trained, monkeypatch):
    one = runs.losses(site, trained)
    site.kubectl("create", "secret", "generic", "tokens", "--from-literal=TOKEN=whisper-4711")
    site.kubectl("create", "configmap", "notes", "--from-literal=note=read me")
    runs.settings(site, devices=4, train={"nodes": 2, "gpus": 4, **HOOKS})
    try:
        run = submit(site, "train", "pushcube", *small(), "--again")
        assert len(until("two pods", lambda: len(site.pods(run)) == 2 and site.pods(run))) == 2
        until_state(site, run, "Done", seconds=400)
    finally:
        runs.settings(site)
    for pod in site.pods(run):
        assert pod["metadata"]["labels"]["team"] == "robots"
        assert pod["spec"]["securityContext"]["runAsUser"] == HOOKS["security_context"]["runAsUser"]
    told = site.get("configmap", run)["data"]["job.json"]
    assert "whisper-4711" not in told + site.pi05ctl("logs", run).stdout
    assert b"whisper-4711" not in runs.storage(site, monkeypatch).read(f"runs/{run}/job.json")
    two = runs.losses(site, run)
    assert two.keys() == one.keys()
    assert [two[step] for step in sorted(two)] == pytest.approx([one[step] for step in sorted(one)], rel=1e-4)
