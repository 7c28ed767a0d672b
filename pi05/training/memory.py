"""The memory of devices: how much is in use, and what to do when it does not suffice.

XLA says "not enough memory" alike when it compiles, allocates and steps; the same job would meet it again on the same
devices, so it becomes words with a way out and an exit code that is not tried again.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from pi05.config import ComputeConfig, EvalJob, TrainJob
from pi05.errors import ConfigError

_EXHAUSTED = "RESOURCE_EXHAUSTED"
_MORE = {
    "nothing": "compute.recompute=cheap",
    "cheap": "compute.recompute=layers with compute.layers=looped",  # unrolled, many layers are computed again at once
}
"""How more is computed again, by what is computed again now."""


def in_use(devices: Sequence[Any]) -> dict[str, float]:
    """Return what is in use and was at most in use on the fullest device, in GB; nothing where devices do not tell."""
    stats = [found for device in devices if (found := device.memory_stats())]
    if not stats:
        return {}
    now, peak = (max(found.get(name, 0) for found in stats) for name in ("bytes_in_use", "peak_bytes_in_use"))
    return {"memory_gb": now / 1e9, "memory_peak_gb": peak / 1e9}


@contextlib.contextmanager
def advised(advice: str) -> Iterator[None]:
    """Raise ConfigError with an advice when the devices' memory does not suffice for what is done inside."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(_EXHAUSTED):
            raise
        raise ConfigError(f"{advice} ({str(error).splitlines()[0]})") from error


def for_training(job: TrainJob, devices: int) -> str:
    """Return what does not suffice for a training, and what needs less."""
    batch, compute = job.train.batch_size, job.compute
    ways = [*_ways(compute, batch, devices), "a lower train.batch_size in a new run"]
    return (
        f"the memory of {devices} devices does not suffice for train.batch_size={batch}, "
        f"compute.recompute={compute.recompute}, compute.microbatches={compute.microbatches}. "
        f"Use {', or '.join(ways)}; pi05ctl plan computes what fits, and pi05ctl resume "
        f"{job.run} --set compute.... goes on with it"
    )


def for_acting(job: EvalJob) -> str:
    """Return what does not suffice for the policy of an evaluation, and what needs less."""
    rows, dtype = job.eval.batch_size, job.compute.dtype
    ways = [
        *(["compute.dtype=bfloat16"] if dtype == "float32" else []),
        *([f"eval.batch_size={rows // 2}"] if rows > 1 else []),
        "a device with more memory",
    ]
    return (
        f"the memory of the device does not suffice for a policy with compute.dtype={dtype} and "
        f"eval.batch_size={rows}. Use {', or '.join(ways)}, in a new evaluation"
    )


def _ways(compute: ComputeConfig, batch: int, devices: int) -> list[str]:
    """Return the settings that need less memory for the same numbers."""
    more = _MORE.get(compute.recompute)
    parts = 2 * compute.microbatches
    return [
        *([more] if more else []),
        *([f"compute.microbatches={parts}"] if batch % (parts * devices) == 0 else []),
    ]
