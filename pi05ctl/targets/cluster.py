"""Runs as Helm releases of one Kubernetes cluster: each is a Job, with everything it says and leaves in storage.

The release is the wish that a run should run: submit installs it, cancel uninstalls it. What outlives it is in storage.
Submissions of one run are one after the other by a lease there, so that nothing is ever started twice.
"""

import functools
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

from pi05.errors import JobError
from pi05.events import Event, parse
from pi05.storage import RunPaths, connect
from pi05ctl import inputs
from pi05ctl.errors import NameTaken, TargetError, UsageError
from pi05ctl.facts import ABSENT, Facts, Object, observe
from pi05ctl.render import PipelineJob, Rendered, stages
from pi05ctl.settings import Cluster
from pi05ctl.spec import Kind, RunSpec
from pi05ctl.status import Snapshot, fold
from pi05ctl.targets import records
from pi05ctl.targets.helm import Helm
from pi05ctl.targets.kubernetes import RUN_LABEL, Kubernetes
from pi05ctl.targets.podlogs import PodLogs, follow
from pi05ctl.targets.records import Records
from pi05ctl.targets.target import Submission
from pi05ctl.values import chart_values

_TAIL_OF_ONE, _TAIL_OF_MANY = 200, 40
"""Lines of a pod's log that a look at one run reads, and a table of all runs."""
_WAIT_FOR_END = 60.0
"""Seconds beyond its grace period after which a run that does not end is given up."""


