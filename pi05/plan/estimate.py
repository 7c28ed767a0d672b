"""A training job and the GPUs it is meant for -> its plan, computed from sizes alone: no JAX, no compiler, no wait.

What lies there between two steps is exact: the table of parameters and the rule by which they are split. What a step
needs besides is a formula, whose parts stand below and which was checked against compiled programs (tests/compiled):
within a tenth of all bytes of a GPU. Times are rougher, and no overlap is assumed.
"""

import math
import re

from pi05.chips import Machine
from pi05.config import ComputeConfig, GemmaConfig, ModelConfig, TrainJob, VitConfig
from pi05.errors import ConfigError
from pi05.model import flops, tree
from pi05.plan.document import Needs, Plan, Times
from pi05.plan.program import LAUNCH
from pi05.plan.prompt import assumed_length

UNCERTAIN = 0.1
"""Largest error of the bytes, as a share."""


def estimate(job: TrainJob, machine: Machine) -> Plan:
    """Return a training's plan on some GPUs.

    Raises:
        ConfigError: Batch, parts or parameters do not divide over them.
    """
    tokens, share = assumed_length(job), _samples(job, machine)
    needs = _needs(job, machine, tokens, share)
    work = _work(job, machine, tokens)
    wire, network = _wire(job, machine)
    compute, memory = work / machine.chip.peak, _traffic(job, machine, tokens) / machine.chip.bandwidth
    kernels = _kernels(job)
    wire_seconds = max(wire / machine.chip.link, network / machine.chip.network)
    return Plan(
        how="estimated",
        chip=machine.chip.name,
        gpus=machine.gpus,
        nodes=machine.nodes,
        batch_size=job.train.batch_size,
        steps=job.train.steps,
        tokens=tokens,
        tokens_known=False,
        memory=machine.memory,
        needs=needs,
        flops=work,
        model_flops=_model_flops(job, machine, tokens),
        traffic=_traffic(job, machine, tokens),
        kernels=kernels,
        wire=wire,
        network=network,
        times=Times(
            compute=compute,
            memory=memory,
            launches=kernels * LAUNCH,
            wire=wire_seconds,
            step=compute + memory + kernels * LAUNCH + wire_seconds,
        ),
    )


def _samples(job: TrainJob, machine: Machine) -> int:
    """Return the samples that a GPU computes at a time."""
    devices = machine.gpus * machine.nodes
    shards, batch, parts = job.train.fsdp_devices or machine.gpus, job.train.batch_size, job.compute.microbatches
    if devices % shards or batch % (devices * parts):
        raise ConfigError(
            f"batch_size {batch} in {parts} parts and fsdp_devices {shards} do not divide over {devices} devices"
        )
    return batch // devices // parts


def _needs(job: TrainJob, machine: Machine, tokens: int, samples: int) -> Needs:
    """Return the bytes of one GPU."""
    table, trained = tree.leaves(job.model), _trained(job)
    shards = job.train.fsdp_devices or machine.gpus

    def held(paths: Sequence[str]) -> int:
        return sum(_part(table[path].shape, shards, job.train.fsdp_min_bytes) for path in paths)

    pixels = 3 * job.model.image_size**2 * len(job.convention.cameras)
    chunk = job.model.action_horizon * job.model.action_dim
    rows = job.train.batch_size // (machine.gpus * machine.nodes)
    return Needs(
        parameters=held(list(table)),
        moments=2 * held(trained) + _COUNTS,
        averages=held(trained) if job.train.ema_decay is not None else 0,
        batch=rows * (pixels + 5 * tokens + 5 * chunk),
        temporary=_temporary(job, machine, tokens, samples),
    )


def _trained(job: TrainJob) -> list[str]:
    """Return the paths of the parameters that are trained."""
    return [
        path
        for path in tree.leaves(job.model)
        if not any(re.fullmatch(pattern, path) for pattern in job.train.freeze)
    ]


def _part(shape: tuple[int, ...], shards: int, least: int) -> int:
    """Return the bytes of one float32 array on one GPU, by the rule of sharding.fsdp_sharding."""
    whole = 4 * math.prod(shape)
    splits = whole >= least and any(size % shards == 0 for size in shape)
    return whole // shards if splits else whole


def _kept(job: TrainJob, tokens: int, fused: bool) -> int:
    """Return the bytes of one sample that the forward pass keeps for the backward pass, as model/stack.py has it.

    Args:
        job: What is trained.
        tokens: Of a prompt.
        fused: Whether attention keeps no logits.
    """
    model, compute = job.model, job.compute
    patches = (model.image_size // model.vit.patch_size) ** 2
    pictures = len(job.convention.cameras)
    prefix = pictures * patches + tokens
    tower = pictures * patches * model.vit.depth * _of_block(model.vit, compute.recompute)
    language = prefix * (model.vlm.depth - 1) * _of_layer(model.vlm, compute.recompute)
    suffix = model.action_horizon * model.expert.depth * _of_layer(model.expert, "nothing") * job.train.draws_per_sample
    seen = (2 * prefix + model.action_horizon) * 2 * model.vlm.num_kv_heads * model.vlm.head_dim * model.vlm.depth
    numbers = tower + language + suffix + seen
    if not fused and compute.recompute == "nothing":
        numbers += pictures * patches**2 * model.vit.num_heads * model.vit.depth
        numbers += prefix**2 * model.vlm.num_heads * (model.vlm.depth - 1)
    return _WIDTH[compute.dtype] * numbers


def _of_layer(gemma: GemmaConfig, recompute: str) -> int:
    """Return the numbers that one layer of a Gemma keeps of a token."""
    heads = 2 * (gemma.num_heads + gemma.num_kv_heads) * gemma.head_dim  # queries and mixtures, keys and values
    match recompute:
        case "nothing":  # the input, what both norms and attention make of it, the MLP's two halves and their product
            return 4 * gemma.width + heads + 3 * gemma.mlp_dim
        case "cheap":
            return gemma.width + heads + 2 * gemma.mlp_dim
        case _:
            return gemma.width


def _of_block(vit: VitConfig, recompute: str) -> int:
    """Return the numbers that one block of the image tower keeps of a token."""
    match recompute:
        case "nothing":
            return 8 * vit.width + 2 * vit.mlp_dim
        case "cheap":
            return 5 * vit.width + vit.mlp_dim
        case _:
            return vit.width
