"""The node: containerd and kubelet with folders, cgroup and socket of their own, and the 8 GPUs it claims to have."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.cluster.harness import network, pki
from tests.cluster.harness.layout import (
    CGROUP,
    CONTAINERD,
    DNS_IP,
    KUBECONFIG,
    NODE,
    NODE_IP,
    REGISTRY_HOST,
    STATE,
)
from tests.cluster.harness.machine import PLUGINS
from tests.cluster.harness.processes import start, stop, until

GPUS = 8
SOCKET = STATE / "containerd.sock"
_CERTS = STATE / "certs.d"
_CRI = 'plugins."io.containerd.grpc.v1.cri"'
_CONFIG = f"""version = 2
root = "{CONTAINERD}"
state = "{STATE}/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{STATE}/opt"
[{_CRI}]
  sandbox_image = "@PAUSE@"
  disable_apparmor = true
  restrict_oom_score_adj = true # else a sandbox fails inside a container or virtual machine with limits of its own
  netns_mounts_under_state_dir = true
  [{_CRI}.cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{network.CNI}"
  [{_CRI}.registry]
    config_path = "{_CERTS}"
  [{_CRI}.containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true # the registry has them
    [{_CRI}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{_CRI}.containerd.runtimes.runc.options]
        SystemdCgroup = false
"""
_PLAIN_HTTP = f"""server = "http://{REGISTRY_HOST}"
[host."http://{REGISTRY_HOST}"]
  capabilities = ["pull", "resolve"]
"""
_SYSCTLS = (  # what the kubelet sets on its machine; put back by stop()
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
_LINKS = Path("/var/log/containers")
_PLACES = (  # that containerd, CNI, kubelet and buildah make and that cannot be set; removed when they were not there
    "/etc/cni",
    "/usr/libexec/kubernetes",
    "/var/lib/cni",
    "/var/lib/containers",
    "/var/lib/kubelet",
    "/var/log/containers",
)


# ---- containerd ------------------------------------------------------------------------------------------------------
def look_around() -> None:
    """Write down what the machine is like before, for down() to restore."""
    values = {name: Path("/proc/sys", name).read_text() for name in _SYSCTLS}
    absent = [place for place in _PLACES if not Path(place).exists()]
    (STATE / "before.json").write_text(json.dumps({"sysctls": values, "absent": absent}, indent=1))


def start_containerd(pause: str) -> None:
    """Start containerd without a container, with the images of before."""
    (_CERTS / REGISTRY_HOST).mkdir(parents=True, exist_ok=True)
    (_CERTS / REGISTRY_HOST / "hosts.toml").write_text(_PLAIN_HTTP)
    (STATE / "containerd.toml").write_text(_CONFIG.replace("@PAUSE@", pause))
    _launch()
    if _forget_containers():  # containerd remembers those of a cluster that was killed, and reads them at its start
        stop("containerd")
        _launch()


def _launch() -> None:
    start("containerd", "containerd", "--config", STATE / "containerd.toml")
    until("containerd", lambda: ctr("version").returncode == 0, 30)


def ctr(*words: str) -> subprocess.CompletedProcess[str]:
    """Call containerd's own command line."""
    line = ["ctr", "--address", str(SOCKET), "--namespace", "k8s.io", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def _forget_containers() -> bool:
    """Remove all containers whose processes are gone; return whether there was one."""
    names = ctr("containers", "list", "--quiet").stdout.split()
    for name in names:
        ctr("tasks", "delete", "--force", name)
        ctr("containers", "delete", name)
    return bool(names)


# ---- kubelet ---------------------------------------------------------------------------------------------------------
def start_kubelet(programs: Path) -> None:
    """Start the kubelet, wait until its node is ready, and give it its GPUs."""
    for folder in _cgroups():
        folder.mkdir(exist_ok=True)
    (STATE / "kubelet.yaml").write_text(json.dumps(_kubelet_config(), indent=1))
    start(
        "kubelet",
        programs / "kubelet",
        f"--config={STATE}/kubelet.yaml",
        f"--kubeconfig={STATE}/kubelet.kubeconfig",
        f"--hostname-override={NODE}",
        f"--root-dir={STATE}/kubelet",
        f"--cert-dir={STATE}/kubelet-certs",
        f"--node-ip={NODE_IP}",
    )
    until("the node to be ready", lambda: is_ready(programs), 60)
    give_gpus(programs)


def is_ready(programs: Path) -> bool:
    """Whether the API server thinks that the node is ready."""
    path = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
    return _kubectl(programs, "get", "node", NODE, "-o", path).stdout == "True"


def give_gpus(programs: Path, count: int = GPUS) -> None:
    """Say that the node has GPUs. A kubelet that starts takes them away, so this comes after."""
    patch = [
        {"op": "add", "path": f"/status/{field}/nvidia.com~1gpu", "value": str(count)}
        for field in ("capacity", "allocatable")
    ]
    words = ("patch", "node", NODE, "--subresource=status", "--type=json", "-p", json.dumps(patch))
    result = _kubectl(programs, *words)
    if result.returncode:
        raise RuntimeError(f"the node got no GPUs: {result.stderr}")


def _kubectl(programs: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [str(programs / "kubectl"), "--kubeconfig", str(KUBECONFIG), *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def _kubelet_config() -> dict:
    """Return the kubelet's configuration: folders of its own, no firewall rules, room to work on a small machine."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki.CA)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki.FOLDER}/kubelet.crt",
        "tlsPrivateKeyFile": f"{pki.FOLDER}/kubelet.key",
        "address": NODE_IP,
        "port": 10250,
        "healthzPort": 0,
        "readOnlyPort": 0,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "podLogsDir": f"{STATE}/podlogs",
        "volumePluginDir": f"{STATE}/volume-plugins",
        "resolvConf": f"{STATE}/resolv.conf",
        "clusterDNS": [DNS_IP],
        "clusterDomain": "cluster.local",
        "maxOpenFiles": 20000,
        "serializeImagePulls": False,
        "eventRecordQPS": 0,
        "nodeStatusUpdateFrequency": "5s",
        "nodeLeaseDurationSeconds": 20,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
        "imageGCHighThresholdPercent": 100,
    }


# ---- The end ---------------------------------------------------------------------------------------------------------
def down() -> None:
    """End kubelet, containers and containerd, and undo what they made; also when all of them were killed."""
    stop("kubelet")
    until("containers to end", _kill_containers, 30)
    if SOCKET.exists() and ctr("version").returncode == 0:
        _forget_containers()
    stop("containerd")
    until("shims to end", _kill_shims, 30)
    _unmount()
    until("cgroups to go", _remove_cgroups, 30)
    _remove_links()
    _restore()


def _cgroups() -> list[Path]:
    """Return the cluster's folder in every cgroup hierarchy of this machine (version 1 has many, version 2 one)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    found = [Path(words[1]) for words in mounts if words[2] in ("cgroup", "cgroup2")]
    return [root / CGROUP for root in dict.fromkeys(found)]


def _kill_containers() -> bool:
    """Kill every process in the cluster's cgroups; return whether there was none."""
    pids: set[int] = set()
    for folder in _cgroups():
        for procs in folder.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # it went while we looked
                pids.update(map(int, procs.read_text().split()))
    return not _kill(pids)


def _kill_shims() -> bool:
    """Kill containerd's helpers, known by the socket they were given; return whether there was none."""
    pids: set[int] = set()
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = cmdline.read_bytes().split(b"\0")
            if words[0].endswith(b"containerd-shim-runc-v2") and str(SOCKET).encode() in words:
                pids.add(int(cmdline.parent.name))
    return not _kill(pids)


def _kill(pids: set[int]) -> set[int]:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def _unmount() -> None:
    """Unmount everything below the state folder, the innermost first."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in reversed(mounts):
        if Path(mount).is_relative_to(STATE):
            subprocess.run(["umount", "--lazy", mount], check=False)


def _remove_cgroups() -> bool:
    """Remove the cluster's cgroups, the innermost first; return whether none is left.

    One stays busy until the kernel has let go of the processes that were killed in it, and runc may take one away
    while we look.
    """
    for folder in _cgroups():
        for path in sorted((path for path in [folder, *folder.rglob("*")] if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
    return not any(folder.exists() for folder in _cgroups())


def _remove_links() -> None:
    """Remove the kubelet's links to logs of Pods; another kubelet's stay."""
    for link in _LINKS.glob("*") if _LINKS.exists() else ():
        if link.is_symlink() and link.readlink().is_relative_to(STATE):
            link.unlink()


def _restore() -> None:
    """Set and remove what look_around() found otherwise."""
    path = STATE / "before.json"
    if path.exists():
        before = json.loads(path.read_text())
        for name, value in before["sysctls"].items():
            Path("/proc/sys", name).write_text(value)
        for place in before["absent"]:
            shutil.rmtree(place, ignore_errors=True)


def remove_state() -> None:
    """Delete the state folder, which must hold no mount any more."""
    still = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if f"{STATE}/" in line]
    if still:
        raise RuntimeError(f"still mounted below the cluster's state: {', '.join(still)}; unmount that and try again")
    shutil.rmtree(STATE, ignore_errors=True)
