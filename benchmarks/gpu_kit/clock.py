"""Calls that compute on a device -> seconds each."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def milliseconds(call: Callable[[], Any], calls: int = 20, rounds: int = 5) -> float:
    """Return the milliseconds of a call, the median of some rounds; the first call, which compiles, does not count.

    The calls of a round are queued and waited for together, so that short kernels are not measured by their launch.
    """
    jax.block_until_ready(call())

    def one_round() -> float:
        begin = time.perf_counter()
        jax.block_until_ready([call() for _ in range(calls)])
        return (time.perf_counter() - begin) / calls * 1e3

    return statistics.median(one_round() for _ in range(rounds))
