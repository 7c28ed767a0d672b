"""What a run on this machine depends on: Linux, the environments, the disk."""

import ctypes.util
import json
import os
import platform
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pi05.storage import FileStorage
from pi05ctl.doctor.cluster import reach
from pi05ctl.doctor.finding import Check, Finding
from pi05ctl.errors import UsageError
from pi05ctl.spec.settings import Settings

_JOBS = ("pi05", "jax", "flax", "optax", "orbax", "pyarrow", "mani_skill", "lerobot")
_PLANNER = ("pi05", "mplib", "mani_skill", "h5py")
_SCRIPT = """
import json, os, sys, sysconfig
from importlib.util import find_spec
own = {name.partition(".")[0] for name in os.listdir(sysconfig.get_path("purelib"))} | sys.stdlib_module_names
given = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isdir(folder)]
given = [folder for folder in given if not os.path.isfile(f"{folder}/pi05/__init__.py")]  # a checkout of ours
modules = [(name.partition(".")[0], os.path.join(folder, name)) for folder in given for name in os.listdir(folder)]
real = [one for one in modules if one[1].endswith((".py", ".so")) or os.path.isfile(f"{one[1]}/__init__.py")]
shadows = sorted(path for name, path in real if name in own)
print(json.dumps([[name for name in sys.argv[1:] if find_spec(name) is None], shadows]))
"""
"""Prints which of some packages an interpreter does not find, and what of PYTHONPATH comes before its own."""
_ROOM = 2 << 30
"""Bytes that a pipeline of preset tiny may write, and then some."""
_SETUP = "scripts/quickstart sets it up, or name another one in pi05.toml"


@dataclass(frozen=True)
class Site:
    """What the checks look at.

    Attributes:
        settings: Where runs live and what runs them.
        system: `Linux x86_64`, as the machine says it.
    """

    settings: Settings
    system: str = f"{platform.system()} {platform.machine()}"

    @property
    def storage(self) -> FileStorage:
        """Where runs live."""
        if not self.settings.storage.startswith("file:"):
            raise UsageError(f"the local target keeps its runs on this machine, not in {self.settings.storage}")
        return FileStorage(self.settings.storage)


def machine(site: Site) -> Finding:
    """Look what kind of machine this is."""
    if site.system != "Linux x86_64":
        text = f"this is {site.system}; the simulator and the planner have wheels for Linux x86_64 only"
        return Finding("missing", text, "use such a machine, or --target cluster")
    return Finding("ok", site.system)


def libraries(_: Site) -> Finding:
    """Look for the one library that the simulator takes from the system."""
    if ctypes.util.find_library("X11") is None:
        return Finding("missing", "libX11 is not installed; the simulator needs it", "sudo apt-get install libx11-6")
    return Finding("ok", "libX11")


def python(site: Site) -> Finding:
    """Look for the jobs' interpreter and its packages."""
    return _environment(site.settings.python, _JOBS, "python")


def planner(site: Site) -> Finding:
    """Look for the planner's interpreter and its packages."""
    return _environment(site.settings.planner_python, _PLANNER, "planner_python")


def cameras(site: Site) -> Finding:
    """Look for the Vulkan driver that draws images; presets without cameras do not need it."""
    asked = [site.settings.python, "-m", "pi05.cameras"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding("warning", f"presets with cameras do not run here: {why}", "scripts/_setup render")
    return Finding("ok", done.stdout.strip())


def storage(site: Site) -> Finding:
    """Write, read and delete a file, and lock one."""
    key = f"doctor/{uuid.uuid4().hex}"
    with site.storage.lease(f"{key}/lease"):
        found = reach(site.storage)
    site.storage.delete(key)
    return found


def disk(site: Site) -> Finding:
    """Look how much room there is."""
    root = site.storage.root
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / 1e9:.1f} GB free in {root}"
    if free < _ROOM:
        return Finding("missing", f"{text}, a small pipeline takes up to {_ROOM / 1e9:.1f}", "pi05ctl gc removes some")
    return Finding("ok", text)


CHECKS: Sequence[Check[Site]] = (
    Check("machine", machine),
    Check("libraries", libraries, ("machine",)),
    Check("python", python, ("machine",)),
    Check("planner", planner, ("machine",)),
    Check("cameras", cameras, ("python",)),
    Check("storage", storage),
    Check("disk", disk, ("storage",)),
)


def _environment(interpreter: str, packages: Sequence[str], setting: str) -> Finding:
    """Look for an interpreter and packages, without importing them."""
    if not Path(interpreter).is_file():
        return Finding("missing", f"{setting} {interpreter} does not exist", _SETUP)
    try:
        done = subprocess.run([interpreter, "-c", _SCRIPT, *packages], capture_output=True, text=True, check=False)
    except OSError as error:
        return Finding("missing", f"{setting} {interpreter} does not start: {error.strerror}", _SETUP)
    if done.returncode:
        home = "unset PYTHONHOME, or: " if os.environ.get("PYTHONHOME") else ""
        return Finding("missing", f"{setting} {interpreter} is no Python: {done.stderr.strip()[-200:]}", home + _SETUP)
    absent, shadows = _told(done.stdout)
    if shadows:
        more = f" and {len(shadows) - 1} more" if shadows[1:] else ""
        text = f"PYTHONPATH puts {shadows[0]}{more} before the packages of {setting} {interpreter}"
        return Finding("missing", text, "unset PYTHONPATH (ROS sets it in every shell)")
    if absent:
        return Finding("missing", f"{setting} {interpreter} has no {', '.join(absent)}", _SETUP)
    return Finding("ok", interpreter)


def _told(printed: str) -> tuple[list[str], list[str]]:
    """Return what _SCRIPT printed: the packages that are absent, and what PYTHONPATH puts before others."""
    try:
        absent, shadows = json.loads(printed)
    except ValueError:  # whatever this program is, it does not read what it is given
        return [], []
    return absent, shadows
