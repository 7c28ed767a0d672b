"""A training that does not fit its GPUs -> settings with which it should, the fastest first. Pure: from sizes alone.

First those that change no result: how the step is computed, and over how many GPUs parameters are sharded. If none is
enough, a smaller batch, which is another training.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace

from pi05.chips import Machine
from pi05.config import TrainJob
from pi05.errors import ConfigError
from pi05.plan.document import Plan
from pi05.plan.estimate import UNCERTAIN, estimate

Changes = Mapping[str, str | int]
"""Settings by path, as --set takes them."""
_RECOMPUTE = ("nothing", "cheap", "layers")
_MOST = 4
"""Proposals that are worth being compiled."""


def proposals(job: TrainJob, machine: Machine) -> Iterator[tuple[Changes, TrainJob]]:
    """Yield changes and the job with them: all that are estimated to fit, or to miss it by no more than the error."""
    found = _fitting(job, machine, _ways(job, machine)) or _fitting(job, machine, _batches(job, machine))
    for _, changes, changed in sorted(found, key=lambda one: (-one[0].batch_size, one[0].times.step))[:_MOST]:
        yield changes, changed


def larger(job: TrainJob, machine: Machine) -> Machine | None:
    """Return the fewest GPUs of a node, more than there are, that are estimated to be enough; None if 8 are not."""
    for gpus in (count for count in (2, 4, 8) if count > machine.gpus):
        found = replace(machine, gpus=gpus)
        if _fitting(job, found, iter([{"train.fsdp_devices": gpus}])):
            return found
    return None


def _fitting(job: TrainJob, machine: Machine, ways: Iterator[Changes]) -> list[tuple[Plan, Changes, TrainJob]]:
    """Return those ways that may fit, with their estimates; surely fitting ones alone where there are any."""
    found: list[tuple[Plan, Changes, TrainJob]] = []
    for changes in ways:
        changed = _changed(job, changes)
        try:
            plan = estimate(changed, machine)
        except ConfigError:
            continue  # it does not divide
        if plan.needs.total <= machine.memory * (1 + UNCERTAIN):
            found.append((plan, changes, changed))
    sure = [one for one in found if one[0].needs.total <= machine.memory * (1 - UNCERTAIN)]
    return sure or found


def _ways(job: TrainJob, machine: Machine) -> Iterator[Changes]:
    """Yield every way to compute the same training with less memory."""
    compute, train = job.compute, job.train
    recompute = _RECOMPUTE[_RECOMPUTE.index(compute.recompute) :]
    layers = [compute.layers] if compute.layers == "looped" else [compute.layers, "looped"]
    parts = [compute.microbatches, *(count for count in (2, 4, 8, 16) if count > compute.microbatches)]
    shards = [train.fsdp_devices] if train.fsdp_devices in (0, machine.gpus) else [train.fsdp_devices, machine.gpus]
    for again, unrolled, count, over in itertools.product(recompute, layers, parts, shards):
        wanted: dict[str, tuple[str | int, str | int]] = {
            "compute.recompute": (compute.recompute, again),
            "compute.layers": (compute.layers, unrolled),
            "compute.microbatches": (compute.microbatches, count),
            "train.fsdp_devices": (train.fsdp_devices, over),
        }
        if changes := {path: new for path, (old, new) in wanted.items() if new != old}:
            yield changes


def _batches(job: TrainJob, machine: Machine) -> Iterator[Changes]:
    """Yield halves of the batch, each computed with as little memory as there is a way."""
    batch = job.train.batch_size
    while batch % 2 == 0:
        batch //= 2
        for least in ({}, {"compute.recompute": "layers", "compute.layers": "looped"}):
            sharded = {} if job.train.fsdp_devices in (0, machine.gpus) else {"train.fsdp_devices": machine.gpus}
            yield {"train.batch_size": batch} | least | sharded


def _changed(job: TrainJob, changes: Changes) -> TrainJob:
    """Return the job with other settings."""
    told: dict[str, dict[str, str | int]] = {"compute": {}, "train": {}}
    for path, value in changes.items():
        section, name = path.split(".")
        told[section][name] = value
    compute, train = job.compute.model_copy(update=told["compute"]), job.train.model_copy(update=told["train"])
    return job.model_copy(update={"compute": compute, "train": train})
