"""Where the harness keeps things, and the addresses of what it starts: one folder and one bridge."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
GO = REPOSITORY / "tests/cluster/go"

# Several clusters fit on one machine: PI05_TEST_CLUSTER=1 is another than that of tests and developers, which is 0.
NUMBER = int(os.environ.get("PI05_TEST_CLUSTER", "0"))
_MARK = str(NUMBER or "")
_NET = f"10.{213 + NUMBER}"

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pi05/cluster"
STATE = CACHE / f"state{_MARK}"  # of the running cluster: gone with it
CONTAINERD = CACHE / f"containerd{_MARK}"  # pulled images: kept
REGISTRY = CACHE / "registry"  # pushed images: kept
BUILDAH = CACHE / "buildah"  # layers of image builds: kept

# All of the cluster is on one bridge of this machine, reachable from here and from Pods, from nowhere else.
BRIDGE = f"pi05-cluster{_MARK}"
CGROUP = BRIDGE
NETWORK = f"{_NET}.0.0/16"
PODS = f"{_NET}.0.0/24"
NODE_IP = f"{_NET}.0.1"  # the bridge itself, and so the Pods' way to whatever runs here
SERVICES = f"{_NET}.1.0/24"
API_IP = f"{_NET}.1.1"  # Kubernetes gives its own service the first address; the API server itself listens there
DNS_IP = f"{_NET}.1.10"
INSIDE = f"127.0.0.{1 + NUMBER}"  # what only the control plane talks to
SERVER = f"https://{API_IP}:443"
REGISTRY_HOST = f"{NODE_IP}:5000"
EMULATOR = f"http://{NODE_IP}:4443"
NODE = "node0"
KUBECONFIG = STATE / "admin.kubeconfig"
