"""A LeRobot folder to arrays with pyarrow alone: numbers as they are, images as the PNG bytes they are stored in.

    v3.0   meta/info.json   meta/tasks.parquet   meta/episodes/*/*.parquet   data/*/file-*.parquet: many episodes
    v2.1   meta/info.json   meta/tasks.jsonl     meta/episodes.jsonl         data/*/episode_*.parquet: one each

Every count is checked against what the meta files promise, so that a file that was cut off is named and never trained
on. Nothing is decoded, and neither lerobot nor torch is imported. Knows nothing of conventions, tasks or training.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from pi05.data.parquet import Parquet, RowGroup, row_groups
from pi05.errors import DataError

VERSIONS = ("v3.0", "v2.1")
INFO = "meta/info.json"
MAKE_AGAIN = "delete the dataset and make it again with the demos job"
STATE, ACTION = "observation.state", "action"
"""LeRobot's keys of numbers."""
IMAGES = "observation.images."
"""LeRobot's keys of cameras begin with it."""
_COUNTERS = ("episode_index", "index", "task_index")
_PARQUET = Parquet(MAKE_AGAIN, without=MAKE_AGAIN)


@dataclass(frozen=True)
class Rows:
    """All rows of a dataset but their images.

    Attributes:
        states: float32 (N, S).
        actions: float32 (N, A).
        starts: int64 (E + 1,), first row of each episode, and N.
        sentences: The instruction of each episode.
    """

    states: np.ndarray
    actions: np.ndarray
    starts: np.ndarray
    sentences: tuple[str, ...]


