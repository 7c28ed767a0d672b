"""Arrays of a running training to a copy on the same devices that no step changes any more.

A step reuses the memory of the state it is given, so whoever reads a state later has to copy it first. On the devices
that takes milliseconds (the full preset: 6.7 GB a GPU, at most), where fetching 54 GB to the host takes seconds, and
holding them there the memory of a node. The copy is fetched piece by piece while training goes on.
"""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp

_SHARE = 0.5
"""Of what the largest step so far has left free, the part that a copy may take."""


def copied(arrays: Any) -> Any:
    """Return a tree of arrays, each copied where it is; steps that are asked for later wait for it on the devices."""
    return _copy(arrays)


def fits(arrays: Any) -> bool:
    """Return whether the devices of this process have room for a copy; a CPU takes the host's memory, and has."""
    needed: Counter[Any] = Counter()
    for array in jax.tree.leaves(arrays):
        for shard in array.addressable_shards:
            needed[shard.device] += shard.data.nbytes
    return all(size <= _SHARE * free for device, size in needed.items() if (free := _free(device)) is not None)


def _free(device: Any) -> int | None:
    """Return the bytes that were never in use on a device, or None when it does not count them."""
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats or "peak_bytes_in_use" not in stats:
        return None
    return stats["bytes_limit"] - stats["peak_bytes_in_use"]


@jax.jit
def _copy(arrays: Any) -> Any:
    return jax.tree.map(jnp.copy, arrays)
