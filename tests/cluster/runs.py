"""What tests of runs share: submissions of a small training, how a run stands, and datasets to train on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pi05 import tasks
from pi05.config import Convention
from pi05.data.dataset import Attempt, DatasetMeta, Demo, write
from pi05.simulator import state_names
from pi05.storage import Storage, connect
from pi05ctl.cluster.target import ClusterTarget
from pi05ctl.service import Request, Service
from pi05ctl.spec.settings import load
from tests.cluster.conftest import Site, until

QUICK_XLA = (
    "--xla_force_host_platform_device_count={}"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
"""Compiling takes longer than these few steps, so XLA is told not to optimise."""
_CONVENTION = Convention(cameras=(), state="joints_and_poses")
_NAMES = state_names(tasks.find("pushcube"), _CONVENTION)
_SMALL = {
    "train.steps": 20,
    "train.save_every": 10,
    "train.keep_every": 10,
    "train.log_every": 1,
    "train.patience": 0,
    "train.batch_size": 8,
    "train.fsdp_min_bytes": 1024,
    "train.optimizer.warmup_steps": 3,
    "model.vlm.depth": 2,
    "model.expert.depth": 2,
    "eval.episodes": 4,
    "eval.environments": 1,
    "eval.max_steps": 30,
}


def small(**changes: object) -> list[str]:
    """Return options of a training of seconds; `train__steps=5` stands for train.steps=5."""
    values = _SMALL | {name.replace("__", "."): value for name, value in changes.items()}
    return ["--preset", "tiny", *(word for path, value in values.items() for word in ("--set", f"{path}={value}"))]


def settings(site: Site, devices: int = 8, **changes: Any) -> None:
    """Write pi05.toml for quick compilation and a number of virtual devices a pod."""
    site.settings(env={"XLA_FLAGS": QUICK_XLA.format(devices)}, **changes)


def submit(site: Site, *words: str, outcome: str | None = "started") -> str:
    """Submit one run and return its name."""
    done = site.pi05ctl("submit", *words, "-o", "json")
    assert done.returncode == 0, done.stderr
    submission = json.loads(done.stdout)[0]
    assert outcome in (None, submission["outcome"])
    return submission["run"]


def status(site: Site, run: str) -> dict[str, Any]:
    """Return how a run stands."""
    done = site.pi05ctl("status", run, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[0]


def table(site: Site) -> dict[str, dict[str, Any]]:
    """Return how all runs stand, by name."""
    done = site.pi05ctl("status", "-o", "json")
    assert done.returncode == 0, done.stderr
    return {row["run"]: row for row in json.loads(done.stdout)}


def until_state(site: Site, run: str, *states: str, why: str = "", seconds: float = 300.0) -> dict[str, Any]:
    """Return how a run stands, once its state is one of `states` and `why` is in the reason."""
    last: dict[str, Any] = {}

    def reached() -> bool:
        last.update(status(site, run))
        return last["state"] in states and why in last["why"]

    try:
        until(f"{run} to be {' or '.join(states)} ({why})", reached, seconds, pause=1.0)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is {last}; its log:\n{site.pi05ctl('logs', run).stdout[-3000:]}") from None
    return last


def until_step(site: Site, run: str, step: int, seconds: float = 300.0) -> dict[str, Any]:
    """Return how a run stands, once it runs and has made some steps."""
    return until(
        f"step {step} of {run}",
        lambda: (now := status(site, run))["state"] == "Running" and (now["step"] or 0) >= step and now,
        seconds,
        pause=1.0,
    )


def losses(site: Site, run: str) -> dict[int, float]:
    """Return the loss of every step in a run's log."""
    lines = site.pi05ctl("logs", run).stdout.splitlines()
    events = [json.loads(line[5:]) for line in lines if line.startswith("PI05 {")]
    return {e["step"]: e["metrics"]["loss"] for e in events if e["kind"] == "progress" and "loss" in e["metrics"]}


def name(site: Site, *words: str) -> str:
    """Return the name of the run that these words submit."""
    return manifests(site, *words)[0]["metadata"]["name"]


def manifests(site: Site, *words: str) -> list[dict[str, Any]]:
    """Return the objects that pi05ctl render prints."""
    done = site.pi05ctl("render", *words)
    assert done.returncode == 0, done.stderr
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def values(site: Site, kind: str, task: str, *options: str) -> bytes:
    """Return the values of the release that these words, with options of `small`, submit."""
    _, preset, *sets = options
    service = Service(load(site.folder, {}, Path(sys.executable)))
    sets = [word for word in sets if word != "--set"]
    [run] = service.render(Request(kind, task, preset, sets, only=True))
    assert isinstance(service.target, ClusterTarget)
    return service.target.values(run)


def storage(site: Site, monkeypatch) -> Storage:
    """Return the bucket of a site."""
    if site.cluster.emulator:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", site.cluster.emulator)
    return connect(site.storage)


def put_dataset(site: Site, monkeypatch, folder: Path, task: str = "pushcube", **changes: object) -> None:
    """Upload the dataset that a small training of a task reads: numbers drawn at random, in the real form."""
    job = json.loads(manifests(site, "train", task, *small(**changes), "--only")[0]["data"]["job.json"])
    bucket = storage(site, monkeypatch)
    if bucket.exists(job["dataset"]):
        return
    if not folder.exists():
        _write_dataset(folder)
    bucket.publish(folder, job["dataset"])


def _write_dataset(folder: Path, episodes: int = 6, steps: int = 90) -> None:
    random = np.random.default_rng(0)
    states = random.normal(size=(episodes, steps, len(_NAMES))).astype(np.float32)
    actions = states[..., :8] + random.normal(size=(episodes, steps, 8), scale=0.1).astype(np.float32)
    meta = DatasetMeta(
        task="pushcube",
        convention=_CONVENTION,
        renderer="none",
        seeds=tuple(range(episodes)),
        attempts=tuple(Attempt(seed=seed, success=True, steps=steps, seconds=0.5) for seed in range(episodes)),
        versions={},
    )
    folder.mkdir()
    demos = [Demo(seed, states[seed], actions[seed]) for seed in range(episodes)]
    write(folder, tasks.find("pushcube"), _NAMES, demos, meta)


def evict(site: Site, pod: str) -> None:
    """Do to one pod what kubectl drain does to all of a node."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": site.namespace}}
    path = f"/api/v1/namespaces/{site.namespace}/pods/{pod}/eviction"
    site.cluster.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


def ended(process: "subprocess.Popen[str]", seconds: float = 120.0) -> tuple[int, str]:
    """Return exit code and output of a process that was started."""
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output
