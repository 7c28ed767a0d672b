"""GPUs that a pod asked for -> whether JAX computes on them; where it does not, TemporaryError with the reason.

Without a driver that it can use, JAX computes on the CPU and says so in one line of a log: a training would go on,
right and far too slow, on GPUs that are booked. Who wants a CPU says so: no GPUs asked for, or JAX_PLATFORMS=cpu.
"""

import logging
import os

import jax

from pi05 import cuda
from pi05.errors import TemporaryError

log = logging.getLogger("pi05")


def check(wanted: int) -> None:
    """Raise TemporaryError unless this process computes on so many GPUs; 0 takes what there is."""
    if not wanted:
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        log.warning("JAX_PLATFORMS is cpu: nothing is computed on the %d GPUs of this pod", wanted)
        return
    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise TemporaryError(_words(wanted, f"JAX does not start: {str(error).splitlines()[0]}")) from error
    if devices[0].platform != "gpu" or len(devices) != wanted:
        raise TemporaryError(_words(wanted, f"JAX has {len(devices)} x {devices[0].device_kind}"))


def _words(wanted: int, found: str) -> str:
    return (
        f"{wanted} GPUs were asked for and {found}; {cuda.driver()}. What JAX says of it is in the log; nothing is "
        "computed on a CPU instead. Mend the node, use an image with CUDA (scripts/images train without --cpu), or "
        "ask for a CPU with [cluster.train] gpus = 0; pi05ctl doctor tries such a pod out"
    )
