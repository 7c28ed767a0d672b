"""Pods as clusters make them: sidecars, init containers, mounts, quotas. Comments name the public reports."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from pi05ctl.cli import main as cli
from tests.wild.command import pi05ctl
from tests.wild.server import cluster, serving

SCRIPT = """#!/bin/sh
case "$1" in list) echo '[]' ;; version) echo v3.17.3 ;; *) cat >/dev/null; echo ok ;; esac
"""
"""A Helm that accepts every release and remembers none."""
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
REFUSED = 'Error creating: pods "x-0-" is forbidden: '
Object = dict[str, Any]


def at(seconds: int) -> str:
    return (NOW - datetime.timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


def job(run: str, *conditions: Object) -> Object:
    labels = {"app.kubernetes.io/part-of": "pi05", "pi05.dev/run": run, "pi05.dev/kind": "demos"}
    labels |= {"pi05.dev/task": "pushcube"}
    meta = {"name": run, "uid": "u1", "labels": labels, "creationTimestamp": at(900)}
    return {"metadata": meta, "spec": {}, "status": {"conditions": list(conditions)}}


def pod(run: str, phase: str, statuses: list[Object], init: list[Object] | None = None, **fields: Any) -> Object:
    meta = {**job(run)["metadata"], "name": f"{run}-0-abcde", "creationTimestamp": at(880)}
    meta["annotations"] = {"batch.kubernetes.io/job-completion-index": "0"}
    spec = {"nodeName": "n1", "containers": [{"name": "pi05", "resources": {"limits": {"memory": "16Gi"}}}]}
    status = {"phase": phase, "containerStatuses": statuses, "initContainerStatuses": init, **fields}
    return {"metadata": meta, "spec": spec, "status": status}


def ended(name: str, code: int, reason: str = "Error", message: str = "") -> Object:
    state = {"exitCode": code, "reason": reason, "message": message, "startedAt": at(800), "finishedAt": at(100)}
    return {"name": name, "state": {"terminated": state}}


def running(name: str) -> Object:
    return {"name": name, "state": {"running": {"startedAt": at(800)}}}


def waiting(name: str, reason: str, message: str = "") -> Object:
    return {"name": name, "state": {"waiting": {"reason": reason, "message": message}}}


def words(run: str, message: str) -> str:
    told = {"v": 1, "run": run, "kind": "failed", "time": NOW.timestamp() - 100, "exit_code": 75, "message": message}
    return f"PI05 {json.dumps(told)}"


def event(name: str, reason: str, message: str, kind: str = "Warning") -> Object:
    about = {"involvedObject": {"name": name}, "lastTimestamp": at(5), "type": kind}
    return {"reason": reason, "message": message, **about}


FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "backoff limit reached"}
INITIALISING = waiting("pi05", "PodInitializing")
CREATING = waiting("pi05", "ContainerCreating")
PULL = "Back-off pulling image"


def failing(run: str, *statuses: Object, init: list[Object] | None = None, **fields: Any) -> Object:
    return {"jobs": [job(run, FAILED)], "pods": [pod(run, "Failed", list(statuses), init, **fields)]}


def held(run: str, *statuses: Object, init: list[Object] | None = None, events: list[Object] | None = None) -> Object:
    return {"jobs": [job(run)], "pods": [pod(run, "Pending", list(statuses), init)], "events": events or []}


def unmade(run: str, message: str) -> Object:
    return {"jobs": [job(run)], "events": [event(run, "FailedCreate", REFUSED + message)]}


def about(run: str, reason: str, message: str, kind: str = "Warning") -> Object:
    return held(run, CREATING, events=[event(f"{run}-0-abcde", reason, message, kind)])


CASES: dict[str, tuple[Any, str, str]] = {
    # redboxllc/scuttle#43, istio/istio#11045
    "a sidecar before ours": (
        lambda run: failing(
            run, ended("istio-proxy", 0, "Completed"), ended("pi05", 75, "Error", words(run, "disk full"))
        ),
        "Failed",
        "disk full (BackoffLimitExceeded)",
    ),
    "a sidecar that fails": (
        lambda run: failing(run, ended("istio-proxy", 255, message="no certificate"), ended("pi05", 0, "Completed")),
        "Failed",
        "container istio-proxy: exit code 255: no certificate (BackoffLimitExceeded)",
    ),
    "a sidecar that stays": (
        lambda run: {
            "jobs": [job(run)],
            "pods": [pod(run, "Running", [running("istio-proxy"), ended("pi05", 0, "Completed")])],
        },
        "Running",
        "it has ended, and its pod is kept by container istio-proxy, which has to end, too",
    ),
    "a sidecar without its image": (
        lambda run: held(run, waiting("istio-proxy", "ImagePullBackOff", PULL), CREATING),
        "Pending",
        "container istio-proxy: ImagePullBackOff: Back-off pulling image",
    ),
    # istio/istio#16481
    "an init container without its image": (
        lambda run: held(run, INITIALISING, init=[waiting("setup", "ImagePullBackOff", PULL)]),
        "Pending",
        "init container setup: ImagePullBackOff: Back-off pulling image",
    ),
    "an init container that crashes": (
        lambda run: held(run, INITIALISING, init=[waiting("setup", "CrashLoopBackOff", "back-off")]),
        "Pending",
        "init container setup: CrashLoopBackOff: back-off",
    ),
    "an init container that has failed once": (
        lambda run: held(run, INITIALISING, init=[ended("setup", 1, message="no route")]),
        "Pending",
        "init container setup: exit code 1: no route",
    ),
    "an init container at work": (
        lambda run: held(run, INITIALISING, init=[ended("first", 0), running("setup")]),
        "Starting",
        "init container setup is at work",
    ),
    "an init container that failed for good": (
        lambda run: failing(run, INITIALISING, init=[ended("setup", 1, message="no route")]),
        "Failed",
        "init container setup: exit code 1: no route (BackoffLimitExceeded)",
    ),
    "a pod that never began": (
        lambda run: failing(run, CREATING),
        "Failed",
        "failed before its container was started",
    ),
    # kubernetes/kubernetes#30177
    "a mount": (
        lambda run: about(run, "FailedMount", 'MountVolume.SetUp failed for volume "job": not found'),
        "Pending",
        'FailedMount: MountVolume.SetUp failed for volume "job": not found',
    ),
    "a network": (
        lambda run: about(run, "NetworkNotReady", "network is not ready: cni plugin not initialized"),
        "Pending",
        "NetworkNotReady: network is not ready: cni plugin not initialized",
    ),
    "a sandbox": (
        lambda run: about(run, "FailedCreatePodSandBox", "failed to assign an IP address"),
        "Pending",
        "FailedCreatePodSandBox: failed to assign an IP address",
    ),
    "an image on its way": (
        lambda run: about(run, "Pulling", 'Pulling image "sim"', "Normal"),
        "Starting",
        "its image is being pulled",
    ),
    "nothing yet": (lambda run: held(run, CREATING), "Starting", "its node makes its containers"),
    "a secret that is missing": (
        lambda run: held(run, waiting("pi05", "CreateContainerConfigError", 'secret "tokens" not found')),
        "Pending",
        'CreateContainerConfigError: secret "tokens" not found',
    ),
    "a reason that nobody has listed": (
        lambda run: held(run, waiting("pi05", "SomethingNew", "of Kubernetes 1.40")),
        "Pending",
        "SomethingNew: of Kubernetes 1.40",
    ),
    # haproxytech/helm-charts#236, microsoft/pai#5215
    "a LimitRange": (
        lambda run: unmade(run, "maximum memory usage per Container is 8Gi, but limit is 16Gi"),
        "Pending",
        "but limit is 16Gi; lower [cluster.demos] memory in pi05.toml; kubectl describe limitrange shows",
    ),
    "a quota of CPU limits": (
        lambda run: unmade(run, "failed quota: team: must specify limits.cpu for: pi05"),
        "Pending",
        'must specify limits.cpu for: pi05; say it in pi05.toml: [cluster.demos] limits = { cpu = "..." }',
    ),
    "a quota of limits of disk": (
        lambda run: unmade(run, "failed quota: q: must specify limits.cpu,limits.ephemeral-storage for: pi05"),
        "Pending",
        'say it in pi05.toml: [cluster.demos] limits = { cpu = "...", "ephemeral-storage" = "..." }',
    ),
    "a quota": (
        lambda run: unmade(run, "exceeded quota: team, requested: cpu=8, used: cpu=30, limited: cpu=32"),
        "Pending",
        "quota: team, requested: cpu=8, used: cpu=30, limited: cpu=32; kubectl describe resourcequota",
    ),
    "a webhook": (
        lambda run: unmade(run, 'admission webhook "policy" denied the request: label team is required'),
        "Pending",
        'admission webhook "policy" denied the request: label team is required',
    ),
}


@pytest.fixture(scope="module")
def submitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a folder with settings and a run that a cluster has taken, and the run's name."""
    here = tmp_path_factory.mktemp("pods")
    (here / "bin").mkdir()
    (here / "bin/helm").write_text(SCRIPT)
    (here / "bin/helm").chmod(0o755)
    (here / "pi05.toml").write_text(
        f'target = "cluster"\n[cluster]\nstorage = "file://{here}/store"\n'
        'images = { train = "a/t:1", sim = "a/s:1", ctl = "a/c:1" }\n'
    )
    with serving(cluster()) as address:
        config(here, address)
        path = f"{here}/bin:/usr/bin:/bin"
        said = pi05ctl("submit", "demos", "pushcube", folder=here, PATH=path, KUBECONFIG=str(here / "config"))
    assert said.code == 0, said.err
    return here, next((here / "store/runs").iterdir()).name


