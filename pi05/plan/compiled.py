"""A training job and described GPUs to the program that they would run: XLA compiles it here, without a GPU.

JAX's CUDA plugin compiles for a chip that is described in a text, so this needs the packages of requirements/train.txt
and no GPU, no driver and little memory. Where XLA would time kernels to choose among them it takes defaults, so a real
GPU runs other tiles; FLOPs, bytes, collectives and memory do not depend on those.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from pi05 import sharding
from pi05.chips import Chip, Machine
from pi05.config import TrainJob
from pi05.errors import ConfigError
from pi05.observation import Observation
from pi05.plan.document import NO_COMPILER, Needs, Plan, Times
from pi05.plan.estimate import model_flops
from pi05.plan.program import read
from pi05.training import step

_OPTIONS = {
    "xla_gpu_enable_triton_gemm": False,  # has no default tile for some shapes, and without a GPU none can be found
    "xla_backend_optimization_level": 0,  # of the kernels' code, which nobody runs: a third of the time
    "xla_llvm_disable_expensive_passes": True,
}


class NoCompiler(ConfigError):
    """JAX's CUDA plugin is not installed, so nothing can be compiled for GPUs."""

    exit_code = NO_COMPILER


@dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
        text: The optimised, scheduled program of one GPU.
        needs: What that GPU needs for it.
    """

    text: str
    needs: Needs


def compile_step(job: TrainJob, machine: Machine, tokens: int, cameras: Sequence[str] | None = None) -> Compiled:
    """Compile the optimizer step of a job.

    Args:
        job: What is trained; where its data are does not matter.
        machine: On what.
        tokens: Length of a prompt.
        cameras: None means those of the job.

    Raises:
        ConfigError: The job does not divide over these devices.
        NoCompiler: The CUDA plugin is not installed.
    """
    mesh = sharding.make_mesh(job.train.fsdp_devices, job.train.batch_size, _devices(machine))
    state = step.placed_state(mesh, job.model, job.train, job.compute)
    batch = _batch(job, mesh, tokens, job.convention.cameras if cameras is None else cameras)
    with _as_on(machine.chip):
        lowered = step.make_step(mesh, job.model, job.train, job.compute).lower(state, batch)
    program = lowered.compile(compiler_options=_OPTIONS)
    needs = Needs(
        parameters=_bytes(state.params),
        moments=_bytes((state.opt_state, state.step)),
        averages=_bytes(state.ema),
        batch=_bytes(batch),
        temporary=program.memory_analysis().temp_size_in_bytes,
    )
    return Compiled(program.as_text(), needs)


def plan(job: TrainJob, machine: Machine, step: Compiled, tokens: int, tokens_known: bool) -> Plan:
    """Return what a compiled step says of the training."""
    cost = read(step.text, machine.chip, machine.gpus)
    return Plan(
        how="compiled",
        chip=machine.chip.name,
        gpus=machine.gpus,
        nodes=machine.nodes,
        batch_size=job.train.batch_size,
        steps=job.train.steps,
        tokens=tokens,
        tokens_known=tokens_known,
        memory=machine.memory,
        needs=step.needs,
        flops=cost.flops,
        model_flops=model_flops(job, machine, tokens),
        traffic=cost.memory,
        kernels=cost.kernels,
        wire=round(sum(cost.wire.values())),
        network=round(cost.network),
        times=Times(
            compute=cost.compute,
            memory=cost.bandwidth,
            launches=cost.launches,
            wire=cost.wire_seconds,
            step=cost.schedule,
        ),
    )


def target_config(chip: Chip) -> str:
    """Return the description of a chip that XLA compiles for (a text of its GpuTargetConfigProto)."""
    major, minor = chip.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {chip.shared}
  threads_per_core_limit: {chip.threads}
  core_count: {chip.cores}
  fpus_per_core: {chip.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {chip.cache}
  clock_rate_ghz: {chip.clock}
  device_memory_size: {chip.memory}
  shared_memory_per_block_optin: {chip.shared_by_one}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{chip.title}"
"""


def _devices(machine: Machine) -> list[Any]:
    """Return the described devices, node after node."""
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # the plugin would look for a driver
    jax.config.update("jax_platforms", "cpu")
    shape = f"1x{machine.nodes}x{machine.gpus}"
    try:
        described = topologies.get_topology_desc(
            platform="cuda", target_config=target_config(machine.chip), topology=shape
        )
    except NotImplementedError as error:
        raise NoCompiler("JAX's CUDA plugin is not installed; scripts/_setup cuda makes .venv-cuda") from error
    return list(described.devices)


def _batch(job: TrainJob, mesh: jax.sharding.Mesh, tokens: int, cameras: Sequence[str]) -> step.Batch:
    """Return the shapes of a batch as the loader makes it."""
    model, rows = job.model, sharding.batch_sharding(mesh)

    def part(*shape: int, dtype: Any = jnp.float32) -> Any:  # in the place of an array
        return jax.ShapeDtypeStruct((job.train.batch_size, *shape), dtype, sharding=rows)

    observation = Observation(
        images={name: part(model.image_size, model.image_size, 3, dtype=jnp.uint8) for name in cameras},
        image_masks={},
        tokens=part(tokens, dtype=jnp.int32),
        token_mask=part(tokens, dtype=jnp.bool_),
    )
    chunk = (model.action_horizon, model.action_dim)
    return step.Batch(observation, part(*chunk), part(*chunk, dtype=jnp.bool_))


def _bytes(tree: Any) -> int:
    """Return the bytes of a tree's arrays on one device."""
    return sum(
        jnp.dtype(leaf.dtype).itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


@contextlib.contextmanager
def _as_on(chip: Chip) -> Iterator[None]:
    """Let JAX's cuDNN attention believe that it is on a chip.

    Which heads cuDNN takes depends on the capability of the chip, and JAX asks the device of this machine for it. There
    is none, so the described one answers. It is a private function of JAX: a version that asks in another way refuses
    heads of 256, and the tests that compile the full preset say so.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def at_least(needed: str) -> bool:
        return chip.capability >= tuple(int(part) for part in needed.split("."))

    asked, cudnn.check_compute_capability = cudnn.check_compute_capability, at_least
    try:
        yield
    finally:
        cudnn.check_compute_capability = asked
