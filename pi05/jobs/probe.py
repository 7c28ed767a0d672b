"""Look around in a pod and say what is there: `python -m pi05.jobs.probe JOB.json`, for `pi05ctl doctor`.

It runs in a pod like those of real runs, of any image, and says what real runs would find: whether the folders can be
written, the bucket be reached, the programs of the image start, JAX see its devices, and the pod's account do what it
must. What belongs to an image is looked at in a process of its own, so that a driver that crashes is a finding. All
problems go into one event, the last line and the pod's termination message. Or, told so, it compiles a training's step.
"""

import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ValidationError

from pi05.config import Described, ProbeJob, explain
from pi05.errors import ConfigError, JobError
from pi05.events import Event, EventWriter
from pi05.jobs import output
from pi05.nvml import Gpu, summary
from pi05.storage import connect

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds who it is, when it may know."""

_SHOWN = ("pi05", "jax", "mani_skill", "kubernetes")
"""Packages whose versions are told, if the image has them."""
_PATIENCE = 120.0
"""Seconds that one program of the image may take to start; JAX on eight GPUs takes some."""
_FOREIGN = 0.05
"""Share of a GPU's memory that may be in use before anybody works on it: its driver takes some."""
_DEVICES = "import jax; d = jax.devices(); print(len(d), d[0].platform, d[0].device_kind, sep='|')"
_DRIVER = "from pi05 import cuda; raise SystemExit(cuda.driver())"
_SIMULATOR = "import mani_skill.envs"
_PLANNER = "import mplib"


@dataclass
class Found:
    """What was found.

    Attributes:
        versions: Of packages, by name.
        devices: What JAX sees, in words, and how its GPUs are.
        renderer: What would draw images ("lavapipe 25.0.7"), or why there are none; empty where nobody asks for any.
    """

    versions: dict[str, str] = field(default_factory=dict)
    devices: str = ""
    renderer: str = ""


def look(job: ProbeJob, found: Found) -> Iterator[str]:
    """Fill `found` and yield every problem in one line."""
    found.versions.update(_versions())
    yield from _folders()
    yield from _bucket(job.storage)
    if job.pods in ("train", "eval"):
        yield from _devices(job.gpus, found)
    if job.pods == "eval":
        yield from _starts("the simulator", [sys.executable, "-c", _SIMULATOR])
        found.renderer = _renderer()
    if job.planner_python:
        yield from _starts("the motion planner", [job.planner_python, "-c", _PLANNER])
    if job.pods == "pipeline":
        yield from _starts("Helm", [str(Path(sys.executable).with_name("helm")), "version", "--short"])
    if job.rights:
        yield from _rights(job.rights)


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in _SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _folders() -> Iterator[str]:
    """Look whether what must be writable is: the root of the file system is not."""
    for folder in (Path(tempfile.gettempdir()), Path.home(), Path("/dev/shm")):
        try:
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                file.write(bytes(1 << 20))
        except OSError as error:
            yield f"{folder} cannot be written: {error.strerror or error}"


def _bucket(url: str) -> Iterator[str]:
    """Write, read and delete an object; its name says who did."""
    key, content = f"doctor/{uuid.uuid4().hex}", b"pi05ctl doctor\n"
    try:
        storage = connect(url)
        storage.write(key, content)
        try:
            if storage.read(key) != content:
                yield f"{url} returned something else than what was written to it"
        finally:
            storage.delete(key)
    except (JobError, OSError) as error:
        yield str(error)


def _devices(wanted: int, found: Found) -> Iterator[str]:
    """Look what JAX sees."""
    done = _run([sys.executable, "-c", _DEVICES])
    if done.returncode:
        yield f"JAX does not start: {_last_line(done)}"
        return
    count, platform, kind = done.stdout.strip().splitlines()[-1].split("|")
    found.devices = f"{count} x {kind if platform != 'cpu' else 'cpu'}"
    on_purpose = os.environ.get("JAX_PLATFORMS") == "cpu"
    if wanted and (int(count) != wanted or platform != "gpu") and not on_purpose:
        driver = _last_line(_run([sys.executable, "-c", _DRIVER]))
        yield f"the pod has {wanted} GPUs and JAX sees {found.devices}; {driver}"
    if wanted:
        yield from _gpus(found)


