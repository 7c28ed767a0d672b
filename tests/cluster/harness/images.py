"""Images for the node: all are pushed to the cluster's registry, and containerd pulls them from there."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster.harness import machine
from tests.cluster.harness.layout import BUILDAH, CACHE, REGISTRY_HOST, REPOSITORY, STATE
from tests.cluster.harness.services import has_image

NAMES = ("train", "sim", "ctl")
BASE = f"{REGISTRY_HOST}/debian:bookworm"
_SOURCES = {  # what an image is made from
    "all": ("images/install", "requirements/uv.txt", "pyproject.toml", "pi05"),
    "train": ("images/train", "requirements/train-cpu.txt"),
    "sim": ("images/sim", "requirements/sim.txt", "requirements/planner.txt"),
    "ctl": ("images/ctl", "requirements/ctl.txt", "pi05ctl", "charts"),
}
_ROOM = {"train": 4e9, "sim": 15e9, "ctl": 1e9}
"""Bytes without which building, pushing and pulling an image cannot end well; with less it is not begun."""
_PUBLIC = "http://deb.debian.org/debian"  # when this machine has no sources of Debian's own


def pause(programs: Path) -> str:
    """Return the name of the image of a Pod's sandbox, pushed."""
    return of_program(programs / "pause", "/pause")


def of_program(program: Path, place: str) -> str:
    """Return the name of an image that holds one program and nothing else, pushed."""
    with program.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    image = f"{REGISTRY_HOST}/{program.name}:{digest}"
    if not has_image(image):
        with tempfile.TemporaryDirectory(dir=STATE) as folder:
            recipe = f'FROM scratch\nCOPY {program.name} {place}\nUSER 65535:65535\nENTRYPOINT ["{place}"]\n'
            Path(folder, "Dockerfile").write_text(recipe)
            shutil.copy2(program, folder)
            buildah("build", "--tag", image, folder)
        push(image)
    return image


def base() -> str:
    """Return the name of a minimal Debian, pushed: what Dockerfiles start from where no public registry is in reach."""
    rootfs = CACHE / "debian"
    if not rootfs.exists():
        half = rootfs.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        print("cluster: making a base image with debootstrap", flush=True)
        line = ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(half), _mirror()]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        for needless in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(half / needless)
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


def build(name: str) -> str:
    """Return the name of an image of images/, of the code as it is now, built and pushed unless the registry has it."""
    image = f"{REGISTRY_HOST}/pi05-{name}:{_digest(name)}"
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at a time get in each other's way
        if not has_image(image):
            machine.check_room(CACHE, _ROOM[name] if not _builds(name) else 1e9)
            start = time.monotonic()
            print(f"cluster: building the image {name}", end="", flush=True)
            options = ["--tool", "buildah", "--base", base(), "--cpu", "--tag", image.rpartition(":")[2]]
            try:
                _run([str(REPOSITORY / "scripts/images"), *options, name])
            except RuntimeError:
                buildah("rm", "--all")  # with their mounts
                raise
            shutil.rmtree(BUILDAH / "tmp")  # what uv downloaded, gigabytes that the layers hold, too
            push(image.replace(REGISTRY_HOST, "localhost"), image)
            _forget_others(image.replace(REGISTRY_HOST, "localhost"))
            print(f", {time.monotonic() - start:.0f} s", flush=True)
    return image


def _builds(name: str) -> list[str]:
    """Return the builds of an image that the builder's store has, whose layers a new one begins with."""
    listed = _run(["buildah", "images", "--format", "{{.Name}}:{{.Tag}}"]).split()
    return [found for found in listed if found.rpartition(":")[0] == f"localhost/pi05-{name}"]


def _forget_others(image: str) -> None:
    """Remove what earlier code's builds of this image left in the builder's store, gigabytes each."""
    name = image.rpartition(":")[0].rpartition("pi05-")[2]
    if old := [found for found in _builds(name) if found != image]:
        buildah("rmi", *old)
    buildah("rmi", "--prune")  # layers that no image has any more


def _digest(name: str) -> str:
    """Return a tag that names the content of an image: another line of code, another tag, and the node pulls it."""
    sources = _SOURCES["all"] + _SOURCES[name]
    digest = hashlib.sha256()
    for source in sources:
        path = REPOSITORY / source
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _is_source(file))
        for file in files:
            digest.update(f"{file.relative_to(REPOSITORY)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _is_source(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def push(image: str, name: str | None = None) -> None:
    """Push an image to the cluster's registry, in the compression that is unpacked five times as fast as gzip."""
    fast = ("--compression-format", "zstd", "--compression-level", "1")
    buildah("push", "--quiet", *fast, image, f"docker://{name or image}")


def buildah(*words: str | Path) -> None:
    """Call buildah on a store of the harness's own."""
    _run(["buildah", *map(str, words)])


def _run(line: list[str]) -> str:
    """Run a builder with settings of the harness's own, and return what it said; raise RuntimeError when it fails."""
    said = STATE / "images.log"
    with said.open("wb") as log:
        done = subprocess.run(line, env=environment(), stdout=log, stderr=log, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line[:3])} ... failed:\n{said.read_text(errors='replace')[-4000:]}")
    return said.read_text(errors="replace")


def environment() -> dict[str, str]:
    """Write and name the builder's settings: store and temporary files in our folders, plain http to our registry."""
    store = STATE / "storage.conf"
    registries = STATE / "registries.conf"
    store.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{BUILDAH}/store"\nrunroot = "{STATE}/buildah"\n')
    registries.write_text(f'[[registry]]\nlocation = "{REGISTRY_HOST}"\ninsecure = true\n')
    temporary = BUILDAH / "tmp"  # cache mounts of builds lie here, too: what uv downloaded
    temporary.mkdir(parents=True, exist_ok=True)
    own = {"CONTAINERS_STORAGE_CONF": store, "CONTAINERS_REGISTRIES_CONF": registries, "TMPDIR": temporary}
    return {**os.environ, "BUILDAH_RUNTIME": "runc", **{name: str(value) for name, value in own.items()}}
