"""LeRobot datasets as others make them: other names, forms, types and sizes, written with pyarrow in no time."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

SENTENCE = "push the cube to the target"
ROBOT = [f"joint_{i}" for i in range(1, 8)]


def course(lengths: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return states (N, 9) of an arm that follows its targets, actions (N, 8): smooth, as a planner's are."""
    random = np.random.default_rng(seed)
    states, actions = [], []
    home = np.array([0, 0.4, 0, -1.9, 0, 2.3, -0.77])
    for steps in lengths:
        path = home + 0.02 * np.cumsum(random.normal(size=(steps + 1, 7)), axis=0)
        gripper = np.where(np.arange(steps) < steps // 2, 1.0, -1.0)
        opening = 0.04 * (gripper > 0)
        states.append(np.column_stack([path[:-1], opening, opening]))
        actions.append(np.column_stack([path[1:], gripper]))
    return np.concatenate(states), np.concatenate(actions)


def picture(row: int, height: int, width: int, goal: bool = False) -> np.ndarray:
    """Return a picture (height, width, 3) whose colours say the row; with a green ball where the goal is shown."""
    pixels = np.full((height, width, 3), [60 + row, 90, 120], np.uint8)
    if goal:
        pixels[2 : 2 + height // 4, 2 : 2 + width // 4] = [20, 200, 20]
    return pixels


def png(pixels: np.ndarray, form: str = "png") -> bytes:
    """Return an encoded picture."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@dataclass(frozen=True)
class Foreign:
    """A dataset to be written.

    Attributes:
        columns: Numbers by feature, (N, D).
        names: Of the numbers of a feature; a feature may lack.
        cameras: Features that are images: height and width.
        videos: Those of them that are videos.
        lengths: Steps of each episode.
        info: What info.json says otherwise.
        sentences: Of the episodes, in turn.
        goal: Whether PickCube's goal is in the pictures.
        kind: Type of the numbers.
    """

    columns: dict[str, np.ndarray]
    lengths: tuple[int, ...] = (6, 9, 5)
    names: dict[str, object] = field(default_factory=dict)
    cameras: dict[str, tuple[int, int]] = field(default_factory=lambda: {"image": (32, 32), "wrist_image": (32, 32)})
    videos: tuple[str, ...] = ()
    info: dict[str, object] = field(default_factory=dict)
    sentences: tuple[str, ...] = (SENTENCE,)
    goal: bool = False
    kind: pyarrow.DataType = field(default_factory=pyarrow.float32)

    @classmethod
    def usual(cls, lengths: tuple[int, ...] = (6, 9, 5), **fields: Any) -> Self:
        """Return one with the names that converters for openpi use."""
        states, actions = course(lengths)
        return cls({"state": states, "actions": actions}, lengths, **fields)

    def but(self, **fields: Any) -> Self:
        """Return another one."""
        return replace(self, **fields)

    @property
    def table(self) -> pyarrow.Table:
        """All rows."""
        rows = sum(self.lengths)
        columns: dict[str, Any] = {
            name: pyarrow.array(list(values.astype(self.kind.to_pandas_dtype())), pyarrow.list_(self.kind))
            for name, values in self.columns.items()
        }
        for name, (height, width) in self.cameras.items():
            if name not in self.videos:
                files = [png(picture(row, height, width, self.goal)) for row in range(rows)]
                columns[name] = pyarrow.array([{"bytes": content, "path": None} for content in files])
        episode = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return pyarrow.table(
            {
                **columns,
                "episode_index": episode,
                "frame_index": np.concatenate([np.arange(steps) for steps in self.lengths]),
                "index": np.arange(rows),
                "task_index": episode % len(self.sentences),
            }
        )

    def features(self) -> dict[str, Any]:
        """What info.json says of the columns."""
        numbers = {
            name: {"dtype": "float32", "shape": [values.shape[1]], "names": self.names.get(name)}
            for name, values in self.columns.items()
        }
        pictures = {
            name: {"dtype": "video" if name in self.videos else "image", "shape": [*size, 3], "names": ["h", "w", "c"]}
            for name, size in self.cameras.items()
        }
        return {**numbers, **pictures}

    def write_v30(self, folder: Path) -> Path:
        """Write LeRobot v3.0: many episodes a file."""
        for name in ("meta/episodes/chunk-000", "data/chunk-000"):
            (folder / name).mkdir(parents=True)
        self._write_info(folder, "v3.0")
        pyarrow.parquet.write_table(self.table, folder / "data/chunk-000/file-000.parquet", row_group_size=7)
        starts = np.cumsum([0, *self.lengths[:-1]])
        rate = float(self._said("v3.0")["fps"])
        records = []
        for number, (length, start) in enumerate(zip(self.lengths, starts.tolist(), strict=True)):
            place = {"chunk_index": 0, "file_index": 0, "from_timestamp": start / rate}
            of_videos = {f"videos/{name}/{key}": value for name in self.videos for key, value in place.items()}
            records.append({"episode_index": number, "length": length, **of_videos})
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(records), folder / "meta/episodes/chunk-000/file-000.parquet"
        )
        tasks = {"task_index": range(len(self.sentences)), "__index_level_0__": self.sentences}
        pyarrow.parquet.write_table(pyarrow.table(tasks), folder / "meta/tasks.parquet")
        for name in self.videos:
            self._film(folder / f"videos/{name}/chunk-000/file-000.mp4", name, 0, sum(self.lengths))
        return folder

    def write_v21(self, folder: Path) -> Path:
        """Write LeRobot v2.1: a file an episode."""
        for name in ("meta", "data/chunk-000"):
            (folder / name).mkdir(parents=True)
        self._write_info(folder, "v2.1")
        first = 0
        for number, length in enumerate(self.lengths):
            name = f"episode_{number:06d}"
            pyarrow.parquet.write_table(self.table.slice(first, length), folder / f"data/chunk-000/{name}.parquet")
            for camera in self.videos:
                self._film(folder / f"videos/chunk-000/{camera}/{name}.mp4", camera, first, length)
            first += length
        episodes = [{"episode_index": number, "length": length} for number, length in enumerate(self.lengths)]
        (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)))
        tasks = [{"task_index": number, "task": one} for number, one in enumerate(self.sentences)]
        (folder / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
        return folder

    def _said(self, version: str) -> dict[str, Any]:
        total = {"total_frames": sum(self.lengths), "total_episodes": len(self.lengths)}
        said = {"codebase_version": version, "robot_type": "panda", "fps": 20, "features": self.features()}
        return {**said, **total, **self.info}

    def _write_info(self, folder: Path, version: str) -> None:
        (folder / "meta/info.json").write_text(json.dumps(self._said(version)))

    def _film(self, path: Path, camera: str, first: int, count: int) -> None:
        """Write rows as a video that loses next to nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = self.cameras[camera]
        with av.open(str(path), "w") as file:
            stream: Any = file.add_stream("libx264", rate=20, options={"crf": "1"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
            stream.codec_context.thread_count = 1
            for row in range(first, first + count):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(row, height, width, self.goal), "rgb24")))
            file.mux(stream.encode())
