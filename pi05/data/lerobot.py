"""A LeRobot folder to arrays with pyarrow alone: numbers as they are, images as the PNG bytes they are stored in.

    v3.0   meta/info.json   meta/tasks.parquet   meta/episodes/*/*.parquet   data/*/file-*.parquet: many episodes
    v2.1   meta/info.json   meta/tasks.jsonl     meta/episodes.jsonl         data/*/episode_*.parquet: one each

Every count is checked against what the meta files promise, so that a file that was cut off is named and never trained
on. Nothing is decoded, and neither lerobot nor torch is imported. Knows nothing of conventions, tasks or training.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from pi05.data.parquet import Parquet, RowGroup, files, row_groups
from pi05.errors import DataError

VERSIONS = ("v3.0", "v2.1")
INFO = "meta/info.json"
MAKE_AGAIN = (
    "if the demos job made it, delete it and make it again; if others did, import it again: pi05ctl datasets import"
)
"""What to do about a dataset that is no longer what it was; what others made cannot be made again here."""
STATE, ACTION = "observation.state", "action"
"""LeRobot's keys of numbers."""
IMAGES = "observation.images."
"""LeRobot's keys of cameras begin with it."""
_COUNTERS = ("episode_index", "index", "task_index")
_SHOWN = 200
"""Characters of a value that an error repeats."""


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
        remedy: What errors say that is to be done; "": whoever asks says that.

    Raises:
        DataError: The folder is no LeRobot dataset, of another version, or holds no data.
    """

    def __init__(self, path: Path, remedy: str = MAKE_AGAIN) -> None:
        self.path, self._remedy, self._parquet = path, remedy, Parquet(remedy, remedy)
        self.info = read_json(path / INFO, remedy)
        if self.version not in VERSIONS:
            raise DataError(
                f"{path} is in LeRobot's format {self.version!r}, {' and '.join(VERSIONS)} can be read; "
                "convert it with LeRobot's own converters, or make it again"
            )
        self._features = features(path, self.info, remedy)
        if not files(path / "data"):
            raise self._refused(f"{path}/data holds no parquet file")

    @property
    def version(self) -> str:
        """LeRobot's version of the form."""
        return str(self.info.get("codebase_version"))

    def names(self, feature: str) -> tuple[str, ...]:
        """Return the name of each of a feature's numbers.

        Raises:
            DataError: They are not named one by one.
        """
        if feature not in self._features:
            raise self._refused(f"{self.path}/{INFO} does not describe {feature}")
        told = self._features[feature]
        found, shape = flat_names(told.get("names")), told.get("shape")
        if not found or len(set(found)) < len(found) or (isinstance(shape, list) and shape != [len(found)]):
            raise self._refused(
                f"{self.path}/{INFO}: features.{feature} has the shape {shape} and the names "
                f"{str(told.get('names'))[:_SHOWN]}; a list with a name of its own for each number is required"
            )
        return found

    def numbers(self) -> Rows:
        """Read states, actions, episode bounds and instructions.

        Raises:
            DataError: A file is damaged, rows are missing, a number is not finite, or an episode has only one step.
        """
        tables = {path: self._parquet.read(path, [STATE, ACTION, *_COUNTERS]) for path in self._footers}
        self._check_rows(self._counter(tables, "index"))
        starts = self._starts(self._counter(tables, "episode_index"), self._lengths())
        return Rows(
            states=self._matrix(tables, STATE),
            actions=self._matrix(tables, ACTION),
            starts=starts,
            sentences=self._sentences(self._counter(tables, "task_index")[starts[:-1]]),
        )

    def times(self) -> np.ndarray | None:
        """Return the second of each row as the files have it, float64 (N,), or None when they have none."""
        if any("timestamp" not in footer.schema.to_arrow_schema().names for footer in self._footers.values()):
            return None
        tables = {path: self._parquet.read(path, ["timestamp"]) for path in self._footers}
        return self._stacked(tables, "timestamp", 1)[:, 0].astype(np.float64)

    def check_camera(self, camera: str, size: int) -> None:
        """Raise DataError unless the dataset has PNG images of this camera, `size` pixels square."""
        feature = self._features.get(_image(camera))
        if feature is None:
            cameras = [name.removeprefix(_image("")) for name in self._features if name.startswith(_image(""))]
            raise DataError(
                f"{self.path} has no images of {camera}; it has {', '.join(cameras) or 'none'}. Train with the cameras "
                "it was made with (convention.cameras), or make it again"
            )
        if feature.get("dtype") != "image":
            raise DataError(
                f"{self.path} keeps {camera} as {feature.get('dtype')}, image (PNG) is required: a video loses what a "
                "small object needs; write it with use_videos=False"
            )
        if feature.get("shape") != [size, size, 3]:
            raise DataError(
                f"{self.path}: {camera} has images of {feature.get('shape')}, {[size, size, 3]} are required "
                "(convention.image_size); use the size it was made with, or make it again"
            )

    @cached_property
    def groups(self) -> tuple[RowGroup, ...]:
        """The row groups of all files, in the order of rows."""
        return row_groups(self._footers)

    def images(self, group: RowGroup, cameras: Sequence[str]) -> dict[str, list[bytes]]:
        """Return the encoded images of a row group, by camera.

        Raises:
            DataError: The file is damaged, or a row has no image.
        """
        keys = [_image(camera) for camera in cameras]
        table = self._parquet.read(group.path, keys, group.index)
        return {camera: self._column(table[key], camera, group) for camera, key in zip(cameras, keys, strict=True)}

    @cached_property
    def _footers(self) -> dict[Path, Any]:
        """The files in the order of the rows, and their meta data."""
        return self._parquet.in_order(self.path / "data", "index")

    def _refused(self, words: str) -> DataError:
        return self._parquet.refused(words)

    def _column(self, column: pyarrow.ChunkedArray, camera: str, group: RowGroup) -> list[bytes]:
        """Return the bytes of a column of {bytes, path}."""
        kind = column.type
        if not pyarrow.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise self._refused(
                f"{group.path}: {_image(camera)} holds {kind}, a struct of bytes and path is required, as LeRobot "
                "keeps images"
            )
        contents: list[bytes] = []
        for row, one in enumerate(column.to_pylist(), group.first):
            content = one["bytes"] if one else None
            if not isinstance(content, bytes):
                raise self._refused(
                    f"{group.path}: row {row} has no image of {camera} in the file itself (images beside it are not "
                    "read)"
                )
            contents.append(content)
        return contents

    def _check_rows(self, index: np.ndarray) -> None:
        """Raise DataError unless rows are numbered 0, 1, 2, ... up to what info.json promises."""
        jumps = np.flatnonzero(index != np.arange(len(index)))
        if jumps.size:
            row = int(jumps[0])
            path = next(group.path for group in self.groups if row < group.first + group.rows)
            why = "rows before it are missing" if index[row] > row else "rows are there twice, or in another order"
            raise self._refused(f"{path}: row {row} is numbered {index[row]}, so {why}")
        if len(index) != self.info.get("total_frames"):
            raise self._refused(f"{self.path} has {len(index)} rows, {INFO} says {self.info.get('total_frames')}")

    def _starts(self, episode: np.ndarray, lengths: list[int]) -> np.ndarray:
        """Return int64 (E + 1,) from the episode of each row and the lengths that the meta files promise."""
        starts = np.concatenate([[0], np.flatnonzero(np.diff(episode)) + 1, [len(episode)]]).astype(np.int64)
        if not np.array_equal(episode[starts[:-1]], np.arange(len(lengths))):
            raise self._refused(f"{self.path} has {len(starts) - 1} episodes, its meta data say {len(lengths)}")
        steps = np.diff(starts)
        for one in np.flatnonzero(steps != lengths):
            raise self._refused(f"{self.path}: episode {one} has {steps[one]} rows, its meta data say {lengths[one]}")
        for one in np.flatnonzero(steps < 2):
            raise self._refused(f"{self.path}: episode {one} has fewer than two steps")
        return starts

    def _lengths(self) -> list[int]:
        """Return how many rows each episode has by LeRobot's records, which must number them 0, 1, 2, ..."""
        if self.version == "v2.1":
            path = self.path / "meta/episodes.jsonl"
            records = [(path, one) for one in read_lines(path, self._remedy)]
        else:
            paths = files(self.path / "meta/episodes")
            records = [(path, one) for path in paths for one in self._records(path)]
        if not records:
            raise self._refused(f"{self.path}/meta has no record of episodes")
        found = {self._whole(path, one, "episode_index"): self._whole(path, one, "length") for path, one in records}
        if sorted(found) != list(range(len(records))):
            raise self._refused(
                f"{records[0][0]}: the episodes are numbered {str(sorted(found))[:_SHOWN]}, 0 to {len(records) - 1} "
                "are required, each once"
            )
        return [found[number] for number in range(len(records))]

    def _records(self, path: Path) -> list[dict[str, Any]]:
        return self._parquet.records(path, self._parquet.read(path, ["episode_index", "length"]))

    def _whole(self, path: Path, record: Mapping[str, Any], name: str) -> int:
        """Return a field that is a whole number; NaN stands for nothing where pandas has written."""
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            found = f"is {value!r}" if name in record else "is missing"
            raise self._refused(f"{path}: {name} {found} in {str(dict(record))[:_SHOWN]}; a whole number is required")
        return int(value)

    def _sentences(self, task_indices: np.ndarray) -> tuple[str, ...]:
        """Return the instruction of each task index."""
        path, records = read_tasks(self.path, self.version, self._parquet)
        table = {self._whole(path, one, "task_index"): one.get("task") for one in records}
        for index in sorted({int(index) for index in task_indices}):
            if not isinstance(table.get(index), str):
                raise self._refused(f"{path}: task {index} has rows but no instruction")
        return tuple(str(table[int(index)]) for index in task_indices)

    def _counter(self, tables: Mapping[Path, pyarrow.Table], name: str) -> np.ndarray:
        """Return a column of whole numbers (N,)."""
        values = self._stacked(tables, name, 1)[:, 0]
        if values.dtype.kind not in "iu":
            raise self._refused(f"{self.path}: {name} holds {values.dtype}, integers are required")
        return values.astype(np.int64)

    def _matrix(self, tables: Mapping[Path, pyarrow.Table], column: str) -> np.ndarray:
        """Return a column of lists as float32 (N, width); DataError for another width or a value not finite."""
        matrix = self._stacked(tables, column, len(self.names(column)), np.dtype(np.float32))
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        if bad.size:
            raise self._refused(f"{self.path}: {column} is not finite in {bad.size} rows, first in row {bad[0]}")
        return np.array(matrix)

    def _stacked(
        self, tables: Mapping[Path, pyarrow.Table], name: str, width: int, kind: np.dtype | None = None
    ) -> np.ndarray:
        """Return a column of all files (N, width); one file may have it as other lists than another, or as int32."""
        parts = {path: self._parquet.numbers(path, name, table[name]) for path, table in tables.items()}
        for path, part in parts.items():
            if part.shape[1] != width or kind not in (None, part.dtype):
                raise self._refused(
                    f"{path}: {name} holds rows of {part.shape[1]} values of {part.dtype}, "
                    f"{kind or 'numeric'} rows of {width} are required"
                )
        return np.concatenate(list(parts.values()))


