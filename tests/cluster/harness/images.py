"""Images for the node: all are pushed to the cluster's registry, and containerd pulls them from there."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.harness.layout import BUILDAH, CACHE, REGISTRY_HOST, STATE
from tests.cluster.harness.services import has_image

BASE = f"{REGISTRY_HOST}/debian:bookworm"
_PUBLIC = "http://deb.debian.org/debian"  # when this machine has no sources of Debian's own


def pause(programs: Path) -> str:
    """Return the name of the image of a Pod's sandbox, pushed."""
    digest = hashlib.sha256((programs / "pause").read_bytes()).hexdigest()[:12]
    image = f"{REGISTRY_HOST}/pause:{digest}"
    if not has_image(image):
        with tempfile.TemporaryDirectory(dir=STATE) as folder:
            Path(folder, "Dockerfile").write_text(
                'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n'
            )
            shutil.copy2(programs / "pause", folder)
            buildah("build", "--tag", image, folder)
        push(image)
    return image


def base() -> str:
    """Return the name of a minimal Debian, pushed: what the Dockerfiles start from, where no registry can be reached."""
    rootfs = CACHE / "debian"
    if not rootfs.exists():
        half = rootfs.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        print("cluster: making a base image with debootstrap", flush=True)
        line = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(half), _mirror()]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(half / "var/cache/apt/archives")
        shutil.rmtree(half / "var/lib/apt/lists")
        half.replace(rootfs)
    if not has_image(BASE):
        with tempfile.TemporaryDirectory(dir=STATE) as folder:
            recipe = Path(folder, "Dockerfile")
            recipe.write_text('FROM scratch\nCOPY . /\nCMD ["/bin/bash"]\n')
            buildah("build", "--tag", BASE, "--file", recipe, rootfs)
        push(BASE)
    return BASE


def _mirror() -> str:
    """Return where this machine itself takes Debian from."""
    wanted = "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)"
    lines = subprocess.run(["apt-get", "indextargets", "--format", wanted], capture_output=True, text=True, check=False)
    found = [line.split()[3] for line in lines.stdout.splitlines() if line.startswith("Debian bookworm main ")]
    return found[0] if found else _PUBLIC


def push(image: str) -> None:
    """Push an image to the cluster's registry, uncompressed: it does not travel."""
    buildah("push", "--quiet", "--tls-verify=false", "--disable-compression", image)


def buildah(command: str, *words: str | Path) -> None:
    """Call buildah on a store of the harness's own."""
    store = ("--root", BUILDAH, "--runroot", STATE / "buildah", "--storage-driver", "overlay")
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(["buildah", *map(str, store), command, *map(str, words)], check=False, text=True, **quiet)
    if done.returncode:
        raise RuntimeError(f"buildah {command} failed:\n{done.stdout[-4000:]}")
