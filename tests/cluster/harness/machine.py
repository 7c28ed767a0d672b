"""Whether this machine can run the cluster, and how to install what it lacks."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

PLUGINS = Path("/usr/lib/cni")
_PROGRAMS = {  # what is called, and the Debian package that has it
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "umount": "mount",
}
_INSTEAD = "or point PI05_TEST_KUBECONFIG to a cluster, for example one that kind made (DEVELOPERS.md, Cluster tests)"


class Unsuitable(Exception):
    """This machine cannot run the cluster; the message says why and what to do instead."""


def check() -> None:
    """Return when this machine has all that the cluster needs, installed here if apt can; raise Unsuitable else."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unsuitable(
            f"the cluster needs Linux on x86_64 and this is {platform.system()} on {platform.machine()}; {_INSTEAD}"
        )
    if os.geteuid() != 0:
        raise Unsuitable(f"the cluster needs root for containers and a bridge; run as root, {_INSTEAD}")
    if not shutil.which("go"):
        raise Unsuitable(
            f"Kubernetes is built from source and there is no Go here; install Go 1.26 or newer, {_INSTEAD}"
        )
    lacking = _lacking()
    if lacking and shutil.which("apt-get"):
        _install(lacking)
        lacking = _lacking()
    if lacking:
        raise Unsuitable(f"the cluster needs {', '.join(lacking)}; install that, {_INSTEAD}")


def check_room(folder: Path, needed: float) -> None:
    """Raise Unsuitable unless a folder's disk has so many bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Unsuitable(
            f"disk full: {needed / 1e9:.0f} GB are needed in {folder}, which has {free / 1e9:.1f} GB free; make room, "
            "or set XDG_CACHE_HOME to a larger disk"
        )


def _lacking() -> list[str]:
    """Return the packages whose programs are not here."""
    packages = {package for program, package in _PROGRAMS.items() if not shutil.which(program)}
    if not (PLUGINS / "bridge").exists():
        packages.add("containernetworking-plugins")
    return sorted(packages)


def _install(packages: list[str]) -> None:
    """Install Debian packages; without success when apt says no."""
    print(f"cluster: this machine lacks {', '.join(packages)}; installing that with apt-get", flush=True)
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "stdout": subprocess.DEVNULL, "check": False}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], **quiet)
