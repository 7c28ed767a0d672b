"""A training and the GPUs it is meant for -> what it needs and costs there, and the setting with which it fits.

A plan is read from the program that would run, which is compiled in some minutes (pi05.jobs.plan); it is kept under the
digest of all that makes the program. Where nothing can compile for GPUs it is estimated from sizes.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pi05 import chips
from pi05.chips import Machine
from pi05.config import ComputeConfig, TrainJob
from pi05.plan.document import Plan
from pi05.plan.estimate import estimate, near
from pi05ctl.errors import UsageError
from pi05ctl.planning.compiling import SOURCE, Compiler
from pi05ctl.planning.proposals import Changes, larger, proposals
from pi05ctl.spec.render import Rendered, render, stages
from pi05ctl.spec.runspec import RunSpec, parse_assignment, resolve
from pi05ctl.spec.settings import Cluster, Settings

_SHARDS = "train.fsdp_devices"
_PACKAGES = "requirements/train.txt"
"""With which JAX is what compiles, here and in the image."""
_NAMES = ("run", "storage", "dataset", "others")
_NO_PART = (
    *("steps", "seed", "optimizer", "weights", "number_embedding", "number_frequencies", "patience", "profile"),
    *("log_every", "save_every", "save_state_every", "keep_every", "held_out", "held_out_every"),
)
"""What a step needs and costs the same with."""
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
        larger: If nothing was found: on how many GPUs it should fit; None if on no number up to 8.
    """

    plan: Plan
    changes: Changes
    instead: Plan | None = None
    larger: Machine | None = None


class Planner:
    """Makes plans and keeps those that were compiled.

    Args:
        compiler: None: there is none.
        folder: Where plans are kept.
        say: Tells people what takes long.
    """

    def __init__(self, compiler: Compiler | None, folder: Path, say: Callable[[str], None]) -> None:
        self._compiler, self._folder, self._say = compiler, folder, say

    def advise(self, job: TrainJob, machine: Machine) -> Advice:
        """Return a training's plan and, if it does not fit, the first proposal whose own plan does.

        Raises:
            ConfigError: The training does not divide over these GPUs.
        """
        return _advice(self.plan(job, machine), job, machine, self.plan)

    def quickly(self, job: TrainJob, machine: Machine) -> Advice:
        """Return the same without a wait: from sizes, but for a near miss, which only a compiler can decide.

        Raises:
            ConfigError: The training does not divide over these GPUs.
        """
        plan = self._at_once(job, machine)
        if plan.how == "estimated" and near(plan):
            plan = self.plan(job, machine)
        return _advice(plan, job, machine, self._at_once)

    def _at_once(self, job: TrainJob, machine: Machine) -> Plan:
        """Return the plan that is kept, or an estimate."""
        return self.known(job, machine) or estimate(job, machine)

    def plan(self, job: TrainJob, machine: Machine) -> Plan:
        """Return a plan, compiled if that is possible here.

        Raises:
            ConfigError: The training does not divide over these GPUs.
        """
        estimated = estimate(job, machine)  # which looks at divisions before anything takes long
        known = self.known(job, machine)
        if known is not None or self._compiler is None:
            return known or estimated
        self._say(f"compiling for {machine.words}, {words(job.compute)}: some minutes")
        compiled = self._compiler.plan(job, machine)
        if compiled is None:
            return estimated
        self._keep(job, machine, compiled)
        return compiled

    def known(self, job: TrainJob, machine: Machine) -> Plan | None:
        """Return the plan that was compiled before and is kept, if there is one."""
        try:
            plan = Plan.model_validate_json(self._path(job, machine).read_bytes())
        except (OSError, ValidationError):
            return None
        return plan.model_copy(update={"steps": job.train.steps})

    def _keep(self, job: TrainJob, machine: Machine, plan: Plan) -> None:
        path = self._path(job, machine)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plan.model_dump_json() + "\n")

    def _path(self, job: TrainJob, machine: Machine) -> Path:
        return self._folder / f"{digest(job, machine)}.json"


