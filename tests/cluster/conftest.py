"""A real Kubernetes for every test in here, and a namespace of it for every module (DEVELOPERS.md, Cluster tests)."""

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import binaries, controlplane, images, layout, machine, node, pki, processes, services
from tests.cluster.harness import cluster as harness
from tests.cluster.harness import queues as addons

KINDS = ("demos", "train", "eval", "pipeline")
_SECONDS = 1800  # a test, with what it waits for: the first builds Kubernetes and images
_ASK = {"cpu": "50m", "memory": "3Gi", "scratch": "4Gi", "shm": "64Mi", "grace_seconds": 30}  # 2 cores hold them all
_XLA = "--xla_force_host_platform_device_count=8"  # what JAX sees on a node without real GPUs


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SECONDS))


@dataclass(frozen=True)
class Cluster:
    """A cluster to test on.

    Attributes:
        kubeconfig: Of its administrator.
        kubectl: The program.
        emulator: Of GCS, reachable from here and from Pods at the same URL; "" for the real service.
        bucket: Where tests may write: gs://...
        own: Whether it is the harness's, so that a test may stop parts of it.
        kept: Whether it goes on when the tests have ended.
    """

    kubeconfig: Path
    kubectl_program: str
    emulator: str
    bucket: str
    own: bool
    kept: bool

    def kubectl(self, *words: str, given: str | None = None, check: bool = True) -> str:
        """Return what kubectl prints."""
        line = [self.kubectl_program, *words]
        done = subprocess.run(line, env=self.environment(), input=given, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr}"
        return done.stdout

    def get(self, *words: str) -> dict[str, Any]:
        """Return objects as kubectl finds them."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Create or change objects."""
        self.kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def environment(self) -> dict[str, str]:
        """Return the environment of a user of this cluster and its bucket."""
        emulator = {"STORAGE_EMULATOR_HOST": self.emulator} if self.emulator else {}
        return {
            **os.environ,
            **(harness.environment() if self.own else {}),
            **emulator,
            "KUBECONFIG": str(self.kubeconfig),
        }

    def image(self, name: str) -> str:
        """Return the image of a name: train, sim, ctl, or base, which is a bare Debian."""
        if not self.own:
            return os.environ[f"PI05_TEST_IMAGE_{name.upper()}"]
        return images.base() if name == "base" else images.build(name)

    def stop(self, name: str) -> None:
        """Stop a process of the control plane or node, as a crash would."""
        processes.stop(name)

    def start(self, name: str) -> None:
        """Start it again, and return when it works."""
        programs = binaries.folder()
        if name == "kubelet":
            node.start_kubelet(programs)
            return
        if name == "emulator":
            services.start_emulator()
            return
        getattr(controlplane, f"start_{name}")(programs)
        controlplane.wait(programs)