class ClusterTarget:
    """A namespace of a cluster.

    Args:
        cluster: Settings of the cluster.
        clock: Seconds since 1970.
        sleep: Waits for seconds.
    """

    name = "cluster"
    poll = 2.0

    def __init__(
        self,
        cluster: Cluster,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cluster, self.storage = cluster, connect(cluster.storage)
        self.kubernetes = Kubernetes(cluster.context, cluster.namespace)
        self.helm = Helm(cluster.context, cluster.namespace)
        self._records = Records(self.storage)
        self._clock, self._sleep = clock, sleep

    def runs(self) -> list[str]:
        """Return the names of all runs."""
        return self._records.names()

    def load(self, name: str) -> Rendered:
        """Return a run as it was submitted."""
        return self._records.load(name)

    def submit(self, run: Rendered, parent: str | None = None) -> Submission:
        """Install a run's release unless it runs or is done, and return at once.

        Raises:
            UsageError: A setting or something the run needs is missing; nothing was installed.
            TargetError: The cluster refuses it, or cannot be reached.
        """
        self._refuse_placeholders()
        values = self.values(run)
        with self._records.submitting(run.run, self._sleep):
            before = self.snapshot(run.run)
            if before is not None:
                self._records.refuse_other(run)
                now = fold(before, self._clock())
                if not now.ended:
                    return Submission(run.run, "running")
                if now.state == "Done" and inputs.made(run, self.storage):
                    return Submission(run.run, "done")
            problem = inputs.missing(run, self.storage)
            if problem:
                raise UsageError(problem)
            self._make_room(run.run)
            self._records.write(run, self._clock(), parent)
            try:
                self._install(run.run, values)
            except TargetError:
                if before is None:
                    self._records.forget(run.run)
                raise
        return Submission(run.run, "resumed" if before is not None else "started")

    def values(self, run: Rendered) -> bytes:
        """Return the values of a run's release."""
        return chart_values(run, self.cluster, version("pi05"), revision()).to_json().encode()

    def preview(self, run: Rendered) -> bytes:
        """Return the objects that a run is made of; needs no cluster."""
        return self.helm.template(run.run, self.values(run))

    def snapshot(self, run: str) -> Snapshot | None:
        """Return what is known of a run now; None when there is none of this name."""
        files = self._records.files(run)
        if RunPaths(run).spec not in files:
            return None
        jobs = {_run(job): job for job in self.kubernetes.jobs(run)}
        pods = {run: self.kubernetes.pods(run)}
        return self._together(files, jobs, pods, [run], _TAIL_OF_ONE)[0][0]

    def snapshots(self) -> tuple[list[Snapshot], list[str]]:
        """Return what is known of every run now, and complaints about those that cannot be read."""
        with ThreadPoolExecutor() as pool:  # the API server and the bucket are asked at the same time
            asked_pods = pool.submit(self.kubernetes.pods, fields="status.phase!=Succeeded")
            asked_jobs = pool.submit(self.kubernetes.jobs)
            files, problems = self._all_files()
        jobs = {_run(job): job for job in asked_jobs.result()}
        pods: dict[str, list[Object]] = {}
        for pod in asked_pods.result():
            pods.setdefault(_run(pod), []).append(pod)
        runs = sorted({key.split("/")[1] for key in files if key.endswith("/run.json")} | jobs.keys())
        found, damaged = self._together(files, jobs, pods, runs, _TAIL_OF_MANY)
        return found, problems + damaged

    def _all_files(self) -> tuple[dict[str, bytes], list[str]]:
        """Return the records of all runs; a complaint instead when the bucket cannot be read."""
        try:
            return self._records.all_files(), []
        except JobError as error:
            return {}, [f"{error} (shown is what the cluster alone knows)"]

    def alive(self, run: str) -> bool:
        """Return whether something of the run still works."""
        jobs = self.kubernetes.jobs(run)
        facts = observe(jobs[0] if jobs else None, self.kubernetes.pods(run))
        return facts.phase not in ("absent", "complete", "failed")

    def log(self, run: str) -> bytes:
        """Return everything that a run printed, one pod after the other, also of pods that are gone."""
        return PodLogs(self.kubernetes, self.storage, run).read()

    def follow_log(self, run: str) -> Iterator[bytes]:
        """Yield what a run prints, from the beginning until it has ended."""
        logs = PodLogs(self.kubernetes, self.storage, run)
        return follow(logs, lambda: not self.alive(run), self._sleep)

    def cancel(self, run: str, now: bool = False) -> bool:
        """End a run and return when it is gone: it saves first, or with `now` is killed. False: it was not running."""
        was_alive = self.alive(run)
        below = [stage.run for stage in stages(self.load(run))]
        if was_alive:
            self._records.cancel(run, self._clock(), now)
            if now:
                self.kubernetes.kill_pods(run)
            self.helm.uninstall(run)
            self._wait_until_gone(run)
        ended = [self.cancel(stage, now) for stage in below if self._records.exists(stage) and self.alive(stage)]
        return was_alive or any(ended)

    def forget(self, run: str) -> None:
        """Remove what an ended run has in the cluster; what it wrote stays."""
        release = self.helm.find(run)
        if release is not None and release.ours:
            self.helm.uninstall(run)
        self.kubernetes.remove(run)

    def installed(self) -> dict[str, float]:
        """Return when the release or Job of each run and probe that the cluster has was made."""
        found = {_run(job): _created(job) for job in self.kubernetes.jobs()}
        return found | {release.name: release.updated for release in self.helm.releases()}

    def _refuse_placeholders(self) -> None:
        """Raise UsageError when a setting still is a placeholder."""
        if self.cluster.unset:
            names = ", ".join(self.cluster.unset)
            raise UsageError(f"{names} in pi05.toml: not set yet; pi05ctl init asks for what a cluster needs")

    def _make_room(self, run: str) -> None:
        """Remove what an earlier attempt left: a release that ended, or one that an interrupted Helm half made."""
        release = self.helm.find(run)
        if release is None:
            return
        if not release.ours:
            raise TargetError(
                f"namespace {self.cluster.namespace} has a Helm release {run} of another chart ({release.chart}); "
                "remove that, or use --again for another name"
            )
        self.helm.uninstall(run)
        self._wait_until_gone(run)

    def _install(self, run: str, values: bytes) -> None:
        """Install a release; what a failed installation made is removed, so that the next one finds its place free."""
        try:
            self.helm.install(run, values)
        except NameTaken:
            raise
        except TargetError:
            release = self.helm.find(run)
            if release is not None and release.ours:
                self.helm.uninstall(run)
            raise

    def _wait_until_gone(self, run: str) -> None:
        """Return when no Job and no pod of a run is left."""
        kind: Kind = cast("Kind", run.partition("-")[0])
        until = time.monotonic() + getattr(self.cluster, kind).grace_seconds + _WAIT_FOR_END
        while self.kubernetes.jobs(run) or self.kubernetes.pods(run):
            if time.monotonic() > until:
                raise TargetError(
                    f"{run} does not end (is its node lost?); kubectl get pods -l {RUN_LABEL}={run} shows where it is, "
                    f"pi05ctl cancel {run} --now does not wait for it"
                )
            self._sleep(0.5)

    def _together(
        self,
        files: Mapping[str, bytes],
        jobs: Mapping[str, Object],
        pods: Mapping[str, Sequence[Object]],
        runs: Sequence[str],
        tail: int,
    ) -> tuple[list[Snapshot], list[str]]:
        """Return the snapshots of runs, and complaints; the logs of all pods that run are read in parallel."""
        facts = {run: self._facts(jobs.get(run), pods.get(run, ())) for run in runs}
        events = self._events(facts, tail)
        found: list[Snapshot] = []
        damaged: list[str] = []
        for run in runs:
            try:
                found.append(self._snapshot(run, files, jobs.get(run), facts[run], events.get(run, ())))
            except TargetError as error:
                damaged.append(str(error))
        return found, damaged

    def _snapshot(
        self, run: str, files: Mapping[str, bytes], job: Object | None, facts: Facts, events: Sequence[Event]
    ) -> Snapshot:
        """Return one run's snapshot; without its record, the Job's labels have to do."""
        data = files.get(RunPaths(run).spec)
        record = self._records.parse(run, data) if data is not None else None
        if record is None and job is None:
            raise TargetError(f"there is no record of {run}")
        return Snapshot(
            run=run,
            spec=record.spec if record else _spec(cast("Object", job)),
            created=record.created if record else _created(cast("Object", job)),
            parent=record.parent if record else None,
            train_run=record.train_run if record else None,
            facts=facts,
            cancelled=records.cancelled(files, run),
            verdicts=records.verdicts(files, run),
            events=tuple(sorted((*facts.events, *events), key=lambda event: event.time)),
        )

    def _facts(self, job: Object | None, pods: Sequence[Object]) -> Facts:
        """Return what the cluster says of a run; asks for its events and for Kueue only when pods do not say enough."""
        if job is None and not pods:
            return ABSENT
        facts = observe(job, pods)
        if job is None or facts.phase not in ("pending", "queued") or pods:
            return facts
        if facts.phase == "queued":
            return observe(job, pods, queue=self._queue(job))
        return observe(job, pods, self.kubernetes.events([job["metadata"]["name"]]))

    def _queue(self, job: Object) -> str:
        """Return what Kueue says of a Job that it holds back; empty when there is no Kueue."""
        group = self.kubernetes.find("/apis/kueue.x-k8s.io")
        if group is None:
            return ""
        version = group["preferredVersion"]["groupVersion"]
        path = f"/apis/{version}/namespaces/{self.cluster.namespace}/workloads"
        found = self.kubernetes.find(path, labelSelector=f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}")
        items: list[Object] = (found or {}).get("items", [])
        conditions: list[Object] = [c for item in items for c in item.get("status", {}).get("conditions", [])]
        held = [c["message"] for c in conditions if c["type"] == "QuotaReserved" and c["status"] == "False"]
        return f"Kueue: {held[-1]}" if held else ""

    def _events(self, facts: Mapping[str, Facts], tail: int) -> dict[str, list[Event]]:
        """Return the latest events in the logs of all pods that print something now."""
        wanted = [(run, pod) for run, seen in facts.items() for pod in seen.pods]
        answers = self.kubernetes.together([self.kubernetes.log_request(pod, tailLines=tail) for _, pod in wanted])
        found: dict[str, list[Event]] = {}
        for (run, _), answer in zip(wanted, answers, strict=True):
            lines = (answer or b"").decode(errors="replace").splitlines()
            found.setdefault(run, []).extend(event for line in lines if (event := parse(line)) is not None)
        return found


@functools.cache
def revision() -> str:
    """Return the revision of this source, as git names it; empty where there is no git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cluster_of(job: PipelineJob) -> Cluster:
    """Return the cluster in which a pipeline's pod runs its stages: its own, by its own account."""
    if job.cluster is None:
        raise TargetError(f"{job.run} is a pipeline of the local target")
    return job.cluster.model_copy(update={"context": None})


def _run(obj: Object) -> str:
    return str(obj["metadata"].get("labels", {}).get(RUN_LABEL, ""))


def _spec(job: Object) -> RunSpec:
    """Return as much of a run's spec as its Job's labels tell."""
    labels = job["metadata"]["labels"]
    return RunSpec(kind=labels["pi05.dev/kind"], task=labels["pi05.dev/task"], preset="", target="cluster")


def _created(job: Object) -> float:
    return datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp()
