"""Fake nodes by the hundred, for tests of scale: kwok says what a kubelet would, and nothing runs.

tests/cluster/kwok/stages.yaml tells how a Pod's annotations script its end. The nodes are tainted, so only Pods that
tolerate `kwok.x-k8s.io/node` come to them.
"""

import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.cluster.harness import binaries, pki
from tests.cluster.harness.layout import KUBECONFIG, NODE_IP, REPOSITORY, STATE
from tests.cluster.harness.processes import start, stop, until

TAINT = "kwok.x-k8s.io/node"
TOLERATION = {"key": TAINT, "operator": "Exists"}
LABEL = "pi05.dev/test-node"
_STAGES = REPOSITORY / "tests/cluster/kwok/stages.yaml"
_LOG = STATE / "fake.log"
_PORT = 10247  # where the API server reads the logs of fake Pods
_HAS = {"cpu": "208", "memory": "1800Gi", "ephemeral-storage": "6000Gi", "nvidia.com/gpu": "8", "pods": "110"}


def up(nodes: int = 100, log: Sequence[str] = ()) -> None:
    """Add fake nodes of 8 GPUs; every container of their Pods has these lines as its log."""
    stop("kwok")
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    _LOG.write_text("".join(f"{now} stdout F {line}\n" for line in log))  # as containerd writes it
    text = f"{_STAGES.read_text()}---\n{json.dumps(_logs())}\n"
    (STATE / "kwok.yaml").write_text(text)
    start(
        "kwok",
        binaries.folder() / "kwok",
        f"--config={STATE}/kwok.yaml",
        f"--kubeconfig={KUBECONFIG}",
        f"--manage-nodes-with-annotation-selector={TAINT}=fake",
        "--node-lease-duration-seconds=40",
        f"--node-ip={NODE_IP}",
        f"--node-port={_PORT}",
        f"--server-address={NODE_IP}:{_PORT}",
        f"--tls-cert-file={pki.FOLDER}/kubelet.crt",
        f"--tls-private-key-file={pki.FOLDER}/kubelet.key",
    )
    items = [_node(f"fake{number:03}") for number in range(nodes)]
    _kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    until("fake nodes to be ready", lambda: _ready() >= nodes, 60)


def down() -> None:
    """Remove the fake nodes; their Pods should be gone."""
    _kubectl("delete", "nodes", "-l", f"{LABEL}=fake", "--ignore-not-found")
    stop("kwok")


def _node(name: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": {TAINT: "fake"}, "labels": {LABEL: "fake"}},
        "spec": {"taints": [{"key": TAINT, "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": _HAS, "allocatable": _HAS},
    }


def _logs() -> dict:
    spec = {"logs": [{"logsFile": str(_LOG), "follow": False}]}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "ClusterLogs", "metadata": {"name": "all"}, "spec": spec}


def _ready() -> int:
    path = 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
    return _kubectl("get", "nodes", "-l", f"{LABEL}=fake", "-o", path).split().count("True")


def _kubectl(*words: str, given: str | None = None) -> str:
    line = [str(binaries.folder() / "kubectl"), "--kubeconfig", str(KUBECONFIG), *words]
    return subprocess.run(line, input=given, capture_output=True, text=True, check=True).stdout
