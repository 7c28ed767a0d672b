"""Builds Kubernetes and what it needs from source, once: the pins in tests/cluster/go make programs in a cache folder.

Each module has its own go.mod, because their pins clash, and a go.sum that Go checks every download against.
"""

import fcntl
import hashlib
import os
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
}


def folder() -> Path:
    """Return where the programs of these pins lie: another pin, another folder."""
    digest = hashlib.sha256(repr((_STAMP, _PROGRAMS)).encode())
    for path in sorted(path for path in GO.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(GO)}\n".encode() + path.read_bytes())
    return CACHE / f"bin-{digest.hexdigest()[:12]}"


def build() -> Path:
    """Return the folder of all programs, building what is missing (10 minutes on 2 cores, once)."""
    target = folder()
    target.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # scripts/test builds ahead, beside the groups before the cluster's
        for program in _PROGRAMS:
            if not (target / program).exists():
                _build(program, target / program)
    return target


def _build(program: str, target: Path) -> None:
    """Build one program; it gets its name when it is whole."""
    module, package = _PROGRAMS[program]
    start = time.monotonic()
    print(f"cluster: building {program}", end="", flush=True)
    half = target.with_suffix(".half")
    flags = f"-s -w {_STAMP if module == 'kubernetes' else ''}"
    line = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", str(half), package]
    subprocess.run(
        line, cwd=GO / module, env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}, check=True
    )
    half.replace(target)
    print(f", {time.monotonic() - start:.0f} s", flush=True)
