"""Environment variables that change what a job computes: which of them it obeys, and which it writes down.

A job is told everything by its options. So what says to JAX how to compute, left over in a shell, counts for nothing
(`pinned`); what is for the compiler and the libraries below, where it may be needed, counts and is kept with what was
computed (`told`), so that a training does not go on otherwise unseen. Knows no option and no checkpoint.
"""

from collections.abc import Mapping

_OBEYED = (
    "JAX_PLATFORMS",
    "JAX_PLATFORM_NAME",
    "JAX_NUM_CPU_DEVICES",
    "JAX_CUDA_VISIBLE_DEVICES",
    "JAX_PJRT_CLIENT_",
    "JAX_COMPILATION_CACHE_",
    "JAX_PERSISTENT_CACHE_",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_SHARE_BINARY_",
    "JAX_RAISE_PERSISTENT_CACHE_ERRORS",
    "JAX_CROSS_HOST_",
    "JAX_CPU_COLLECTIVES_",
    "JAX_CPU_GET_",
    "JAX_COORDINATOR",
    "JAX_LOG",
    "JAX_DEBUG_",
    "JAX_DUMP_",
    "JAX_TRACEBACK_",
    "JAX_EXPLAIN_",
    "JAX_INCLUDE_",
    "JAX_DISTRIBUTED_DEBUG",
    "JAX_CHECK_",
    "JAX_MOCK_",
    "JAX_SKIP_",
    "JAX_TRANSFER_GUARD",
    "JAX_PGLE_",
    "JAX_ENABLE_PGLE",
)
"""Beginnings of JAX's variables that say where it computes and what it tells; all others say how."""

_COUNT = (
    "XLA_FLAGS",
    "TF_XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NCCL_ALGO",
    "NCCL_PROTO",
)
"""Variables of XLA and of NVIDIA's libraries that decide on precision, order of sums, or both."""

_NO_MATTER = (
    "--xla_force_host_platform_device_count",
    "--xla_dump_",
    "--xla_gpu_cuda_data_dir",
    "--xla_hlo_profile",
    "--xla_cpu_parallel_codegen_",
    "--xla_gpu_force_compilation_parallelism",
    "--xla_gpu_per_fusion_autotune_cache_dir",
)
"""Beginnings of flags of XLA on which no number depends, but for the devices that a job is shared out to."""


def pinned(environ: Mapping[str, str]) -> dict[str, str]:
    """Return those of JAX's variables that a job does not obey, to be taken away before JAX reads them."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("JAX_") and not name.startswith(_OBEYED) and value
    }


def told(environ: Mapping[str, str]) -> dict[str, str]:
    """Return those that a job obeys and that change its numbers; of flags those that do, in one order."""
    found = {name: environ.get(name, "") for name in _COUNT}
    for name in ("XLA_FLAGS", "TF_XLA_FLAGS"):
        found[name] = " ".join(sorted(flag for flag in found[name].split() if not flag.startswith(_NO_MATTER)))
    return {name: value for name, value in found.items() if value}


def words(variables: Mapping[str, str]) -> str:
    """Return them as a person reads them; `none` for none."""
    return ", ".join(f"{name}={value}" for name, value in variables.items()) or "none"
