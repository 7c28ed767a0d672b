"""A LeRobot folder that others made -> its numbers and encoded frames, under the names that it has itself.

    v3.0   meta/info.json   meta/tasks.parquet   meta/episodes/*/*.parquet   data/*/*.parquet   videos/<key>/*/*.mp4
    v2.1   meta/info.json   meta/tasks.jsonl     meta/episodes.jsonl         data/*/*.parquet   videos/*/<key>/*.mp4

Lenient where nothing is lost: lists of any kind, float64, int32, further columns, files in any order or behind links.
What is missing, cut off or contradicts itself is refused with file, field and row, and never with the advice to delete
it: it cannot be made again here. Knows nothing of tasks, nor of what the numbers mean (pi05.data.meaning).
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from pi05.data.lerobot import INFO, VERSIONS, features, flat_names, read_lines, read_tasks
from pi05.data.parquet import Parquet, RowGroup, files, row_groups
from pi05.errors import DataError

_PARQUET = Parquet("fetch the dataset again")
_VIDEO_PATHS = {
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}
"""Where LeRobot puts videos unless info.json says otherwise."""
_TASKS = ("meta/tasks.jsonl", "meta/tasks.parquet")


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
        self.features = features(path, self.info)
        self._groups = row_groups(_PARQUET.in_order(path / "data", "index"))
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
        names, shape = flat_names(self.features[pick.feature].get("names")), self.features[pick.feature].get("shape")
        width = shape[0] if isinstance(shape, list) and shape else 1
        return names[pick.begin : pick.end] if len(names) == width else ()

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
            size = self.info.get("chunks_size")
            place["episode_chunk"] = episode.label // (int(size) if _is_number(size) and size >= 1 else 1000)
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
        parts = [_PARQUET.numbers(path, name, _PARQUET.read(path, [name])[name]) for path in self._paths]
        widths = {part.shape[1]: path for part, path in zip(parts, self._paths, strict=True)}
        if len(widths) > 1:
            found = ", ".join(f"{width} in {path}" for width, path in widths.items())
            raise DataError(f"{self.path}: {name} has rows of several widths: {found}")
        return np.concatenate([part.astype(np.float64) for part in parts])

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
            records = read_lines(self.path / "meta/episodes.jsonl", _PARQUET.remedy)
        else:
            records: list[dict[str, Any]] = []
            for path in files(self.path / "meta/episodes"):
                table = _PARQUET.read(path, None)
                kept = [name for name in table.column_names if not name.startswith("stats/")]
                records += _PARQUET.records(path, table.select(kept))
        numbered = [(one.get("episode_index"), one) for one in records]
        return {int(number): one for number, one in numbered if _is_number(number)}

    def _sentences(self) -> dict[int, str]:
        """Return the instruction of each row, by row; nothing where the folder has none."""
        if "task_index" not in self._schema or not any((self.path / name).exists() for name in _TASKS):
            return {}
        _, tasks = read_tasks(self.path, self.version, _PARQUET)
        table = {one.get("task_index"): one["task"] for one in tasks if isinstance(one.get("task"), str)}
        of_row = self._column("task_index")[:, 0].astype(np.int64).tolist()
        return {row: table[index] for row, index in enumerate(of_row) if index in table}

    @property
    def _schema(self) -> list[str]:
        return _PARQUET.footer(self._paths[0]).schema.to_arrow_schema().names

    @functools.lru_cache(maxsize=4)  # noqa: B019  # two cameras, and where the next episode goes on
    def _image_column(self, feature: str, group: RowGroup) -> list[Any]:
        return [one[feature] for one in _PARQUET.records(group.path, _PARQUET.read(group.path, [feature], group.index))]

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
