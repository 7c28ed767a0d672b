"""The full model in bfloat16, asked for action chunks -> milliseconds a query, of one environment and of many.

From images and tokens on the host to chunks on the host, as a policy does it; making the prompt is not in it.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.gpu_kit import drawn
from benchmarks.gpu_kit.parts import Case, Row
from benchmarks.gpu_kit.sizes import Sizes
from pi05.model import device, pi05, tree, weights

_QUERIES = 10
"""That are timed, of each batch."""


def cases(sizes: Sizes) -> Iterator[Case]:
    """Ask for one chunk and for many."""
    options = sizes.preset("full")
    compute = device.resolve(options.compute, options.model, jax.devices()[0])
    target = weights.for_acting(options.model, compute.dtype)
    params = tree.nest(drawn.parameters(options.model, target))
    steps = options.eval.sampling_steps
    sample = jax.jit(partial(pi05.sample_episodes, config=options.model, compute=compute, steps=steps, temperature=1.0))
    for rows in sizes.queries:
        observation = drawn.observation(options.model, options.convention.cameras, rows)
        yield f"batch {rows}, {steps} steps", partial(_asked, sample, params, observation, rows)


def _asked(sample: Any, params: tree.Params, observation: Any, rows: int) -> Row:
    key, episodes = jax.random.key(0), np.arange(rows, dtype=np.uint32)

    def seconds(query: int) -> float:
        begin = time.perf_counter()
        np.asarray(sample(params, observation, key, episodes, np.uint32(query)))
        return time.perf_counter() - begin

    first, later = seconds(0), [seconds(query) for query in range(1, _QUERIES + 1)]
    row: Row = {"ms": statistics.median(later) * 1e3, "first_seconds": first}
    if memory := jax.devices()[0].memory_stats():
        row["peak_gb"] = memory["peak_bytes_in_use"] / 1e9
    return row