class LeRobotFolder:
    """A dataset on disk.

    Args:
        path: Folder with `meta` and `data`.

    Raises:
        DataError: The folder is no LeRobot dataset, of another version, or holds no data.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.info = path, read_json(path / INFO)
        if self.version not in VERSIONS:
            raise DataError(
                f"{path} is in LeRobot's format {self.version!r}, {' and '.join(VERSIONS)} can be read; "
                "convert it with LeRobot's own converters, or make it again"
            )
        self._files = sorted((path / "data").rglob("*.parquet"))
        if not self._files:
            raise DataError(f"{path}/data holds no parquet file; {MAKE_AGAIN}")

    @property
    def version(self) -> str:
        """LeRobot's version of the form."""
        return str(self.info.get("codebase_version"))

    def names(self, feature: str) -> tuple[str, ...]:
        """Return the names of a feature's numbers."""
        try:
            return tuple(self.info["features"][feature]["names"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{self.path}/{INFO} does not describe {feature}; {MAKE_AGAIN}") from error

    def numbers(self) -> Rows:
        """Read states, actions, episode bounds and instructions.

        Raises:
            DataError: A file is damaged, rows are missing, a number is not finite, or an episode has only one step.
        """
        table = pyarrow.concat_tables([_PARQUET.read(path, [STATE, ACTION, *_COUNTERS]) for path in self._files])
        self._check_rows(table["index"].to_numpy())
        episodes = self._episodes()
        starts = self._starts(table["episode_index"].to_numpy(), [int(episode["length"]) for episode in episodes])
        return Rows(
            states=self._matrix(table, STATE),
            actions=self._matrix(table, ACTION),
            starts=starts,
            sentences=self._sentences(table["task_index"].to_numpy()[starts[:-1]]),
        )

    def check_camera(self, camera: str, size: int) -> None:
        """Raise DataError unless the dataset has PNG images of this camera, `size` pixels square."""
        features = self.info.get("features", {})
        feature = features.get(_image(camera))
        if feature is None:
            cameras = [name.removeprefix(_image("")) for name in features if name.startswith(_image(""))]
            raise DataError(
                f"{self.path} has no images of {camera}; it has {', '.join(cameras) or 'none'}. Train with the cameras "
                "it was made with (convention.cameras), or make it again"
            )
        if feature.get("dtype") != "image":
            raise DataError(
                f"{self.path} keeps {camera} as {feature.get('dtype')}, image (PNG) is required: a video loses what a "
                "small object needs; write it with use_videos=False"
            )
        if list(feature.get("shape", ())) != [size, size, 3]:
            raise DataError(
                f"{self.path}: {camera} has images of {feature.get('shape')}, {[size, size, 3]} are required "
                "(convention.image_size); use the size it was made with, or make it again"
            )

    @cached_property
    def groups(self) -> tuple[RowGroup, ...]:
        """The row groups of all files, in the order of rows."""
        return row_groups({path: _PARQUET.footer(path) for path in self._files})

    def images(self, group: RowGroup, cameras: Sequence[str]) -> dict[str, list[bytes]]:
        """Return the encoded images of a row group, by camera.

        Raises:
            DataError: The file is damaged, or a row has no image.
        """
        keys = [_image(camera) for camera in cameras]
        table = _PARQUET.read(group.path, keys, group.index)
        return {
            camera: self._column(table[key].combine_chunks(), camera, group)
            for camera, key in zip(cameras, keys, strict=True)
        }

    def _column(self, column: Any, camera: str, group: RowGroup) -> list[bytes]:
        """Return the bytes of a column of {bytes, path}."""
        content = column.field("bytes").to_pylist()
        if None in content:
            raise DataError(
                f"{group.path}: row {group.first + content.index(None)} has no image of {camera} in the file itself "
                f"(images beside it are not read); {MAKE_AGAIN}"
            )
        return content

    def _check_rows(self, index: np.ndarray) -> None:
        """Raise DataError unless rows are numbered 0, 1, 2, ... up to what info.json promises."""
        jumps = np.flatnonzero(index != np.arange(len(index)))
        if jumps.size:
            row = int(jumps[0])
            path = next(group.path for group in self.groups if row < group.first + group.rows)
            raise DataError(f"{path}: row {row} is numbered {index[row]}, so rows before it are missing; {MAKE_AGAIN}")
        if len(index) != self.info.get("total_frames"):
            raise DataError(
                f"{self.path} has {len(index)} rows, {INFO} says {self.info.get('total_frames')}; {MAKE_AGAIN}"
            )

    def _starts(self, episode: np.ndarray, lengths: list[int]) -> np.ndarray:
        """Return int64 (E + 1,) from the episode of each row and the lengths that the meta files promise."""
        starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1, [len(episode)]]).astype(np.int64)
        if not np.array_equal(episode[starts[:-1]], np.arange(len(lengths))):
            raise DataError(
                f"{self.path} has {len(starts) - 1} episodes, its meta data say {len(lengths)}; {MAKE_AGAIN}"
            )
        steps = np.diff(starts)
        for one in np.flatnonzero(steps != lengths):
            raise DataError(
                f"{self.path}: episode {one} has {steps[one]} rows, its meta data say {lengths[one]}; {MAKE_AGAIN}"
            )
        for one in np.flatnonzero(steps < 2):
            raise DataError(f"{self.path}: episode {one} has fewer than two steps; {MAKE_AGAIN}")
        return starts

    def _episodes(self) -> list[dict[str, Any]]:
        """Return LeRobot's records of the episodes, in order."""
        if self.version == "v2.1":
            return _read_lines(self.path / "meta/episodes.jsonl")
        paths = sorted((self.path / "meta/episodes").rglob("*.parquet"))
        if not paths:
            raise DataError(f"{self.path}/meta/episodes holds no parquet file; {MAKE_AGAIN}")
        return [row for path in paths for row in _PARQUET.read(path, ["episode_index", "length"]).to_pylist()]

    def _sentences(self, task_indices: np.ndarray) -> tuple[str, ...]:
        """Return the instruction of each task index."""
        table = {record["task_index"]: record["task"] for record in self._tasks()}
        missing = sorted({int(index) for index in task_indices} - table.keys())
        if missing:
            raise DataError(f"{self.path}: task {missing[0]} has rows but no instruction in meta/tasks; {MAKE_AGAIN}")
        return tuple(table[int(index)] for index in task_indices)

    def _tasks(self) -> Iterator[dict[str, Any]]:
        """Yield {task_index, task}; v3.0 writes the sentence as the nameless index of a pandas table."""
        if self.version == "v2.1":
            yield from _read_lines(self.path / "meta/tasks.jsonl")
            return
        for record in _PARQUET.read(self.path / "meta/tasks.parquet", None).to_pylist():
            index = record.pop("task_index", None)
            yield {"task_index": index, "task": next(iter(record.values()), None)}

    def _matrix(self, table: pyarrow.Table, column: str) -> np.ndarray:
        """Return a column of lists as float32 (N, width); DataError for another width or a value not finite."""
        width = len(self.names(column))
        flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if len(flat) != len(table) * width or flat.dtype != np.float32:
            raise DataError(
                f"{self.path}: {column} holds {len(flat)} values of {flat.dtype} in {len(table)} rows, "
                f"float32 rows of {width} are required; {MAKE_AGAIN}"
            )
        matrix = flat.reshape(len(table), width)
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if bad.size:
            raise DataError(
                f"{self.path}: {column} is not finite in {bad.size} rows, first in row {bad[0]}; {MAKE_AGAIN}"
            )
        return np.array(matrix)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raise DataError when there is none."""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError("not an object")
        return content
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing, so this is no dataset of ours; {MAKE_AGAIN}") from error
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); {MAKE_AGAIN}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {MAKE_AGAIN}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); {MAKE_AGAIN}") from error


def _image(camera: str) -> str:
    return f"{IMAGES}{camera}"
