"""Where the harness keeps things, and the addresses of what it starts: one folder and one bridge."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
GO = REPOSITORY / "tests/cluster/go"

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pi05/cluster"
STATE = CACHE / "state"  # of the running cluster: gone with it
CONTAINERD = CACHE / "containerd"  # pulled images: kept
REGISTRY = CACHE / "registry"  # pushed images: kept
BUILDAH = CACHE / "buildah"  # layers of image builds: kept

# All of the cluster is on one bridge of this machine, reachable from here and from Pods, from nowhere else.
BRIDGE = "pi05-cluster"
PODS = "10.213.0.0/24"
NODE_IP = "10.213.0.1"  # the bridge itself, and so the Pods' way to whatever runs here
SERVICES = "10.213.1.0/24"
API_IP = "10.213.1.1"  # Kubernetes gives its own service the first address; the API server itself listens there
DNS_IP = "10.213.1.10"
SERVER = f"https://{API_IP}:443"
REGISTRY_HOST = f"{NODE_IP}:5000"
EMULATOR = f"http://{NODE_IP}:4443"
NODE = "node0"
CGROUP = "pi05-cluster"
KUBECONFIG = STATE / "admin.kubeconfig"