def _gpus(found: Found) -> Iterator[str]:
    """Look whether GPUs are well and nobody else uses them; JAX, which was another process, is gone by now."""
    done = _run([sys.executable, "-m", "pi05.nvml"])
    if done.returncode:
        yield f"the GPUs cannot be asked how they are: {_last_line(done)}"
        return
    seen = [Gpu(**gpu) for gpu in json.loads(done.stdout)]
    if seen:
        found.devices += f" ({summary(seen)})"
    for gpu in seen:
        if gpu.trouble:
            yield f"{gpu.trouble}; have the node looked at (nvidia-smi -q), or drain it"
        if gpu.used_gb and gpu.total_gb and gpu.used_gb > _FOREIGN * gpu.total_gb:
            yield f"GPU {gpu.index} has {gpu.used_gb:.1f} of {gpu.total_gb:.1f} GB in use by somebody else"


def _renderer() -> str:
    """Return what draws images; that there is nothing is no problem, because not every preset has cameras."""
    done = _run([sys.executable, "-m", "pi05.cameras"])
    return done.stdout.strip() if done.returncode == 0 else f"no cameras: {_last_line(done)}"


def _starts(what: str, command: list[str]) -> Iterator[str]:
    """Run a program of the image."""
    try:
        done = _run(command)
    except OSError as error:
        yield f"{what} is not in the image: {command[0]}: {error.strerror}"
        return
    if done.returncode:
        yield f"{what} does not start: {_last_line(done)}"


def _rights(rights: tuple[tuple[str, str, str], ...]) -> Iterator[str]:
    """Ask Kubernetes whether the pod's account may do all that it must."""
    try:
        missing = [right for right, allowed in zip(rights, _allowed(rights), strict=True) if not allowed]
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        yield f"the Kubernetes API cannot be asked from here: {type(error).__name__}: {error}"
        return
    if missing:
        names = ", ".join(f"{verb} {resource}" for verb, _, resource in missing)
        yield f"the pod's service account may not {names}; k8s/base/rights.yaml gives it that"


def _allowed(rights: tuple[tuple[str, str, str], ...]) -> list[bool]:
    """Return whether each right is given, from SelfSubjectAccessReviews by the pod's own token."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    namespace = (ACCOUNT / "namespace").read_text()
    connection = http.client.HTTPSConnection(host, port, timeout=10, context=context)
    answers: list[bool] = []
    for verb, group, resource in rights:
        name, _, subresource = resource.partition("/")
        attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": name}
        review = {"spec": {"resourceAttributes": attributes | {"subresource": subresource}}}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"} | review
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        connection.request("POST", path, json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        answers.append(bool(answer["status"]["allowed"]))
    return answers


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, or for as long as we have patience."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer for {_PATIENCE:.0f} s")


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {done.returncode}"


def probe(job: ProbeJob, write: Callable[..., Event]) -> int:
    """Look around and say in one event what was found; return the exit code."""
    if job.described:
        return _compile(job.described, write)
    found = Found()
    problems = list(look(job, found))
    said: Mapping[str, object] = {"versions": found.versions, "devices": found.devices, "renderer": found.renderer}
    if problems:
        write("failed", message="; ".join(problems), exit_code=ConfigError.exit_code, **said)
        return ConfigError.exit_code
    write("finished", **said)
    return 0


def _compile(described: Described, write: Callable[..., Event]) -> int:
    """Compile a training's step for GPUs that are not here, and say its plan; for `pi05ctl plan --target cluster`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.json")
        path.write_text(described.job.model_dump_json())
        command = [sys.executable, "-m", "pi05.jobs.plan", str(path), "--chip", described.chip]
        command += ["--gpus", str(described.gpus), "--nodes", str(described.nodes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        write("failed", message=_last_line(done), exit_code=done.returncode)
        return done.returncode
    write("finished", plan=json.loads(done.stdout))
    return 0


def main(arguments: list[str]) -> int:
    """Read the job that the only argument names, look around, and return the exit code."""
    try:
        job = ProbeJob.model_validate_json(Path(arguments[0]).read_bytes())
    except (IndexError, OSError, ValidationError) as error:
        text = explain(error) if isinstance(error, ValidationError) else error
        sys.stderr.write(f"no probe's job: {text}\n")
        return ConfigError.exit_code
    return probe(job, EventWriter(job.run, sys.stdout, time.time, output.last_words).emit)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
