"""Finished blocks: consecutive seeds, planned, replayed and rendered, as files that the next start finds.

    0000000-0000019.parquet   one row a step, one row group a demonstration: seed, state, action, a PNG a camera
    0000000-0000019.json      every attempt, and what the block was made under; written last: the block is whole

A reader holds one demonstration in memory. Knows no simulator, no planner and no storage.
"""

import io
import logging
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from pi05.config import Convention
from pi05.data.dataset import Attempt, Demo

log = logging.getLogger(__name__)

_COMPRESSION = 3
"""Of PNG: 11 ms for two frames of 224 pixels; 6, PIL's default, takes 30 ms and saves 5 %."""


class Origin(BaseModel):
    """What a block was made under; one made under anything else is made again.

    Attributes:
        task: Name of the task.
        convention: Of states, actions and cameras.
        renderer: What drew the images.
        versions: Of what simulated it.
        source: The recordings replayed, or "" for our own planner.
        hold, disturb: Of the demonstrations (`DemosConfig`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    convention: Convention
    renderer: str
    versions: dict[str, str]
    source: str = ""
    hold: int = 0
    disturb: float = 0.0


class _Content(BaseModel):
    """The json of a block; `shades` has, for each demonstration, 3 x 256 numbers a camera."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin
    attempts: tuple[Attempt, ...]
    shades: tuple[dict[str, list[list[int]]], ...]


@dataclass(frozen=True)
class Block:
    """A finished block.

    Attributes:
        path: Its parquet file.
        attempts: Every seed's, in order.
        shades: Those of each demonstration's frames, by camera.
    """

    path: Path
    attempts: tuple[Attempt, ...]
    shades: tuple[dict[str, list[list[int]]], ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """Seeds of the demonstrations, in the order of the row groups."""
        return tuple(attempt.seed for attempt in self.attempts if attempt.success)

    def demo(self, seed: int) -> Demo:
        """Return the demonstration of a seed."""
        place = self.kept.index(seed)
        with pyarrow.parquet.ParquetFile(self.path) as file:
            table = file.read_row_group(place)
        cameras = [name for name in table.column_names if name not in ("seed", "state", "action")]
        frames = {name: table[name].to_pylist() for name in cameras}
        shades = {camera: np.array(counts) for camera, counts in self.shades[place].items()}
        return Demo(seed, _matrix(table["state"]), _matrix(table["action"]), frames, shades)


def png(image: np.ndarray) -> bytes:
    """Return the PNG file of uint8 (height, width, 3)."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png", compress_level=_COMPRESSION)
    return content.getvalue()


def write_block(path: Path, origin: Origin, results: Iterable[tuple[Attempt, Demo | None]]) -> None:
    """Write a block as its demonstrations come.

    Args:
        path: The parquet file; the json goes beside it, last.
        origin: What it is made under.
        results: Every attempt in order, and the demonstration of each that succeeded.
    """
    attempts: list[Attempt] = []
    shades: list[dict[str, list[list[int]]]] = []
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}")  # the process of a killed job may still be at work
    schema = _schema(origin.convention.cameras)
    with pyarrow.parquet.ParquetWriter(unfinished, schema, compression="none", use_dictionary=False) as writer:
        for attempt, demo in results:
            attempts.append(attempt)
            if demo:
                writer.write_table(_table(demo, schema), row_group_size=len(demo.actions))
                shades.append({camera: counts.tolist() for camera, counts in demo.shades.items()})
    unfinished.replace(path)
    content = _Content(origin=origin, attempts=tuple(attempts), shades=tuple(shades))
    unfinished.write_text(content.model_dump_json())
    unfinished.replace(path.with_suffix(".json"))


def read_block(path: Path, seeds: Sequence[int], origin: Origin) -> Block | None:
    """Return a finished block, or None when it is missing, damaged, of other seeds or made under something else."""
    try:
        content = _Content.model_validate_json(path.with_suffix(".json").read_bytes())
        groups = pyarrow.parquet.read_metadata(path).num_row_groups
    except (OSError, ValidationError, pyarrow.ArrowException):
        return None
    block = Block(path, content.attempts, content.shades)
    same = [attempt.seed for attempt in block.attempts] == list(seeds) and content.origin == origin
    return block if same and groups == len(block.kept) == len(block.shades) else None


def pack(block: Block) -> bytes:
    """Return a block's two files as one, with checksums; images are compressed already."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for part in (block.path, block.path.with_suffix(".json")):
            archive.write(part, part.name)
    return content.getvalue()


def unpack(content: bytes, path: Path) -> None:
    """Write a block's two files, the json last; a damaged content writes nothing that would be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for part in (path, path.with_suffix(".json")):
                part.write_bytes(archive.read(part.name))
    except (zipfile.BadZipFile, KeyError) as error:
        log.warning("block %s on the shelf is damaged (%s); it is made again", path.stem, error)


def _schema(cameras: Sequence[str]) -> pyarrow.Schema:
    numbers = pyarrow.list_(pyarrow.float32())
    columns = {"seed": pyarrow.int64(), "state": numbers, "action": numbers}
    return pyarrow.schema({**columns, **dict.fromkeys(cameras, pyarrow.binary())})


def _table(demo: Demo, schema: pyarrow.Schema) -> pyarrow.Table:
    columns = {"seed": [demo.seed] * len(demo.actions), "state": list(demo.states), "action": list(demo.actions)}
    return pyarrow.table({**columns, **demo.frames}, schema=schema)


def _matrix(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Return a column of lists as float32 (T, D)."""
    return np.stack([np.asarray(row, np.float32) for row in column.to_pylist()])
