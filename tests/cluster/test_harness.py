"""The harness: what it starts is gone when it says so, also after everything was killed. On a cluster of its own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import until
from tests.cluster.harness import layout

STATE = layout.CACHE / "state1"  # of cluster 1
BRIDGE = "pi05-cluster1"
SHELL = {**os.environ, "PI05_TEST_CLUSTER": "1"}
PROCESSES = {"apiserver", "containerd", "controllers", "dns", "emulator", "etcd", "kubelet", "registry", "scheduler"}
SLEEPS = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "sleeps", "namespace": "default"},
    "spec": {
        "automountServiceAccountToken": True,  # a mount of the kubelet's, to be undone
        "containers": [{"name": "main", "command": ["sleep", "1000"]}],
    },
}


def harness(command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tests.cluster.harness", command]
    where = {"cwd": layout.REPOSITORY, "env": {**SHELL, **environ}, "timeout": 300, "check": False}
    return subprocess.run(line, capture_output=True, text=True, **where)


def kubectl(*words: str, given: str | None = None) -> str:
    line = ["kubectl", "--kubeconfig", str(STATE / "admin.kubeconfig"), *words]
    path = {"PATH": f"{next(layout.CACHE.glob('bin-*'))}:{os.environ['PATH']}"}
    return subprocess.run(line, input=given, env=SHELL | path, capture_output=True, text=True, check=True).stdout


def traces() -> dict[str, list[str]]:
    """Return what a cluster puts on a machine, of this cluster: nothing of it may be left."""
    commands = {path: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()}
    return {
        "processes": [str(path) for path, line in commands.items() if f"{STATE}/".encode() in line],
        "mounts": [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{STATE}/" in line],
        "bridges": [str(path) for path in Path("/sys/class/net").glob(BRIDGE)],
        "cgroups": [str(path) for path in Path("/sys/fs/cgroup").rglob(BRIDGE)],
        "links": [str(path) for path in Path("/var/log/containers").glob("*") if str(STATE) in str(path.readlink())],
        "state": [str(path) for path in STATE.glob("*")],
    }


def settings() -> list[str]:
    """Return what of the machine's own settings a cluster could change."""
    names = ("net/ipv4/ip_forward", "vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout.splitlines()
    dated = "#"  # iptables-save writes when it was called into its comments
    return [*(Path("/proc/sys", name).read_text() for name in names), *(r for r in rules if not r.startswith(dated))]


@pytest.fixture
def before(cluster):
    if not cluster.own:
        pytest.skip("the cluster is somebody else's")
    harness("down")
    yield settings()
    assert harness("down").returncode == 0


def start_pod(image: str) -> None:
    SLEEPS["spec"]["containers"][0]["image"] = image.replace(layout.NODE_IP, "10.214.0.1")
    until("the service account", lambda: "default" in kubectl("get", "serviceaccounts"))
    kubectl("apply", "-f", "-", given=json.dumps(SLEEPS))
    kubectl("wait", "pod/sleeps", "--for=condition=Ready", "--timeout=60s")


def test_after_everything_was_killed_up_cleans_and_starts_anew_and_down_leaves_nothing(cluster, before):
    assert harness("up").returncode == 0
    start_pod(cluster.image("base"))
    bridge = Path("/sys/class/net", BRIDGE)
    address = (bridge / "address").read_text()  # its own, which stays, whatever the addresses of Pods are
    assert address not in [(port / "address").read_text() for port in bridge.glob("lower_*")]
    pids = {path.stem: int(path.read_text().split()[0]) for path in STATE.glob("*.pid")}
    assert set(pids) == PROCESSES
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    assert traces()["cgroups"]
    assert traces()["mounts"]
    assert harness("up").returncode == 0
    assert kubectl("get", "pods") == ""
    start_pod(cluster.image("base"))
    assert harness("down").returncode == 0
    assert {name: found for name, found in traces().items() if found} == {}
    assert settings() == before


@pytest.mark.usefixtures("before")
def test_a_cluster_whose_owner_was_killed_is_not_taken_for_one_that_somebody_keeps():
    script = "import os; from tests.cluster.harness import cluster; cluster.up(owned=True); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], cwd=layout.REPOSITORY, env=SHELL, timeout=300, check=False)
    first = (STATE / "apiserver.pid").read_text()
    assert harness("up").returncode == 0
    second = (STATE / "apiserver.pid").read_text()
    assert harness("up").returncode == 0
    assert first != second
    assert second == (STATE / "apiserver.pid").read_text()


def test_a_machine_without_go_is_told_what_to_do():
    done = harness("up", PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    assert done.returncode == 3
    assert done.stderr.startswith("cluster: Kubernetes is built from source and there is no Go here; install Go 1.26")
    assert "PI05_TEST_KUBECONFIG" in done.stderr
    assert len(done.stderr.splitlines()) == 1