@dataclass(frozen=True)
class Site:
    """A folder with settings for a namespace of its own; pi05ctl runs here as a user's would.

    Attributes:
        cluster: Where the namespace is.
        namespace: From k8s/overlays/local.
        folder: Where pi05.toml is.
        storage: Root of all artefacts: gs://...
        images: Of this code, by name.
        environ: More environment of pi05ctl.
    """

    cluster: Cluster
    namespace: str
    folder: Path
    storage: str
    images: dict[str, str]
    environ: dict[str, str] = field(default_factory=dict)

    def pi05ctl(self, *words: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run pi05ctl to its end."""
        line = [sys.executable, "-m", "pi05ctl", *words]
        where = {"cwd": self.folder, "env": self._environment(), "timeout": seconds, "check": False}
        return subprocess.run(line, capture_output=True, text=True, **where)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start pi05ctl; both outputs come through one pipe."""
        line = [sys.executable, "-m", "pi05ctl", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(line, cwd=self.folder, env=self._environment(), **pipes)

    def kubectl(self, *words: str, check: bool = True) -> str:
        """Return what kubectl prints about this namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *words, check=check)

    def get(self, *words: str) -> dict[str, Any]:
        """Return objects of this namespace."""
        return self.cluster.get("--namespace", self.namespace, *words)

    def pods(self, run: str) -> list[dict[str, Any]]:
        """Return the Pods of a run, oldest first."""
        found = self.get("pods", "-l", f"pi05.dev/run={run}")["items"]
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def settings(self, **changes: Any) -> None:
        """Write pi05.toml; `changes` are merged into its [cluster] table: settings(train={"gpus": 4})."""
        table = _settings(self)
        for key, value in changes.items():
            table[key] = {**table[key], **value} if isinstance(value, dict) and key in table else value
        (self.folder / "pi05.toml").write_text('target = "cluster"\n' + _toml("cluster", table))

    def _environment(self) -> dict[str, str]:
        return {**self.cluster.environment(), **self.environ}


@pytest.fixture(scope="session")
def cluster(request) -> Iterator[Cluster]:
    """The cluster of PI05_TEST_KUBECONFIG, or the harness's: one that is up already, or one for this session."""
    given = os.environ.get("PI05_TEST_KUBECONFIG")
    if given:
        emulator, bucket = os.environ.get("STORAGE_EMULATOR_HOST", ""), os.environ["PI05_TEST_STORAGE"]
        yield Cluster(Path(given), "kubectl", emulator, bucket, own=False, kept=True)
        return
    with _shown(request):
        try:
            mine = harness.up(owned=True)
        except machine.Unsuitable as why:
            pytest.skip(str(why))
    kubectl = str(binaries.folder() / "kubectl")
    yield Cluster(layout.KUBECONFIG, kubectl, layout.EMULATOR, f"gs://{services.BUCKET}", own=True, kept=not mine)
    if mine:
        harness.down()


@pytest.fixture(scope="session")
def queues(request, cluster) -> Iterator[None]:
    """JobSet and Kueue, installed in the cluster."""
    if not cluster.own:
        pytest.skip("what is installed in this cluster is not ours to choose (PI05_TEST_KUBECONFIG)")
    with _shown(request):
        addons.install(binaries.folder())
    yield
    if cluster.kept:
        addons.remove(binaries.folder())


@pytest.fixture(scope="module")
def namespace(request, cluster, tmp_path_factory) -> Iterator[str]:
    """A namespace as an overlay of k8s/ makes it, with another name: `local`, or what the module calls OVERLAY."""
    module = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
    which = getattr(request.module, "OVERLAY", "local")
    if which == "kueue":
        request.getfixturevalue("queues")  # whose kinds that overlay has
    name = f"pi05-{module}-{uuid.uuid4().hex[:5]}"
    folder = tmp_path_factory.mktemp("overlay").resolve()
    overlay = os.path.relpath(layout.REPOSITORY / "k8s/overlays" / which, folder)
    (folder / "kustomization.yaml").write_text(f"namespace: {name}\nresources: [{overlay}]\n")
    cluster.kubectl("apply", "-k", str(folder))
    yield name
    cluster.kubectl("delete", "pods", "--all", "--namespace", name, "--grace-period=1", "--wait=false")
    cluster.kubectl("delete", "namespace", name, "--timeout=120s")


@pytest.fixture(scope="module")
def run(cluster, namespace) -> Callable[..., str]:
    """Apply objects and a Job; return what its Pods printed, all together."""

    def run(job: dict[str, Any], *objects: dict[str, Any]) -> str:
        name = job["metadata"]["name"]
        cluster.apply(*objects, job)
        words = ("--namespace", namespace, "wait", f"job/{name}", "--for=condition=complete", "--timeout=600s")
        cluster.kubectl(*words)
        return cluster.kubectl("--namespace", namespace, "logs", "--selector", f"name={name}", "--tail=-1")

    return run


@pytest.fixture(scope="session")
def built(request, cluster) -> dict[str, str]:
    """The images of images/, of the code as it is, in the registry; by name."""
    with _shown(request):
        return {name: cluster.image(name) for name in images.NAMES}


@pytest.fixture(scope="module")
def site(cluster, namespace, built, tmp_path_factory) -> Site:
    """A folder with pi05.toml for the module's namespace, and pi05ctl in it."""
    made = Site(cluster, namespace, tmp_path_factory.mktemp("site"), f"{cluster.bucket}/{namespace}", built)
    made.settings()
    return made


def user(cluster: Cluster, name: str, group: str) -> Cluster:
    """Return the cluster for a user of a group, whom the cluster's own CA vouches for."""
    if not cluster.own:
        pytest.skip("the CA of this cluster is not ours")
    pki.issue(pki.authority(), name, name, group)
    return replace(cluster, kubeconfig=pki.kubeconfig(name))


def until(what: str, fact: Callable[[], Any], seconds: float = 120.0, pause: float = 0.3) -> Any:
    """Return what `fact` returns, once that is true; fail when it does not become true in time."""
    end = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(pause)
    return found


def _settings(site: Site) -> dict[str, Any]:
    """Return the [cluster] table: real images, and pods small enough for a machine of 2 cores."""
    emulator = {"STORAGE_EMULATOR_HOST": site.cluster.emulator} if site.cluster.emulator else {}
    return {
        "context": site.cluster.kubectl("config", "current-context").strip(),
        "namespace": site.namespace,
        "storage": site.storage,
        "images": site.images,
        "env": {**emulator, "XLA_FLAGS": _XLA, "JAX_PLATFORMS": "cpu"},
        **{kind: dict(_ASK) for kind in KINDS},
    }


def _toml(name: str, table: dict[str, Any]) -> str:
    """Return a table and the tables in it."""
    plain = [f"{json.dumps(key)} = {_value(value)}" for key, value in table.items() if not isinstance(value, dict)]
    inner = [_toml(f"{name}.{json.dumps(key)}", value) for key, value in table.items() if isinstance(value, dict)]
    return "\n".join([f"[{name}]", *plain, "", *inner])


def _value(value: Any) -> str:
    """Return a value in TOML; words and numbers are JSON's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


@contextlib.contextmanager
def _shown(request) -> Iterator[None]:
    """Let through what is printed, so that minutes of building do not look like a standstill."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        yield
