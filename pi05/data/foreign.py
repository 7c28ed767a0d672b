"""A LeRobot folder that others made -> its numbers and encoded frames, under the names that it has itself.

    v3.0   meta/info.json   meta/tasks.parquet   meta/episodes/*/*.parquet   data/*/*.parquet   videos/<key>/*/*.mp4
    v2.1   meta/info.json   meta/tasks.jsonl     meta/episodes.jsonl         data/*/*.parquet   videos/*/<key>/*.mp4

Lenient where nothing is lost: lists of any kind, float64, int32, further columns, files in any order or behind links.
What is missing, cut off or contradicts itself is refused with file, field and row, and never with the advice to delete
it: it cannot be made again here. Knows nothing of tasks, nor of what the numbers mean (pi05.data.meaning).
"""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow
import pyarrow.parquet

from pi05.data.lerobot import INFO, VERSIONS
from pi05.data.parquet import Parquet, RowGroup, row_groups
from pi05.errors import DataError

_PARQUET = Parquet("fetch the dataset again")
_VIDEO_PATHS = {
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
"""Where LeRobot puts videos unless info.json says otherwise."""


@dataclass(frozen=True)
class Pick:
    """Some numbers of a feature: those from `begin` to before `end`, or all."""

    feature: str
    begin: int = 0
    end: int | None = None

    def __str__(self) -> str:
        whole = self.begin == 0 and self.end is None
        return self.feature if whole else f"{self.feature}[{self.begin}:{'' if self.end is None else self.end}]"


@dataclass(frozen=True)
class Episode:
    """Where an episode lies.

    Attributes:
        label: Its number in the files.
        begin, end: Its rows, as the whole folder counts them.
        sentence: Its instruction, or None where the folder has none.
    """

    label: int
    begin: int
    end: int
    sentence: str | None


@dataclass(frozen=True)
class Clip:
    """The part of a video that an episode is: a file, and the second it begins at."""

    path: Path
    begin: float


class ForeignFolder:
    """A LeRobot dataset of others.

    Args:
        path: Folder with `meta` and `data`.

    Raises:
        DataError: It is no LeRobot dataset, of another version, or holds no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.info = path, _read_json(path / INFO)
        self.version = str(self.info.get("codebase_version"))
        if self.version not in VERSIONS:
            raise DataError(
                f"{path / INFO}: codebase_version is {self.version!r}, {' or '.join(VERSIONS)} is required; convert it "
                "with LeRobot's own converters (python -m lerobot.datasets.v21.convert_dataset_v20_to_v21)"
            )
        features = self.info.get("features")
        if not isinstance(features, dict) or not all(isinstance(one, dict) for one in features.values()):
            raise DataError(f"{path / INFO}: features is {features!r}, a table of features is required")
        self.features: dict[str, dict[str, Any]] = features
        self._groups = _row_groups(path / "data")
        self.rows = sum(group.rows for group in self._groups)
        if not self.rows:
            raise DataError(f"{path / 'data'} holds no parquet file with rows; fetch the dataset again, whole")

    @property
    def rate(self) -> object:
        """Rows a second, as info.json says it."""
        return self.info.get("fps")

    @property
    def cameras(self) -> tuple[str, ...]:
        """The features that are pictures."""
        return tuple(name for name in self.features if self.is_picture(name))

    def is_picture(self, feature: str) -> bool:
        """Return whether a feature is an image or a video."""
        return self.features[feature].get("dtype") in ("image", "video")

    def names(self, pick: Pick) -> tuple[str, ...]:
        """Return the names of picked numbers; empty where the folder does not name each of them."""
        names = self.features[pick.feature].get("names")
        if isinstance(names, dict):  # {"motors": [...]}, as some recorders write it
            names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
        width = (self.features[pick.feature].get("shape") or [1])[0]
        if not isinstance(names, list) or len(names) != width:
            return ()
        return tuple(map(str, names))[pick.begin : pick.end]

    def matrix(self, picks: Sequence[Pick]) -> np.ndarray:
        """Return picked numbers side by side, float64 (N, D); DataError for what is no finite number."""
        return np.concatenate([self._picked(pick) for pick in picks], axis=1)

    @functools.cached_property
    def episodes(self) -> tuple[Episode, ...]:
        """All episodes, in the order of the rows.

        Raises:
            DataError: Rows or episodes are missing, or an episode lies in two places.
        """
        label = self._column("episode_index")[:, 0].astype(np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(label)) + 1).tolist(), len(label)]
        labels = [int(label[begin]) for begin in bounds[:-1]]
        self._check_whole(labels, np.diff(bounds).tolist())
        sentences = self._sentences()
        spans = zip(labels, bounds[:-1], bounds[1:], strict=True)
        return tuple(Episode(one, begin, end, sentences.get(begin)) for one, begin, end in spans)

    def images(self, feature: str, episode: Episode) -> Iterator[bytes]:
        """Yield the encoded images of an episode."""
        for group in self._groups:
            begin, end = max(episode.begin, group.first), min(episode.end, group.first + group.rows)
            if begin < end:
                column = self._image_column(feature, group)
                for row in range(begin, end):
                    yield self._image(column[row - group.first], group, feature, row)

    def clip(self, feature: str, episode: Episode) -> Clip:
        """Return where the video of an episode is; raise DataError when the folder does not say."""
        template = self.info.get("video_path") or _VIDEO_PATHS[self.version]
        place: dict[str, Any] = {"video_key": feature, "episode_index": episode.label}
        begin = 0.0
        if self.version == "v2.1":
            place["episode_chunk"] = episode.label // int(self.info.get("chunks_size") or 1000)
        else:
            record = self._records.get(episode.label, {})
            prefix = f"videos/{feature}"
            needed = [f"{prefix}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
            if missing := [name for name in needed if not _is_number(record.get(name))]:
                raise DataError(f"{self.path}/meta/episodes: episode {episode.label} has no {', '.join(missing)}")
            place |= {"chunk_index": int(record[needed[0]]), "file_index": int(record[needed[1]])}
            begin = float(record[needed[2]])
        try:
            return Clip(self._inside(template.format(**place)), begin)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path / INFO}: video_path {template!r} is no path of videos ({error!r})") from error

    def _picked(self, pick: Pick) -> np.ndarray:
        values = self._column(pick.feature)
        chosen = values[:, pick.begin : pick.end]
        if not chosen.shape[1] or (pick.end is not None and pick.end > values.shape[1]):
            raise DataError(f"{pick} asks for more than the {values.shape[1]} numbers that {pick.feature} has")
        bad = np.flatnonzero(~np.isfinite(chosen).all(axis=1))
        if bad.size:
            raise DataError(f"{self.path}: {pick} is not finite in {bad.size} rows, first in row {bad[0]}")
        return chosen

    def _column(self, name: str) -> np.ndarray:
        """Return a column of numbers, or of lists of numbers, of all files, as float64 (N, D)."""
        parts = [_numbers(path, name, _PARQUET.read(path, [name])[name]) for path in self._paths]
        widths = {part.shape[1]: path for part, path in zip(parts, self._paths, strict=True)}
        if len(widths) > 1:
            found = ", ".join(f"{width} in {path}" for width, path in widths.items())
            raise DataError(f"{self.path}: {name} has rows of several widths: {found}")
        return np.concatenate(parts)

    @property
    def _paths(self) -> list[Path]:
        """The files, in the order of the rows."""
        return list(dict.fromkeys(group.path for group in self._groups))

    def _check_whole(self, labels: list[int], lengths: list[int]) -> None:
        """Raise DataError when rows are missing, or there are more than the meta data say."""
        if twice := sorted({one for one in labels if labels.count(one) > 1}):
            raise DataError(f"{self.path}: the rows of episode {twice[0]} lie in two places; sort them by episode")
        total = self.info.get("total_frames")
        if total is not None and total != self.rows:
            raise DataError(f"{self.path} has {self.rows} rows, {INFO}: total_frames is {total}; fetch it again, whole")
        for label, length in zip(labels, lengths, strict=True):
            said = self._records.get(label, {}).get("length")
            if _is_number(said) and int(said) != length:
                raise DataError(
                    f"{self.path}: episode {label} has {length} rows, its meta data say {int(said)}; fetch it again"
                )

    @functools.cached_property
    def _records(self) -> dict[int, dict[str, Any]]:
        """LeRobot's record of each episode, by its number; what is missing there is missing here."""
        if self.version == "v2.1":
            records = _read_lines(self.path / "meta/episodes.jsonl")
        else:
            paths = _files(self.path / "meta/episodes")
            tables = [_PARQUET.read(path, None) for path in paths]
            kept = [table.select([n for n in table.column_names if not n.startswith("stats/")]) for table in tables]
            records = [record for table in kept for record in table.to_pylist()]
        numbered = [(one.get("episode_index"), one) for one in records]
        return {int(number): one for number, one in numbered if _is_number(number)}

    def _sentences(self) -> dict[int, str]:
        """Return the instruction of each row, by row; nothing where the folder has none."""
        table = {one.get("task_index"): one["task"] for one in self._tasks() if isinstance(one.get("task"), str)}
        if not table or "task_index" not in self._schema:
            return {}
        of_row = self._column("task_index")[:, 0].astype(np.int64).tolist()
        return {row: table[index] for row, index in enumerate(of_row) if index in table}

    def _tasks(self) -> list[dict[str, Any]]:
        """Return {task_index, task}; v3.0 has the sentence as the index of a pandas table, which may have a name."""
        if self.version == "v2.1":
            path = self.path / "meta/tasks.jsonl"
            return _read_lines(path) if path.exists() else []
        path = self.path / "meta/tasks.parquet"
        if not path.exists():
            return []
        records = _PARQUET.read(path, None).to_pylist()
        keys = [key for key in ("task", "__index_level_0__", *(records[0] if records else ())) if key != "task_index"]
        return [
            {
                "task_index": one.get("task_index"),
                "task": next((one[k] for k in keys if isinstance(one.get(k), str)), None),
            }
            for one in records
        ]

    @property
    def _schema(self) -> list[str]:
        return pyarrow.parquet.read_schema(self._paths[0]).names

    @functools.lru_cache(maxsize=4)  # noqa: B019  # two cameras, and where the next episode goes on
    def _image_column(self, feature: str, group: RowGroup) -> list[Any]:
        return _PARQUET.read(group.path, [feature], group.index)[feature].to_pylist()

    def _image(self, value: Any, group: RowGroup, feature: str, row: int) -> bytes:
        """Return an encoded image from {bytes, path}, bytes or the path of a file in the folder."""
        where = f"{group.path}: row {row}, {feature}"
        content = value.get("bytes") if isinstance(value, dict) else value
        name = value.get("path") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        if not isinstance(name, str):
            raise DataError(
                f"{where} is {type(value).__name__}, an encoded image (PNG or JPEG) or its path is required"
            )
        try:
            return self._inside(name).read_bytes()
        except OSError as error:
            raise DataError(f"{where} is the image file {name}, which cannot be read ({error.strerror})") from error

    def _inside(self, name: str) -> Path:
        """Return a file of the folder; raise DataError for a name that leads out of it."""
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{self.path} names the file {name}, which is not below the folder")
        return self.path / name


def _is_number(value: object) -> TypeGuard[int | float]:
    """Return whether something is a finite number: NaN stands for nothing where pandas has written."""
    return isinstance(value, int | float) and value == value and abs(value) != float("inf")


def _numbers(path: Path, name: str, column: pyarrow.ChunkedArray) -> np.ndarray:
    """Return a column of a file as float64 (N, D)."""
    flat, kind = column.combine_chunks(), column.type
    width = 1
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or pyarrow.types.is_fixed_size_list(kind):
        lengths = set(flat.value_lengths().to_pylist()) if len(flat) else {0}
        if len(lengths) != 1 or None in lengths:
            raise DataError(f"{path}: {name} has rows of {sorted(map(str, lengths))} numbers, all must have as many")
        width, flat, kind = lengths.pop(), flat.flatten(), kind.value_type
    if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)):
        raise DataError(f"{path}: {name} holds {column.type}, numbers or lists of numbers are required")
    if flat.null_count:
        raise DataError(f"{path}: {name} has {flat.null_count} values missing")
    return flat.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False).reshape(-1, width)


def _row_groups(folder: Path) -> tuple[RowGroup, ...]:
    """Return the row groups of all files in the order of the rows, which need not be that of the files' names."""
    footers = {path: _PARQUET.footer(path) for path in _files(folder)}
    order = sorted((path for path in footers if footers[path].num_rows), key=lambda path: (_first_row(path), path))
    return row_groups({path: footers[path] for path in order})


def _first_row(path: Path) -> int:
    """Return the number of a file's first row, 0 where rows are not numbered: then names decide."""
    if "index" not in pyarrow.parquet.read_schema(path).names:
        return 0
    return int(_numbers(path, "index", _PARQUET.read(path, ["index"], 0)["index"])[0, 0])


def _files(folder: Path) -> list[Path]:
    """Return the parquet files below a folder, through links too: data sets are moved to other disks."""
    walked = os.walk(folder, followlinks=True)
    return sorted(Path(where) / name for where, _, names in walked for name in names if name.endswith(".parquet"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; name the folder of a LeRobot dataset, which has meta and data"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the dataset again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, an object of JSON is required")
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one JSON object a line."""
    try:
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; fetch the dataset again, whole") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch the dataset again") from error
    return [one for one in found if isinstance(one, dict)]
