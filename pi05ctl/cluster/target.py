"""Runs as Helm releases of one Kubernetes cluster: each is a Job, with everything it says and leaves in storage.

The release is the wish that a run should run: submit installs it, cancel uninstalls it. What outlives it is in storage.
Submissions of one run are one after the other by a lease there, so that nothing is ever started twice.
"""

import functools
import itertools
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar, cast

from pi05.errors import JobError
from pi05.events import Event, parse
from pi05.storage import RunPaths, Storage, connect
from pi05ctl.cluster.api import RUN_LABEL, Kubernetes
from pi05ctl.cluster.helm import Helm
from pi05ctl.cluster.podlogs import PodLogs, follow
from pi05ctl.cluster.values import chart_values
from pi05ctl.errors import Forbidden, NameTaken, TargetError, UsageError
from pi05ctl.runs import inputs, records
from pi05ctl.runs.facts import ABSENT, Facts, Object, observe
from pi05ctl.runs.records import Records
from pi05ctl.runs.status import Snapshot, fold
from pi05ctl.runs.target import Submission
from pi05ctl.spec.render import PipelineJob, Rendered, stages
from pi05ctl.spec.runspec import Kind, RunSpec
from pi05ctl.spec.settings import Cluster

T = TypeVar("T")

_TAIL_OF_ONE, _TAIL_OF_MANY = 200, 24
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
        self.cluster = cluster
        self.kubernetes = Kubernetes(cluster.context, cluster.namespace)
        self.helm = Helm(cluster.context, cluster.namespace)
        self._clock, self._sleep = clock, sleep

    @property
    def storage(self) -> Storage:
        """Where runs live; connected when it is needed, because loading the client of a bucket takes a while."""
        return self._records.storage

    @functools.cached_property
    def _records(self) -> Records:
        return Records(connect(self.cluster.storage))

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
        self.kubernetes.check()
        self.values(run)  # which refuses what does not fit the pods before anybody waits for a lock
        with self._records.submitting(run.run, self._sleep):
            before, run = self.snapshot(run.run), self._records.current(run)
            if before is not None:
                self._records.refuse_other(run)
                now = fold(before, self._clock())
                absent = before.facts is not None and before.facts.phase == "absent"  # nobody else is making it now
                if not now.ended and not absent:
                    return Submission(run.run, "running")
                if now.state == "Done" and inputs.made(run, self.storage):
                    return Submission(run.run, "done")
            problem = inputs.missing(run, self.storage)
            if problem:
                raise UsageError(problem)
            self._make_room(run.run)
            self._records.write(run, self._clock(), parent)
            try:
                self._install(run.run, self.values(run))
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
        jobs = self.kubernetes.jobs(run)
        job = jobs[0] if jobs else None
        facts = self._facts(job, self.kubernetes.pods(run))
        printed = self._printed({run: facts}, _TAIL_OF_ONE).get(run, [])
        return self._snapshot(run, files, job, facts, printed)

    def snapshots(self) -> tuple[list[Snapshot], list[str]]:
        """Return what is known of every run now, and complaints about those that cannot be read.

        The API server and the bucket are asked at the same time. What the pods of a run print is newer than what they
        last wrote to the bucket; where all of them print, that is not read, nor whether somebody cancels the run.
        """
        problems: list[str] = []
        self.kubernetes.load()
        with ThreadPoolExecutor() as pool:
            asked_facts = pool.submit(self._all_facts)
            asked_printed = pool.submit(lambda: self._printed(asked_facts.result()[1], _TAIL_OF_MANY))
            files, others = _or_complain(self._records.all_asked, ({}, []), problems)
            jobs, facts = asked_facts.result()
            revived = [run for run in jobs if run not in others and facts[run].phase != "complete"]  # was done, goes on
            files, others = files | self._records.asked(revived), [*others, *revived]
            whole = {run for run in others if run in jobs and _all_print(jobs[run], facts[run])}
            silent = [run for run in others if run not in whole]
            files |= _or_complain(lambda: self._records.last_words(silent), {}, problems)
            printed = asked_printed.result()
        mute = [run for run in whole if not all(printed[run])]
        files |= _or_complain(lambda: self._records.last_words(mute), {}, problems)
        own = records.by_run(files)
        self._records.keep(own, others)
        found: list[Snapshot] = []
        for run in sorted(jobs.keys() | {run for run, keys in own.items() if RunPaths(run).spec in keys}):
            fact = facts.get(run, ABSENT)
            try:
                found.append(self._snapshot(run, own.get(run, {}), jobs.get(run), fact, printed.get(run, ())))
            except TargetError as error:
                problems.append(str(error))
        return found, problems

    def _all_facts(self) -> tuple[dict[str, Object], dict[str, Facts]]:
        """Return the Jobs of all runs and what the cluster says of each run that it knows. Done pods have no part."""
        with ThreadPoolExecutor() as pool:
            asked_pods = pool.submit(self.kubernetes.pods, fields="status.phase!=Succeeded")
            jobs = {_run(job): job for job in self.kubernetes.jobs()}
        pods = _by_run(asked_pods.result())
        return jobs, {run: self._facts(jobs.get(run), pods.get(run, ())) for run in jobs.keys() | pods.keys()}

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
        with self._records.submitting(run, self._sleep):  # whoever submits it now has done so
            was_alive = self.alive(run)
        below = [stage.run for stage in stages(self.load(run))]
        if was_alive:
            self._records.cancel(run, self._clock(), now)
            self.helm.uninstall(run)
            if now:  # once the Job is gone, which would make others
                self.kubernetes.kill_pods(run)
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

    def _snapshot(
        self,
        run: str,
        files: Mapping[str, bytes],
        job: Object | None,
        facts: Facts,
        printed: Sequence[Sequence[Event]],
    ) -> Snapshot:
        """Return one run's snapshot from its own files; without its record, the Job's labels have to do."""
        data = files.get(RunPaths(run).spec)
        record = self._records.parse(run, data) if data is not None else None
        if record is None and job is None:
            raise TargetError(f"there is no record of {run}")
        return Snapshot(
            run=run,
            spec=record.spec if record else _spec(cast("Object", job)),
            created=record.created if record else _created(cast("Object", job)),
            submitted=record.submitted if record else None,
            parent=record.parent if record else None,
            train_run=record.train_run if record else None,
            facts=facts,
            cancelled=records.cancelled(files, run),
            verdicts=records.verdicts(files),
            changes=record.changes if record else (),
            events=tuple(sorted(itertools.chain(facts.events, *printed), key=lambda event: event.time)),
        )

    def _facts(self, job: Object | None, pods: Sequence[Object]) -> Facts:
        """Return what the cluster says of a run; asks for events and for Kueue only when pods do not say enough."""
        if job is None and not pods:
            return ABSENT
        facts = observe(job, pods)
        if job is None or (facts.why and pods and facts.phase != "starting"):
            return facts
        if facts.phase == "queued":
            return observe(job, pods, queue=self._queue(job))
        if facts.phase == "starting":  # one pod stands for all: a request a run
            return observe(job, pods, self.kubernetes.events([pods[-1]["metadata"]["name"]]))
        if facts.phase == "pending":
            return observe(job, pods, self.kubernetes.events([job.get("made") or job["metadata"]["name"]]))
        return facts

    def _queue(self, job: Object) -> str:
        """Return what Kueue says of a Job that it holds back; empty without Kueue, or where we may not read that."""
        try:
            workloads = self._workloads(str(job["metadata"]["uid"]))
        except Forbidden:
            return ""
        conditions: list[Object] = [c for item in workloads for c in item.get("status", {}).get("conditions", [])]
        held = [c["message"] for c in conditions if c["type"] == "QuotaReserved" and c["status"] == "False"]
        return f"Kueue: {held[-1]}" if held else ""

    def _workloads(self, job: str) -> list[Object]:
        """Return what Kueue has made of a Job, which has this uid."""
        group = self.kubernetes.find("/apis/kueue.x-k8s.io")
        if group is None:
            return []
        version = group["preferredVersion"]["groupVersion"]
        path = f"/apis/{version}/namespaces/{self.cluster.namespace}/workloads"
        found = self.kubernetes.find(path, labelSelector=f"kueue.x-k8s.io/job-uid={job}")
        return list((found or {}).get("items", []))

    def _printed(self, facts: Mapping[str, Facts], tail: int) -> dict[str, list[list[Event]]]:
        """Return the latest events in the log of each pod that prints something now; the logs are read in parallel."""
        wanted = [(run, pod) for run, seen in facts.items() for pod in seen.pods]
        answers = self.kubernetes.together([self.kubernetes.log_request(pod, tailLines=tail) for _, pod in wanted])
        found: dict[str, list[list[Event]]] = {}
        for (run, _), answer in zip(wanted, answers, strict=True):
            lines = (answer or b"").decode(errors="replace").splitlines()
            found.setdefault(run, []).append([event for line in lines if (event := parse(line)) is not None])
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


def _by_run(pods: Sequence[Object]) -> dict[str, list[Object]]:
    """Return pods by their run."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        found.setdefault(_run(pod), []).append(pod)
    return found


def _all_print(job: Object, facts: Facts) -> bool:
    """Return whether every pod that a Job wants prints something now."""
    return facts.phase == "running" and len(facts.pods) == int(job["spec"].get("completions") or 1)


def _or_complain(read: Callable[[], T], nothing: T, problems: list[str]) -> T:
    """Return what was read of the bucket; nothing, and a complaint, when it cannot be read."""
    try:
        return read()
    except JobError as error:
        problems.append(f"{error} (shown is what the cluster alone knows)")
        return nothing


def _spec(job: Object) -> RunSpec:
    """Return as much of a run's spec as its Job's labels tell."""
    labels = job["metadata"]["labels"]
    return RunSpec(kind=labels["pi05.dev/kind"], task=labels["pi05.dev/task"], preset="", target="cluster")


def _created(job: Object) -> float:
    return datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp()