def config(here: Path, address: str) -> None:
    """Write the kubeconfig of a server."""
    content = {
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": address}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "me"}}],
        "users": [{"name": "me", "user": {"token": "abc"}}],
    }
    (here / "config").write_text(json.dumps(content))


@pytest.mark.parametrize("case", CASES)
def test_every_state_says_why(
    submitted: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    here, run = submitted
    objects, state, why = CASES[case]
    monkeypatch.chdir(here)
    monkeypatch.setenv("KUBECONFIG", str(here / "config"))
    with serving(cluster(**objects(run))) as address:
        config(here, address)
        code = cli.run(("status", "-o", "json"))
        [found] = json.loads(capsys.readouterr().out)
        cli.run(("status",))
    line = capsys.readouterr().out.splitlines()[1]
    assert (code, found["state"]) == (0, state), found
    assert why in line.rstrip()


def test_the_command_itself_names_our_container(submitted: tuple[Path, str]) -> None:
    here, run = submitted
    with serving(cluster(**CASES["a sidecar before ours"][0](run))) as address:
        config(here, address)
        said = pi05ctl("status", folder=here, KUBECONFIG=str(here / "config"))
    assert (said.code, "disk full (BackoffLimitExceeded)" in said.out) == (0, True), said.out


def test_the_limits_that_a_quota_asks_for_are_said(submitted: tuple[Path, str], tmp_path: Path) -> None:
    settings = (submitted[0] / "pi05.toml").read_text()
    (tmp_path / "pi05.toml").write_text(
        settings + '[cluster.demos]\nlimits = { cpu = "8", "ephemeral-storage" = "20Gi" }\n'
    )
    said = pi05ctl("submit", "demos", "pushcube", "--dry-run", folder=tmp_path)
    assert said.code == 0, said.err
    limits = said.out.partition("limits:")[2]
    assert ('cpu: "8"' in limits, 'ephemeral-storage: "20Gi"' in limits) == (True, True)
    (tmp_path / "pi05.toml").write_text(settings + '[cluster.demos]\nlimits = { gpu = "8" }\n')
    refused = pi05ctl("submit", "demos", "pushcube", "--dry-run", folder=tmp_path)
    assert (refused.code, "limits" in refused.line) == (2, True)
