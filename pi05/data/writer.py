"""Episodes -> a LeRobot v3.0 folder, through pyarrow alone: what lerobot 0.4.4 writes, without what makes it slow.

    meta/info.json   meta/stats.json   meta/tasks.parquet   meta/episodes/chunk-000/file-000.parquet: a row an episode
    data/chunk-000/file-000.parquet, file-001, ...: a row a step, a row group an episode, PNG files as they come

lerobot itself writes every frame to a file, decodes it for statistics and reads it back into the parquet file, in one
thread; tests/fast/test_writer.py holds this to it, value by value. One episode is in memory at a time. Nothing in the
files depends on where or when they were written. Knows nothing of tasks, conventions or simulators.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow
import pyarrow.parquet

from pi05.data import shades, summaries
from pi05.data.shades import Shades

LEROBOT = "0.4.4"
"""The version whose files these are."""
_FILE_MB = 100
"""Size from which on rows go to the next file, as LeRobot has it unless told otherwise."""
_FILES_A_CHUNK = 1000
_EPISODES_A_GROUP = 10
"""Rows of meta/episodes that LeRobot writes at a time."""
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_EPISODES = "meta/episodes/chunk-000/file-000.parquet"
_INDEX = "__index_level_0__"
"""What pandas calls an index without a name."""
_COUNTERS = {
    "timestamp": ("float32", pyarrow.float32()),
    "frame_index": ("int64", pyarrow.int64()),
    "episode_index": ("int64", pyarrow.int64()),
    "index": ("int64", pyarrow.int64()),
    "task_index": ("int64", pyarrow.int64()),
}
"""What LeRobot adds to every row."""


@dataclass(frozen=True)
class Form:
    """What the rows of a dataset are.

    Attributes:
        robot: LeRobot's robot_type.
        rate: Rows a second.
        sentence: The instruction of all episodes.
        numbers: Names of the numbers of each feature of them.
        cameras: Features that are images.
        size: Height and width of an image.
    """

    robot: str
    rate: int
    sentence: str
    numbers: Mapping[str, Sequence[str]]
    cameras: Sequence[str]
    size: int

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """What info.json says of each column."""
        image = {"dtype": "image", "shape": [self.size, self.size, 3], "names": ["height", "width", "channels"]}
        numbers = {
            name: {"dtype": "float32", "shape": [len(names)], "names": list(names)}
            for name, names in self.numbers.items()
        }
        counters = {name: {"dtype": kind, "shape": [1], "names": None} for name, (kind, _) in _COUNTERS.items()}
        return {**numbers, **dict.fromkeys(self.cameras, image), **counters}

    @property
    def schema(self) -> pyarrow.Schema:
        """The columns of data files, and beside them what the library `datasets` calls them."""
        picture = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        types = {name: pyarrow.list_(pyarrow.float32(), len(names)) for name, names in self.numbers.items()}
        types |= dict.fromkeys(self.cameras, picture)
        types |= {name: kind for name, (_, kind) in _COUNTERS.items()}
        value = {"dtype": "float32", "_type": "Value"}
        told: dict[str, Any] = {
            name: {"feature": value, "length": len(names), "_type": "List"} for name, names in self.numbers.items()
        }
        told |= {name: {"_type": "Image"} for name in self.cameras}
        told |= {name: {"dtype": kind, "_type": "Value"} for name, (kind, _) in _COUNTERS.items()}
        return pyarrow.schema(types, {"huggingface": json.dumps({"info": {"features": told}})})


@dataclass
class _Place:
    """Where rows are written: a file, and how many it and all have."""

    chunk: int = 0
    file: int = 0
    in_file: int = 0
    rows: int = 0


@dataclass
class Writer:
    """Writes a dataset; use as a context manager. Only when its block ends without an error the folder is whole.

    Attributes:
        folder: Empty, or not there.
        form: What the rows are.
    """

    folder: Path
    form: Form
    _place: _Place = field(default_factory=_Place)
    _rows: pyarrow.parquet.ParquetWriter | None = None
    _records: list[dict[str, Any]] = field(default_factory=list)
    _summaries: list[dict[str, summaries.Summary]] = field(default_factory=list)

    def __enter__(self) -> Self:
        (self.folder / "meta").mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._rows:
            self._rows.close()
        if kind is None:
            self._write_meta()

    def add(
        self,
        numbers: Mapping[str, np.ndarray],
        frames: Mapping[str, Sequence[bytes]],
        seen: Mapping[str, Shades] | None = None,
    ) -> None:
        """Add an episode of T steps, at least 2.

        Args:
            numbers: float32 (T, D) a feature.
            frames: T PNG files a camera.
            seen: The shades of each camera's frames, where somebody has counted them.
        """
        episode, steps = len(self._records), len(next(iter(numbers.values())))
        counters = self._counters(episode, steps)
        self._next_file(steps)
        self._write_rows({**numbers, **{name: _pictures(content) for name, content in frames.items()}, **counters})
        told = {name: summaries.of_numbers(values) for name, values in numbers.items()}
        for name, content in frames.items():
            counts = seen[name] if seen and name in seen else shades.of_encoded(content)
            told[name] = summaries.of_shades(counts, steps)
        told |= {name: summaries.of_numbers(values) for name, values in counters.items()}
        self._summaries.append(told)
        self._records.append(self._record(episode, steps, told))
        self._place.rows += steps
        self._place.in_file += steps

    def _counters(self, episode: int, steps: int) -> dict[str, np.ndarray]:
        step = np.arange(steps)
        return {
            "timestamp": step / self.form.rate,
            "frame_index": step,
            "episode_index": np.full(steps, episode),
            "index": self._place.rows + step,
            "task_index": np.zeros(steps, np.int64),
        }

    def _next_file(self, steps: int) -> None:
        """Begin another file when the rows to come would make this one too large, as LeRobot decides it."""
        place = self._place
        if not self._rows:
            return
        size = (self.folder / self._data_path()).stat().st_size / 2**20
        if size + (size / place.in_file if place.in_file else 0) * steps >= _FILE_MB:
            self._rows.close()
            self._rows = None
            place.chunk, place.file = divmod(place.chunk * _FILES_A_CHUNK + place.file + 1, _FILES_A_CHUNK)
            place.in_file = 0

    def _data_path(self) -> str:
        return _DATA.format(chunk_index=self._place.chunk, file_index=self._place.file)

    def _write_rows(self, columns: Mapping[str, Any]) -> None:
        schema = self.form.schema
        if not self._rows:
            path = self.folder / self._data_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = pyarrow.parquet.ParquetWriter(path, schema)
        arrays = [_array(columns[name], schema.field(name).type) for name in schema.names]
        self._rows.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))

    def _record(self, episode: int, steps: int, told: Mapping[str, summaries.Summary]) -> dict[str, Any]:
        """Return the row of meta/episodes."""
        place = self._place
        return {
            "episode_index": episode,
            "tasks": [self.form.sentence],
            "length": steps,
            "data/chunk_index": place.chunk,
            "data/file_index": place.file,
            "dataset_from_index": place.rows,
            "dataset_to_index": place.rows + steps,
            **{f"stats/{name}/{stat}": v.tolist() for name, one in told.items() for stat, v in one.items()},
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }

    def _write_meta(self) -> None:
        path = self.folder / _EPISODES
        path.parent.mkdir(parents=True)
        table = pyarrow.Table.from_pylist(self._records)
        pyarrow.parquet.write_table(table, path, row_group_size=_EPISODES_A_GROUP)
        _write_json(self.folder / "meta/info.json", self._info())
        whole = summaries.of_dataset(self._summaries)
        plain = {name: {stat: value.tolist() for stat, value in one.items()} for name, one in whole.items()}
        _write_json(self.folder / "meta/stats.json", plain)
        _write_tasks(self.folder / "meta/tasks.parquet", self.form.sentence)

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": "v3.0",
            "robot_type": self.form.robot,
            "total_episodes": len(self._records),
            "total_frames": self._place.rows,
            "total_tasks": 1,
            "chunks_size": _FILES_A_CHUNK,
            "data_files_size_in_mb": _FILE_MB,
            "video_files_size_in_mb": 200,
            "fps": self.form.rate,
            "splits": {"train": f"0:{len(self._records)}"},
            "data_path": _DATA,
            "video_path": None,
            "features": self.form.features,
        }


def _pictures(frames: Sequence[bytes]) -> list[dict[str, object]]:
    """Return images as LeRobot keeps them; the name is that of the file it would have made first."""
    return [{"bytes": content, "path": f"frame-{step:06d}.png"} for step, content in enumerate(frames)]


def _array(values: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    if pyarrow.types.is_fixed_size_list(kind):
        flat = pyarrow.array(np.ascontiguousarray(values, np.float32).ravel())
        return pyarrow.FixedSizeListArray.from_arrays(flat, type=kind)
    return pyarrow.array(values, kind) if isinstance(values, list) else pyarrow.array(values).cast(kind)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False))


def _write_tasks(path: Path, sentence: str) -> None:
    """Write the table of instructions, of which there is one; pandas is told that it is the index."""
    text = {"name": None, "pandas_type": "unicode", "numpy_type": "str", "metadata": {"encoding": "UTF-8"}}
    number = {"name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    told = {
        "index_columns": [_INDEX],
        "column_indexes": [{**text, "field_name": None}],
        "columns": [
            {**number, "field_name": "task_index"},
            {**text, "field_name": _INDEX, "pandas_type": "object", "metadata": None},
        ],
    }
    columns = {"task_index": pyarrow.int64(), _INDEX: pyarrow.large_string()}
    schema = pyarrow.schema(columns, {"pandas": json.dumps(told)})
    pyarrow.parquet.write_table(pyarrow.table([[0], [sentence]], schema=schema), path)
