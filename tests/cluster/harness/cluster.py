"""The whole cluster: up, down, and whether it is well."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pi05ctl.runs.process import identity
from tests.cluster.harness import binaries, controlplane, images, machine, network, node, pki, processes, services
from tests.cluster.harness.layout import (
    API_IP,
    BRIDGE,
    CACHE,
    EMULATOR,
    KUBECONFIG,
    NETWORK,
    NODE_IP,
    REGISTRY_HOST,
    REPOSITORY,
    STATE,
)

_OWNER = STATE / "owner"  # the process that takes it down; empty: `down` does
_ORDER = ("kubelet", *reversed(controlplane.NAMES), *services.NAMES)


def up(*, owned: bool = False) -> bool:
    """Bring it up unless it is; return whether this call did. `owned`: this process promises to take it down."""
    machine.check()
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone():
        programs = binaries.build()
        if not _is_orphan() and (is_well(programs) or _recovers(programs)):
            return False
        _down()
        STATE.mkdir()
        _OWNER.write_text(f"{os.getpid()} {identity(os.getpid())}" if owned else "")
        _start(programs)
    return True


def _start(programs: Path) -> None:
    """Start everything, in the order in which it needs each other."""
    node.look_around()
    pki.make()
    network.up()
    controlplane.start_etcd(programs)
    controlplane.start_apiserver(programs)
    services.start_registry(programs)
    services.start_emulator()
    services.make_bucket()
    node.start_containerd(images.pause(programs))
    controlplane.wait(programs)
    controlplane.start_controllers(programs)
    controlplane.start_scheduler(programs)
    controlplane.start_dns(programs)
    node.start_kubelet(programs)


def down() -> None:
    """Take the cluster down; nothing is left but the cache of programs and images."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone():
        _down()


def _down() -> None:
    if not STATE.exists():
        return
    node.down()
    for name in (*_ORDER, *processes.started()):
        processes.stop(name)
    network.down()
    node.remove_state()


def is_well(programs: Path) -> bool:
    """Whether all processes live, of these very programs, and the node is ready."""
    living = all(processes.pid(name) for name in (*_ORDER, "containerd"))
    return living and _runs(programs) and controlplane.is_ready(programs) and node.is_ready(programs)


def _recovers(programs: Path) -> bool:
    """Whether a cluster that lacks a part gets well again: somebody's test may have stopped it for a while."""
    if not processes.pid("etcd"):
        return False
    with contextlib.suppress(TimeoutError):
        processes.until("the cluster to be whole", lambda: is_well(programs), 60)
        return True
    return False


def _runs(programs: Path) -> bool:
    """Whether the API server was built from the pins of today."""
    running = Path(f"/proc/{processes.pid('apiserver')}/exe")
    return running.exists() and running.readlink() == programs / "kube-apiserver"


def _is_orphan() -> bool:
    """Whether the process that was to take the cluster down is gone."""
    with contextlib.suppress(FileNotFoundError):
        pid, _, known = _OWNER.read_text().partition(" ")
        return bool(known) and identity(int(pid)) != known
    return False


def environment() -> dict[str, str]:
    """Return the variables with which a shell uses the cluster."""
    return {
        "KUBECONFIG": str(KUBECONFIG),
        "KUBECACHEDIR": str(STATE / "kubecache"),
        "STORAGE_EMULATOR_HOST": EMULATOR,
        "PI05_TEST_REGISTRY": REGISTRY_HOST,
        "PI05_TEST_BUCKET": services.BUCKET,
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), NETWORK, NODE_IP, API_IP))),
        "PATH": f"{binaries.folder()}:{REPOSITORY}/.venv/bin:{os.environ['PATH']}",
    }


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hold the lock of this machine's one cluster."""
    with (CACHE / f"{BRIDGE}.lock").open("w") as lock:
        start = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - start > 1800:
                    raise TimeoutError("another process has been starting the cluster for half an hour") from None
                time.sleep(0.5)
        yield