def _advice(plan: Plan, job: TrainJob, machine: Machine, plan_of: Callable[[TrainJob, Machine], Plan]) -> Advice:
    """Return a plan and, if it does not fit, the first proposal whose own plan does."""
    if plan.fits:
        return Advice(plan, {})
    for changes, changed in proposals(job, machine):
        instead = plan_of(changed, machine)
        if instead.fits:
            return Advice(plan, changes, instead)
    return Advice(plan, {}, larger=larger(job, machine))


def training(
    settings: Settings,
    kind: Literal["train", "pipeline"],
    task: str,
    preset: str,
    assignments: Sequence[str],
    gpus: int | None,
    nodes: int | None,
) -> tuple[RunSpec, TrainJob]:
    """Return what is asked for, and its training as it would run on so many GPUs: those of a node share parameters."""
    overrides = dict(parse_assignment(text) for text in assignments)
    spec = RunSpec(kind=kind, task=task, preset=preset, target="cluster", overrides=overrides)
    train = settings.cluster.train
    wanted = gpus or (train.gpus if (nodes or train.nodes) > 1 else None)
    if _SHARDS not in overrides and wanted and resolve(spec).train.fsdp_devices not in (0, wanted):
        spec = spec.model_copy(update={"overrides": {**overrides, _SHARDS: wanted}})
    job = render(spec.sibling("train"), settings).job
    assert isinstance(job, TrainJob)
    return spec, job


def machine_of(job: TrainJob, cluster: Cluster, chip: str | None, gpus: int | None, nodes: int | None) -> Machine:
    """Return the GPUs that words name; what they leave open is the training's, or the cluster's.

    Raises:
        ConfigError: There is no such chip.
        UsageError: Nobody says which, or a number is impossible.
    """
    if any(number is not None and number < 1 for number in (gpus, nodes)):
        raise UsageError(f"--gpus {gpus} and --nodes {nodes} must be at least 1")
    name, count = chip or chip_of(cluster), nodes or cluster.train.nodes
    if name is None:
        known = ", ".join(chips.CHIPS)
        raise UsageError(f"for which GPU? Use --chip ({known}), or name it in pi05.toml: [cluster.train] chip")
    own = job.train.fsdp_devices if count == 1 else 0
    return Machine(chips.find(name), gpus or own or cluster.train.gpus or 1, count)


def training_of(run: Rendered) -> tuple[Rendered, TrainJob] | None:
    """Return the training of a run, and its job: the run itself, or a pipeline's stage; None if nothing is trained."""
    for stage in (run, *stages(run)):
        if isinstance(stage.job, TrainJob):
            return stage, stage.job
    return None


def chip_of(cluster: Cluster) -> str | None:
    """Return the chip of a cluster's training pods: as pi05.toml names it, or as their node selector does."""
    if cluster.train.chip is not None:
        return cluster.train.chip
    labels = cluster.fields_of("train").node_selector
    return next((chips[labels[key]] for key, chips in _LABELS.items() if labels.get(key) in chips), None)


def digest(job: TrainJob, machine: Machine) -> str:
    """Return 64 hex digits over all that makes a plan: the job less its names, GPUs, this source and its packages."""
    told = job.model_dump(mode="json", exclude={**dict.fromkeys(_NAMES, True), "train": set(_NO_PART)})
    content = hashlib.sha256(json.dumps([told, repr(machine)], sort_keys=True).encode())
    for path in (*sorted(SOURCE.rglob("*.py")), *SOURCE.parent.glob(_PACKAGES)):
        content.update(path.relative_to(SOURCE.parent).as_posix().encode() + path.read_bytes())
    return content.hexdigest()


def words(compute: ComputeConfig) -> str:
    """Return how a step is computed, for people."""
    parts = f" in {compute.microbatches} microbatches" if compute.microbatches > 1 else ""
    return f"recomputing {compute.recompute}, layers {compute.layers}{parts}"
