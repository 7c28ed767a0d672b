"""etcd, API server, controllers, scheduler and cluster DNS."""

import json
import subprocess
from pathlib import Path

from tests.cluster.harness import pki
from tests.cluster.harness.layout import API_IP, DNS_IP, INSIDE, KUBECONFIG, SERVER, SERVICES, STATE
from tests.cluster.harness.processes import start, until

NAMES = ("etcd", "apiserver", "controllers", "scheduler", "dns")
_ETCD = f"http://{INSIDE}:12379"
_PEER = f"http://{INSIDE}:12380"
_COREFILE = """.:53 {{
    bind {address}
    ready {address}:8181
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 2
    }}
}}
"""


def start_etcd(programs: Path) -> None:
    """Start the store; what it keeps may be lost with the machine."""
    urls = ("--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD, "--listen-peer-urls", _PEER)
    peers = ("--initial-advertise-peer-urls", _PEER, "--initial-cluster", f"default={_PEER}")
    start("etcd", programs / "etcd", "--data-dir", STATE / "etcd", "--unsafe-no-fsync", *urls, *peers)


def start_apiserver(programs: Path) -> None:
    """Start the API server at the address of its own service; return at once."""
    keys = pki.FOLDER
    start(
        "apiserver",
        programs / "kube-apiserver",
        f"--etcd-servers={_ETCD}",
        f"--bind-address={API_IP}",
        f"--advertise-address={API_IP}",
        "--secure-port=443",
        "--endpoint-reconciler-type=none",
        f"--tls-cert-file={keys}/apiserver.crt",
        f"--tls-private-key-file={keys}/apiserver.key",
        f"--client-ca-file={keys}/ca.crt",
        f"--service-account-issuer={SERVER}",
        f"--service-account-key-file={keys}/accounts.pub",
        f"--service-account-signing-key-file={keys}/accounts.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={SERVICES}",
        "--allow-privileged=true",
        "--enable-aggregator-routing=true",  # to pods of webhooks: there is no kube-proxy for services' addresses
        f"--kubelet-client-certificate={keys}/apiclient.crt",
        f"--kubelet-client-key={keys}/apiclient.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP,Hostname",
        "--default-not-ready-toleration-seconds=10",  # what a lost node takes with it: 5 minutes are long for a test
        "--default-unreachable-toleration-seconds=10",
    )


def start_controllers(programs: Path) -> None:
    """Start the controllers."""
    kubeconfig = STATE / "controllers.kubeconfig"
    start(
        "controllers",
        programs / "kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--root-ca-file={pki.CA}",
        f"--service-account-private-key-file={pki.FOLDER}/accounts.key",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        f"--bind-address={INSIDE}",
        "--secure-port=16257",
        "--kube-api-qps=200",  # thousands of Pods in a benchmark
        "--kube-api-burst=400",
        "--concurrent-job-syncs=20",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=30s",
    )


def start_scheduler(programs: Path) -> None:
    """Start the scheduler."""
    kubeconfig = str(STATE / "scheduler.kubeconfig")
    config = {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "clientConnection": {"kubeconfig": kubeconfig, "qps": 200, "burst": 400},
        "leaderElection": {"leaderElect": False},
    }
    (STATE / "scheduler.yaml").write_text(json.dumps(config, indent=1))
    start(
        "scheduler",
        programs / "kube-scheduler",
        f"--config={STATE}/scheduler.yaml",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={INSIDE}",
        "--secure-port=16259",
    )


def start_dns(programs: Path) -> None:
    """Start the cluster's DNS: it knows services and their Pods, and nothing outside."""
    corefile = STATE / "Corefile"
    corefile.write_text(_COREFILE.format(address=DNS_IP, kubeconfig=KUBECONFIG))
    start("dns", programs / "dns", "-conf", corefile)


def is_ready(programs: Path) -> bool:
    """Whether the API server answers that it is ready."""
    line = [programs / "kubectl", "--kubeconfig", KUBECONFIG, "get", "--raw=/readyz", "--request-timeout=5s"]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout == "ok"


def wait(programs: Path) -> None:
    """Return when the API server is ready."""
    until("the API server", lambda: is_ready(programs), 90)
