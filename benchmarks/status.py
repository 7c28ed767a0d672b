"""`pi05ctl status` over 1,000 runs and 10,000 pods of a real API server, beside kubectl listing the same objects."""

import argparse
import contextlib
import cProfile
import io
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pi05.events import Event
from pi05.storage import RunPaths, connect
from pi05ctl.cluster.api import Kubernetes
from pi05ctl.cluster.target import ClusterTarget
from pi05ctl.runs.records import Record
from pi05ctl.spec.render import render, to_json
from pi05ctl.spec.runspec import Kind, RunSpec
from pi05ctl.spec.settings import Cluster, DemosPods, EvalPods, Settings, Toleration, TrainPods
from tests.cluster.harness import binaries, kwok, layout, services
from tests.cluster.harness import cluster as harness

NAMESPACE = "pi05-bench"
SHARDS = 11
TOML = """target = "cluster"
[cluster]
context = "{context}"
namespace = "{namespace}"
storage = "{storage}"
"""


@dataclass(frozen=True)
class Share:
    """Runs of one kind that stand alike.

    Attributes:
        kind: train has 1 pod, eval SHARDS.
        count: How many of 1,000.
        ends: Annotations that tell the fake node how a pod ends; none: it runs.
        verdict: Kind of the last event in storage.
    """

    kind: Kind
    count: int
    ends: dict[str, str]
    verdict: str

    @property
    def pods(self) -> int:
        """Pods of each run."""
        return SHARDS if self.kind == "eval" else 1


DONE = {"test.pi05.dev/after": "1s"}
FAILED = {"test.pi05.dev/after": "1s", "test.pi05.dev/exit-code": "65"}
SHARES = (
    Share("train", 40, {}, "progress"),
    Share("train", 55, DONE, "finished"),
    Share("train", 5, FAILED, "failed"),
    Share("eval", 40, {}, "progress"),
    Share("eval", 850, DONE, "finished"),
    Share("eval", 10, FAILED, "failed"),
)
"""A namespace after some months: 100 trainings and 900 evaluations, of which 80 run now, with 480 pods that print."""


def main() -> None:
    """Fill a cluster, measure, and print the result as one line of JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench status", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="measurements, of which the median counts")
    given = parser.parse_args()
    mine = harness.up(owned=True)
    os.environ.update(harness.environment())
    try:
        with _filled() as (folder, runs, pods):
            _measure(folder, runs, pods, given.repeat)
    finally:
        kwok.down()
        if mine:
            harness.down()


@contextlib.contextmanager
def _filled() -> Iterator[tuple[Path, int, int]]:
    """Yield a folder with settings, and how many runs and pods they lead to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kwok.up(nodes=100, log=_log())
        kubernetes = Kubernetes(None, NAMESPACE)
        _kubectl("create", "namespace", NAMESPACE)
        try:
            cluster = _settings(folder)
            runs, pods = sum(share.count for share in SHARES), sum(share.count * share.pods for share in SHARES)
            print(f"making {runs:,} runs", flush=True)
            for share in SHARES:
                _make(share, cluster)
            _wait(kubernetes, pods)
            _settle()
            yield folder, runs, pods
        finally:
            _kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def _settings(folder: Path) -> Cluster:
    """Write pi05.toml and return the cluster whose pods go to the fake nodes."""
    storage = f"gs://{services.BUCKET}/bench-{int(time.time())}"
    context = _kubectl("config", "current-context").strip()
    (folder / "pi05.toml").write_text(TOML.format(context=context, namespace=NAMESPACE, storage=storage))
    small = {
        "cpu": "10m",
        "memory": "64Mi",
        "scratch": "1Gi",
        "shm": "1Mi",
        "node_selector": {"pi05.dev/test-node": "fake"},
    }
    return Cluster(
        context=context,
        namespace=NAMESPACE,
        storage=storage,
        tolerations=(Toleration(key=kwok.TAINT),),
        service_account="default",
        train=TrainPods(**small),
        demos=DemosPods(**small),
        eval=EvalPods(shards=SHARDS, **small),
    )


def _make(share: Share, cluster: Cluster) -> None:
    """Create the Jobs of some runs and what such runs have in the bucket. (Not their ConfigMaps: status reads none.)"""
    settings = Settings(storage=cluster.storage, python="", planner_python="", target="cluster", cluster=cluster)
    storage = connect(cluster.storage)
    spec = RunSpec(kind=share.kind, task="pushcube", preset="tiny", target="cluster")
    one = render(spec, settings)
    job = next(item for item in yaml.safe_load_all(ClusterTarget(cluster).preview(one)) if item["kind"] == "Job")
    job["spec"]["template"]["metadata"]["annotations"] |= share.ends
    names = [f"{share.kind}-pushcube-{SHARES.index(share)}{number:05x}" for number in range(share.count)]

    def record(run: str) -> None:
        written = Record(run=run, spec=spec, digest=one.digest, created=time.time(), command=spec.command())
        storage.write(RunPaths(run).spec, to_json(written))
        for shard in range(SHARDS) if share.kind == "eval" else [None]:
            storage.write(RunPaths(run, shard).status, _last(run, share.verdict, shard).encode())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(record, names))
    items = [json.loads(json.dumps(job).replace(one.run, name)) for name in names]
    _kubectl("create", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))


