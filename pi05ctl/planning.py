"""A training and the GPUs it is meant for -> what it needs and costs there, and the setting with which it fits.

A plan is read from the program that would run, which a child process compiles in some minutes (pi05.jobs.plan); it is
kept under the digest of all that makes the program. Without an environment that can compile for GPUs, and where nobody
wants to wait, it is estimated from sizes.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

import pi05
from pi05.chips import Machine
from pi05.config import ComputeConfig, TrainJob
from pi05.errors import ConfigError
from pi05.plan.document import NO_COMPILER, Plan
from pi05.plan.estimate import UNCERTAIN, estimate
from pi05ctl.errors import UsageError
from pi05ctl.render import Rendered, render, stages, to_json
from pi05ctl.settings import Cluster, Settings
from pi05ctl.spec import RunSpec, parse_assignment, resolve

Changes = Mapping[str, str | int]
"""Settings by path, as --set takes them."""
_SHARDS = "train.fsdp_devices"
_RECOMPUTE = ("nothing", "cheap", "layers")
_PARTS = (2, 4, 8)


_LABELS = {
    "cloud.google.com/gke-accelerator": {
        "nvidia-a100-80gb": "a100-80",
        "nvidia-h100-80gb": "h100",
        "nvidia-h100-mega-80gb": "h100",
        "nvidia-h200-141gb": "h200",
        "nvidia-b200": "b200",
    },
    "nvidia.com/gpu.product": {
        "NVIDIA-A100-SXM4-80GB": "a100-80",
        "NVIDIA-H100-80GB-HBM3": "h100",
        "NVIDIA-H200": "h200",
        "NVIDIA-B200": "b200",
        "NVIDIA-L40S": "l40s",
    },
}
"""What labels of nodes call our chips: Google's, and those of NVIDIA's feature discovery."""


@dataclass(frozen=True)
class Advice:
    """What is known of a training on some GPUs.

    Attributes:
        plan: As it is.
        changes: With which it fits; empty when it fits as it is, or when nothing was found.
        instead: The plan with these changes.
    """

    plan: Plan
    changes: Changes
    instead: Plan | None = None


class Planner:
    """Makes plans and keeps those that were compiled.

    Args:
        python: Interpreter of an environment with JAX's CUDA plugin; None: there is none.
        folder: Where plans are kept.
        say: Tells people what takes long, and what was done instead.
    """

    def __init__(self, python: Path | None, folder: Path, say: Callable[[str], None]) -> None:
        self._python, self._folder, self._say = python, folder, say

    def advise(self, job: TrainJob, machine: Machine) -> Advice:
        """Return a training's plan and, if it does not fit, the first setting with which it does."""
        plan = self.plan(job, machine)
        if plan.fits:
            return Advice(plan, {})
        for changes, changed in alternatives(job, machine):
            if estimate(changed, machine).needs.total > machine.memory * (1 + UNCERTAIN):
                continue  # which no compiler needs to be asked
            instead = self.plan(changed, machine)
            if instead.fits:
                return Advice(plan, changes, instead)
        return Advice(plan, {})

    def plan(self, job: TrainJob, machine: Machine) -> Plan:
        """Return a plan, compiled if that is possible here.

        Raises:
            UsageError: The training does not divide over these GPUs.
        """
        known = self.known(job, machine)
        if known is not None:
            return known
        if self._python is None:
            return estimate(job, machine)
        self._say(f"compiling for {machine.words}, {words(job.compute)}: some minutes")
        compiled = self._compile(self._python, job, machine)
        if compiled is None:
            return estimate(job, machine)
        self._keep(job, machine, compiled)
        return compiled

    def known(self, job: TrainJob, machine: Machine) -> Plan | None:
        """Return the plan that was compiled before and is kept, if there is one."""
        try:
            return Plan.model_validate_json(self._path(job, machine).read_bytes())
        except (OSError, ValidationError):
            return None

    def _compile(self, python: Path, job: TrainJob, machine: Machine) -> Plan | None:
        """Return what the program that compiles says; None, and words, when it cannot."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "job.json")
            path.write_bytes(to_json(job))
            command = [str(python), "-m", "pi05.jobs.plan", str(path), "--chip", machine.chip.name]
            command += ["--gpus", str(machine.gpus), "--nodes", str(machine.nodes)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        if done.returncode == ConfigError.exit_code:
            raise UsageError(last)
        if done.returncode:
            why = last if done.returncode == NO_COMPILER else f"{python} ended with {done.returncode}: {last}"
            self._say(f"not compiled, but estimated: {why}")
            return None
        return Plan.model_validate_json(done.stdout)

    def _keep(self, job: TrainJob, machine: Machine, plan: Plan) -> None:
        path = self._path(job, machine)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plan.model_dump_json() + "\n")

    def _path(self, job: TrainJob, machine: Machine) -> Path:
        return self._folder / f"{digest(job, machine)}.json"


def training(
    settings: Settings, task: str, preset: str, assignments: Sequence[str], machine: Machine
) -> tuple[Rendered, TrainJob]:
    """Return the training of a task as it would run on these GPUs: parameters are sharded over those of a node."""
    overrides = dict(parse_assignment(text) for text in assignments)
    spec = RunSpec(kind="train", task=task, preset=preset, target="cluster", overrides=overrides)
    shards = resolve(spec).train.fsdp_devices
    if _SHARDS not in overrides and shards not in (0, machine.gpus):
        spec = spec.model_copy(update={"overrides": {**overrides, _SHARDS: machine.gpus}})
    run = render(spec, settings)
    assert isinstance(run.job, TrainJob)
    return run, run.job


def training_of(run: Rendered) -> tuple[Rendered, TrainJob] | None:
    """Return the training of a run, and its job: the run itself, or the stage of a pipeline; None if nothing is trained."""
    for stage in (run, *stages(run)):
        if isinstance(stage.job, TrainJob):
            return stage, stage.job
    return None


def chip_of(cluster: Cluster) -> str | None:
    """Return the chip of a cluster's training pods: as pi05.toml names it, or as their node selector does."""
    if cluster.train.chip is not None:
        return cluster.train.chip
    labels = cluster.node_selector | cluster.train.node_selector
    return next((chips[labels[key]] for key, chips in _LABELS.items() if labels.get(key) in chips), None)