def read_json(path: Path, remedy: str = MAKE_AGAIN) -> dict[str, Any]:
    """Return a JSON object; raise DataError when there is none."""
    after = f"; {remedy}" if remedy else ""
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__}, an object is required")
        return content
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} is missing{after}") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}){after}") from error


def read_lines(path: Path, remedy: str = MAKE_AGAIN) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line; raise DataError naming the line that holds none."""
    after = f"; {remedy}" if remedy else ""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path} is missing{after}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}){after}") from error
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                found.append({**json.loads(line)})
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: line {number} is no JSON object ({error}){after}") from error
    return found


def read_tasks(folder: Path, version: str, parquet: Parquet) -> tuple[Path, list[dict[str, Any]]]:
    """Return the file that has the instructions, and {task_index, task} of each.

    v3.0 has the instruction as the index of a pandas table: nameless, unless somebody has named it, and beside other
    columns where somebody has added some.
    """
    if version == "v2.1":
        path = folder / "meta/tasks.jsonl"
        return path, read_lines(path, parquet.remedy)
    path = folder / "meta/tasks.parquet"
    table = parquet.read(path, None)
    try:
        told = (table.schema.pandas_metadata or {}).get("index_columns") or []
    except (ValueError, AttributeError):  # no JSON, or no table in it
        told = []
    index = [name for name in told if isinstance(name, str)]
    places = (*index, "task", "__index_level_0__", *table.column_names)
    names = [name for name in places if name in table.column_names and name != "task_index"]
    return path, [
        {
            **({"task_index": one["task_index"]} if "task_index" in one else {}),
            "task": next((one[name] for name in names if isinstance(one[name], str)), None),
        }
        for one in parquet.records(path, table)
    ]


def features(folder: Path, info: Mapping[str, Any], remedy: str = "") -> dict[str, dict[str, Any]]:
    """Return what info.json says of each column; raise DataError when that is no table of tables."""
    found = info.get("features")
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        words = f"{folder / INFO}: features is {str(found)[:_SHOWN]}, a table of features is required"
        raise DataError(f"{words}; {remedy}" if remedy else words)
    return found


def flat_names(names: object) -> tuple[str, ...]:
    """Return names that stand in a list, or in groups as some recorders write them: {"motors": [...]}; else nothing."""
    if isinstance(names, dict):
        names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _image(camera: str) -> str:
    return f"{IMAGES}{camera}"