def _last(run: str, kind: str, shard: int | None) -> str:
    extra: dict[str, Any] = {} if shard is None else {"shard": shard, "shards": SHARDS}
    metrics = {"loss": 0.01} if shard is None else {"success_once": 0.9, "success_at_end": 0.9}
    event = Event(run=run, kind=kind, time=time.time(), step=50, total=50, unit="steps", metrics=metrics, **extra)
    return event.model_dump_json(exclude_none=True)


def _log() -> list[str]:
    """Return a log as a training prints it: a line for people and one for machines every 100 steps."""
    lines: list[str] = []
    for step in range(100, 30_000, 100):
        metrics = {"loss": 0.01, "grad_norm": 0.1, "param_norm": 900.0, "learning_rate": 5e-5, "seconds_per_step": 0.25}
        event = Event(
            run="r", kind="progress", time=time.time(), step=step, total=30_000, unit="steps", metrics=metrics
        )
        lines += [f"Step {step}: loss=0.0100, grad_norm=0.1000", event.line()]
    return lines


def _wait(kubernetes: Kubernetes, pods: int) -> None:
    """Return when every pod was made and those that end have ended; the Jobs count them."""
    running = sum(share.count * share.pods for share in SHARES if not share.ends)
    end = time.monotonic() + 1800
    while True:
        counts = [job["status"] for job in kubernetes.jobs()]
        live, ended = (sum(count.get(name, 0) for count in counts) for name in ("active", "succeeded"))
        failed = sum(count.get("failed", 0) for count in counts)
        print(f"  {live + ended + failed:,} of {pods:,} pods, {live:,} live", flush=True)
        if live + ended + failed >= pods and live <= running:
            return
        if time.monotonic() > end:
            raise TimeoutError("the fake nodes did not get there in half an hour")
        time.sleep(10)


def _settle() -> None:
    """Return when the machine has done what ten thousand new pods make a control plane do; for a minute at least."""
    end = time.monotonic() + 600
    quiet = 0
    while quiet < 6 and time.monotonic() < end:
        before = _busy()
        time.sleep(10)
        quiet = quiet + 1 if _busy() - before < 1.5 else 0


def _busy() -> float:
    """Return the seconds that all cores together have worked since the machine started."""
    user, nice, system = (float(word) for word in Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _measure(folder: Path, runs: int, pods: int, repeat: int) -> None:
    status = [sys.executable, "-m", "pi05ctl", "status"]
    cache = folder / "cache"
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPYCACHEPREFIX": str(cache)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed pi05ctl is compiled
    first = _seconds(status, folder, environ)
    ours = [_seconds(status, folder, environ) for _ in range(repeat)]
    another = _seconds(status, folder, environ | {"XDG_CACHE_HOME": str(folder / "another")})
    kubectl = [str(binaries.folder() / "kubectl"), "-n", NAMESPACE, "get", "jobs,pods"]
    theirs = [_seconds(kubectl, folder, environ) for _ in range(repeat)]
    print(_profile(folder, environ))
    seconds = statistics.median(ours)
    print(f"first look of anybody {first:.2f} s; then {', '.join(f'{s:.2f}' for s in ours)} s")
    print(f"first look of another laptop {another:.2f} s")
    print(f"kubectl get jobs,pods: {', '.join(f'{s:.2f}' for s in theirs)} s")
    result = {
        "name": "status",
        "seconds": round(seconds, 2),
        "runs": runs,
        "pods": pods,
        "first_seconds": round(first, 2),
        "another_laptop_seconds": round(another, 2),
        "kubectl_seconds": round(statistics.median(theirs), 2),
    }
    print(json.dumps(result))


def _seconds(command: list[str], folder: Path, environ: dict[str, str]) -> float:
    """Return how long a whole command took; it must have succeeded."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environ, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def _profile(folder: Path, environ: dict[str, str]) -> str:
    """Return where the time goes, by the controller's own functions."""
    code = f"import benchmarks.status; benchmarks.status.profiled({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=layout.REPOSITORY, env=environ, check=True, capture_output=True, text=True
    )
    return done.stdout


def profiled(folder: str) -> None:
    """Run the command under a profiler and print its own functions that took longest, with those they call."""
    os.chdir(folder)
    profile = cProfile.Profile()
    with contextlib.redirect_stdout(io.StringIO()):
        profile.enable()
        from pi05ctl.cli import main as cli

        cli.run(["status"])
        profile.disable()
    out = io.StringIO()
    stats = pstats.Stats(profile, stream=out)
    stats.sort_stats("cumulative").print_stats(r"pi05|json|ssl|import_module|_load_unlocked", 25)
    print("\n".join(line for line in out.getvalue().splitlines() if line.strip()))


def _kubectl(*words: str, given: str | None = None) -> str:
    line = [str(binaries.folder() / "kubectl"), *words]
    return subprocess.run(line, check=True, capture_output=True, text=True, input=given).stdout


if __name__ == "__main__":
    main()