def alternatives(job: TrainJob, machine: Machine) -> Iterator[tuple[Changes, TrainJob]]:
    """Yield settings that need less memory and change no result, the cheapest first, and the job with each."""
    levels = _RECOMPUTE[_RECOMPUTE.index(job.compute.recompute) + 1 :]
    share = job.train.batch_size // (machine.gpus * machine.nodes)
    parts = [count for count in _PARTS if count > job.compute.microbatches and share % count == 0]
    tried: list[dict[str, str | int]] = [{"recompute": level} for level in levels]
    most = tried[-1] if tried else {}
    tried += [most | {"microbatches": count} for count in parts]
    for changes in tried:
        compute = job.compute.model_copy(update=changes)
        yield {f"compute.{name}": value for name, value in changes.items()}, job.model_copy(update={"compute": compute})


def digest(job: TrainJob, machine: Machine) -> str:
    """Return 64 hex digits over all that makes a plan: the job without its names, the GPUs, and this source."""
    told = job.model_dump(mode="json", exclude={"run", "storage", "dataset", "others"})
    content = hashlib.sha256(json.dumps([told, repr(machine)], sort_keys=True).encode())
    root = Path(pi05.__file__).parent
    for path in sorted(root.rglob("*.py")):
        content.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return content.hexdigest()


def words(compute: ComputeConfig) -> str:
    """Return how a step is computed, for people."""
    parts = f" in {compute.microbatches} parts" if compute.microbatches > 1 else ""
    return f"recomputing {compute.recompute}{parts}"
