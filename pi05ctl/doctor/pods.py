"""What a run in a cluster depends on, seen from a pod of each image.

A probe is a Helm release of the chart with the pod of a real run in it, told to look around (pi05.jobs.probe): so the
image can be pulled, starts under the namespace's rules, and reaches the bucket as its service account. The release is
removed whatever happens, and Kubernetes ends and forgets its Job by itself should we be killed.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from threading import Event as Flag
from typing import Any, Literal, Protocol, get_args

from pi05.config import ProbeJob
from pi05ctl.cluster.values import Values, probe_values
from pi05ctl.doctor.cluster import RIGHTS, Site
from pi05ctl.doctor.finding import Check, Finding
from pi05ctl.errors import CtlError
from pi05ctl.runs.facts import Facts, Object, observe
from pi05ctl.spec.render import PLANNER_IN_IMAGE
from pi05ctl.spec.settings import Cluster

Kind = Literal["train", "eval", "pipeline"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Whose pods are tried out: together they have every image and every service account."""
NEEDS = ("settings", "helm", "namespace", "rights", "accounts")
_POLL = 1.0
_ROOM = 30.0
"""Seconds after which a pod that finds no room is given up; a scheduler takes one."""
MORE = 60
"""Seconds after ours that Kubernetes' own deadline ends the Job."""
_HOPELESS = (
    *("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("CreateContainer", "RunContainer", "FailedCreate", "quota"),
)
"""Beginnings of the reasons of a pending pod that waiting does not change."""


class Releases(Protocol):
    """What is asked of Helm."""

    def install(self, run: str, values: bytes) -> None: ...

    def uninstall(self, run: str) -> None: ...


class Objects(Protocol):
    """What is asked of the API server."""

    def jobs(self, run: str | None = None) -> list[Object]: ...

    def pods(self, run: str | None = None) -> list[Object]: ...

    def events(self, names: Sequence[str]) -> list[Object]: ...


@dataclass(frozen=True)
class Prober:
    """Tries out pods in one namespace.

    Attributes:
        cluster: Settings of the cluster.
        helm, kubernetes: What does it.
        revision: Of this source.
        timeout: Seconds that a probe may take, the pull of its image included.
        light: Whether it asks for little and no GPU.
        stopping: Set when nobody wants to know any more.
        clock: Seconds.
        name: Returns the name of a new release.
    """

    cluster: Cluster
    helm: Releases
    kubernetes: Objects
    revision: str
    timeout: float
    light: bool = False
    stopping: Flag = field(default_factory=Flag)
    clock: Callable[[], float] = time.monotonic
    name: Callable[[Kind], str] = lambda kind: f"probe-{kind}-{secrets.token_hex(3)}"

    def checks(self) -> list[Check[Site]]:
        """Return a check for each kind of pod."""
        return [Check(f"{kind} pod", partial(self._check, kind), NEEDS) for kind in KINDS]

    def probe(self, kind: Kind) -> Finding:
        """Install a probe, wait for what it says, and remove it."""
        name = self.name(kind)
        job = self._job(kind, name)
        seconds = int(self.timeout) + MORE
        values = probe_values(job, self.cluster, version("pi05"), self.revision, self.light, seconds)
        return self._finding(values.image.name, self.ended(name, values))

    def ended(self, name: str, values: Values) -> Facts:
        """Install a release, wait for its end, remove it, and return what was last known of it."""
        try:
            self.helm.install(name, values.to_json().encode())
            return self._wait(name)
        finally:
            self._remove(name)

    def _check(self, kind: Kind, _: Site) -> Finding:
        return self.probe(kind)

    def _job(self, kind: Kind, name: str) -> ProbeJob:
        gpus = self.cluster.train.gpus if kind == "train" and not self.light else 0
        return ProbeJob(
            run=name,
            pods=kind,
            storage=self.cluster.storage,
            gpus=gpus,
            planner_python=PLANNER_IN_IMAGE if kind == "eval" else None,
            rights=RIGHTS if kind == "pipeline" else (),
        )

    def _wait(self, name: str) -> Facts:
        """Return what is known of a probe when it has ended, cannot start, or took too long."""
        start = self.clock()
        while True:
            facts = self._facts(name)
            waited = self.clock() - start
            if facts.phase in ("complete", "failed"):
                return facts
            if facts.phase == "pending" and facts.why.startswith(_HOPELESS):
                return facts
            if waited >= _ROOM and _has_no_room(facts):
                return facts
            if waited >= self.timeout or self.stopping.wait(_POLL):
                return facts

    def _facts(self, name: str) -> Facts:
        """Return what the cluster says; events only where pods do not say enough."""
        jobs, pods = self.kubernetes.jobs(name), self.kubernetes.pods(name)
        facts = observe(jobs[0] if jobs else None, pods)
        if facts.phase in ("pending", "starting"):
            names = [name, *(pod["metadata"]["name"] for pod in pods)]
            return observe(jobs[0] if jobs else None, pods, self.kubernetes.events(names))
        return facts

    def _finding(self, image: str, facts: Facts) -> Finding:
        """Return what a probe's end means."""
        if self.stopping.is_set():
            return Finding("skipped", "interrupted; the probe is removed")
        if facts.phase == "complete":
            return _found(image, self.cluster.storage, facts)
        if facts.phase == "failed":
            return Finding("missing", f"{image}: {facts.why}", facts.remedy)
        if facts.phase == "queued" or (_has_no_room(facts) and _busy(facts.why)):
            remedy = "try again when there is room, or with --light, which asks for little and no GPU"
            return Finding("warning", f"{image}: not tried out, it waits for room: {facts.why}", remedy)
        if _has_no_room(facts):
            remedy = (
                "no node will do: lower what [cluster.train] and so on ask for, or correct node_selector, tolerations"
            )
            return Finding("missing", f"{image}: {facts.why}", remedy)
        if facts.phase == "pending" and facts.why.startswith(_HOPELESS):
            return Finding("missing", f"{image}: {facts.why}", facts.remedy)
        doing = f"{facts.phase}: {facts.why}" if facts.why else facts.phase
        return Finding("missing", f"{image}: not done after {self.timeout:.0f} s, {doing}", "--timeout gives it longer")

    def _remove(self, name: str) -> None:
        """Remove a probe; a Helm that Ctrl-C has interrupted, too, is asked again."""
        try:
            self.helm.uninstall(name)
        except CtlError:
            self.helm.uninstall(name)


def _found(image: str, storage: str, facts: Facts) -> Finding:
    """Return what a probe that ended well said."""
    said: dict[str, Any] = (facts.events[-1].model_extra or {}) if facts.events else {}
    versions: dict[str, str] = said.get("versions", {})
    parts = [f"{name} {number}" for name, number in versions.items()]
    parts += filter(None, [said.get("devices"), said.get("renderer")])
    text = f"{image} starts and reaches {storage}; {', '.join(parts)}"
    here = version("pi05")
    if versions.get("pi05", here) != here:
        return Finding("warning", f"{text}; here is pi05 {here}", "scripts/images --push builds images of this version")
    if str(said.get("renderer") or "").startswith("no cameras"):
        remedy = (
            "scripts/images sim --push builds one that draws; presets without cameras (tiny) work with this one, too"
        )
        return Finding("warning", text, remedy)
    return Finding("ok", text)


def _has_no_room(facts: Facts) -> bool:
    """Return whether a probe is not started until there is room for it."""
    return facts.phase == "queued" or (facts.phase == "pending" and facts.why.startswith("Unschedulable"))


def _busy(why: str) -> bool:
    """Return whether the scheduler says that others use what a pod asks for, and not that no node will ever do."""
    return "No preemption victims" in why or ("Insufficient" in why and "Preemption is not helpful" not in why)
