"""Weights on the device -> a checkpoint on this machine's disk -> weights on the device, in GB/s.

The disk is the one of temporary files; what was written is thrown out of memory before it is read.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.gpu_kit import drawn
from benchmarks.gpu_kit.parts import Case, Row
from benchmarks.gpu_kit.sizes import Sizes, cut
from pi05.config import ModelConfig
from pi05.model import tree, weights


def cases(sizes: Sizes) -> Iterator[Case]:
    """Write and restore the weights of a few layers, as a training does and as a policy does."""
    model = cut(sizes.preset("full").model, sizes.restored_depth)
    with tempfile.TemporaryDirectory(prefix="pi05-bench-") as folder:
        place = Path(folder, "params")
        yield "written", partial(_written, place, model)
        for dtype in ("float32", "bfloat16"):
            yield f"restored as {dtype}", partial(_restored, place, model, dtype)


def _written(place: Path, model: ModelConfig) -> Row:
    target = {path: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for path, leaf in tree.leaves(model).items()}
    params = jax.block_until_ready(drawn.parameters(model, target))
    begin = time.perf_counter()
    weights.write(place, params)
    seconds = time.perf_counter() - begin
    _forget(place)
    return _pace(4 * tree.count(model), seconds) | {"disk_gb": sum(map(_size, place.rglob("*"))) / 1e9}


def _restored(place: Path, model: ModelConfig, dtype: str) -> Row:
    begin = time.perf_counter()
    jax.block_until_ready(weights.read(place, model, weights.for_acting(model, dtype)))
    seconds = time.perf_counter() - begin
    _forget(place)
    return _pace(4 * tree.count(model), seconds)


def _pace(size: int, seconds: float) -> Row:
    """Return figures of that many bytes of float32 weights."""
    return {"gb": size / 1e9, "seconds": seconds, "gb_per_second": size / 1e9 / seconds}


def _forget(place: Path) -> None:
    """Bring files to the disk and out of memory."""
    for file in place.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
