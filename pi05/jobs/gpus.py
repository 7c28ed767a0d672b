"""GPUs that a pod asked for -> whether JAX computes on them; where it does not, an error with the reason.

Without a driver that it can use, JAX computes on the CPU and says so in one line of a log: a training would go on,
right and far too slow, on GPUs that are booked. Who wants a CPU says so: no GPUs asked for, or JAX_PLATFORMS=cpu.
"""

import logging
import os

import jax

from pi05 import cuda
from pi05.errors import ConfigError, TemporaryError

log = logging.getLogger("pi05")


def check(wanted: int) -> None:
    """Return when this process computes on so many GPUs; 0 takes what there is.

    Raises:
        TemporaryError: It does not; another node may be whole.
        ConfigError: JAX_PLATFORMS asks for what is not here, and nobody asked for GPUs.
    """
    if not wanted:
        return _starts()
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        log.warning("JAX_PLATFORMS is cpu: nothing is computed on the %d GPUs of this pod", wanted)
        return
    try:
        devices = jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        raise TemporaryError(_words(wanted, f"JAX does not start: {_said(error)}")) from error
    if devices[0].platform != "gpu" or len(devices) != wanted:
        raise TemporaryError(_words(wanted, f"JAX has {len(devices)} x {devices[0].device_kind}"))


def _starts() -> None:
    """Raise ConfigError when JAX finds no device of those that JAX_PLATFORMS lets it look for."""
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX does not start ({_said(error)}): JAX_PLATFORMS is {asked!r} in this environment, and this machine, "
            "or the jobs' JAX, has none of that; unset it, or set it to cpu"
        ) from error


def _said(error: Exception) -> str:
    """Return an error's own words; JAX asserts, without a word, that its plugin has found something."""
    return next(iter(str(error).splitlines()), "it finds no such device")


def _words(wanted: int, found: str) -> str:
    return (
        f"{wanted} GPUs were asked for and {found}; {cuda.driver()}. What JAX says of it is in the log; nothing is "
        "computed on a CPU instead. Mend the node, use an image with CUDA (scripts/images train without --cpu), or "
        "ask for a CPU with [cluster.train] gpus = 0; pi05ctl doctor tries such a pod out"
    )
