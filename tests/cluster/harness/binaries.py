"""Builds Kubernetes and what it needs from source, once: the pins in tests/cluster/go make programs in a cache folder.

Each module has its own go.mod, because their pins clash, and a go.sum that Go checks every download against.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from tests.cluster.harness.layout import CACHE, GO

KUBERNETES = "v1.34.4"  # from 1.35 the kubelet wants cgroup v2
_VERSION = "k8s.io/component-base/version"
_STAMP = (  # without it Helm's check of the version fails
    f"-X {_VERSION}.gitVersion={KUBERNETES} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=34 "
    f"-X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
)
_PROGRAMS = {  # program: (module in tests/cluster/go, package)
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "registry": ("registry", "."),
    "dns": ("dns", "."),
    "pause": ("pause", "."),
    "kube-scheduler": ("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kubelet": ("kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    "kwok": ("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    "jobset": ("jobset", "sigs.k8s.io/jobset"),
    "kueue": ("kueue", "sigs.k8s.io/kueue/cmd/kueue"),
}
_MANIFESTS = {"jobset": "sigs.k8s.io/jobset", "kueue": "sigs.k8s.io/kueue"}  # modules whose folder `config` is kept
_COMPILED = CACHE / "go-build"
"""What Go keeps while it builds, 8 GB that nobody needs afterwards."""
_ENVIRONMENT = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOCACHE": str(_COMPILED)}


def folder() -> Path:
    """Return where the programs of these pins lie: another pin, another folder."""
    digest = hashlib.sha256(repr((_STAMP, _PROGRAMS, _MANIFESTS)).encode())
    for path in sorted(path for path in GO.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(GO)}\n".encode() + path.read_bytes())
    return CACHE / f"bin-{digest.hexdigest()[:12]}"


def build() -> Path:
    """Return the folder of all programs, building what is missing (15 minutes on 2 cores, once)."""
    target = folder()
    target.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # scripts/test builds ahead, beside the groups before the cluster's
        for program in _PROGRAMS:
            if not (target / program).exists():
                _build(program, target / program)
        for name, module in _MANIFESTS.items():
            if not (target / f"{name}-config").exists():
                _keep_manifests(name, module, target / f"{name}-config")
        shutil.rmtree(_COMPILED, ignore_errors=True)
    return target


def _keep_manifests(name: str, module: str, target: Path) -> None:
    """Copy a module's manifests; they get their name when they are whole."""
    line = ["go", "list", "-m", "-f", "{{.Dir}}", module]
    found = subprocess.run(line, cwd=GO / name, env=_ENVIRONMENT, capture_output=True, text=True, check=True)
    half = target.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    for path in sorted((Path(found.stdout.strip()) / "config").rglob("*.yaml")):  # without the modes of Go's cache
        copy = half / path.relative_to(Path(found.stdout.strip()) / "config")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    half.replace(target)


def _build(program: str, target: Path) -> None:
    """Build one program; it gets its name when it is whole."""
    module, package = _PROGRAMS[program]
    start = time.monotonic()
    print(f"cluster: building {program}", end="", flush=True)
    half = target.with_suffix(".half")
    flags = f"-s -w {_STAMP if module == 'kubernetes' else ''}"
    line = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(half), package]
    subprocess.run(line, cwd=GO / module, env=_ENVIRONMENT, check=True)
    half.replace(target)
    print(f", {time.monotonic() - start:.0f} s", flush=True)
