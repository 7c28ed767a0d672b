"""The reader of LeRobot folders: both versions, and every damage named by file, row and remedy.

Written with pyarrow, in the form that lerobot 0.4.4 writes; test_writer.py has what lerobot itself writes.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pi05.data.lerobot import INFO, LeRobotFolder
from pi05.errors import DataError

LENGTHS = (3, 5, 2)
ROWS = sum(LENGTHS)
SENTENCES = ("Push it.", "Pull it.")
CAMERAS = ("base_camera", "hand_camera")
SIZE = 8
DATA = "data/chunk-000/file-000.parquet"


def png(row: int, camera: str, size: int = SIZE) -> bytes:
    """Return an image whose every pixel says from which row and camera it is."""
    pixels = np.full((size, size, 3), [row, CAMERAS.index(camera), 7], np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def table() -> pyarrow.Table:
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    states = np.arange(ROWS * 9, dtype=np.float32).reshape(ROWS, 9)
    return pyarrow.table(
        {
            "observation.state": pyarrow.FixedSizeListArray.from_arrays(states.ravel(), 9),
            "action": pyarrow.FixedSizeListArray.from_arrays(-states[:, :8].ravel(), 8),
            **{f"observation.images.{camera}": images(camera) for camera in CAMERAS},
            "episode_index": episode,
            "index": np.arange(ROWS),
            "task_index": (episode == 1).astype(int),
        }
    )


def images(camera: str) -> pyarrow.Array:
    return pyarrow.array([{"bytes": png(row, camera), "path": f"frame-{row}.png"} for row in range(ROWS)])


def info(version: str) -> dict[str, Any]:
    image = {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channels"]}
    return {
        "codebase_version": version,
        "total_frames": ROWS,
        "features": {
            "observation.state": {"dtype": "float32", "shape": [9], "names": [f"s{i}" for i in range(9)]},
            "action": {"dtype": "float32", "shape": [8], "names": [f"a{i}" for i in range(8)]},
            **{f"observation.images.{camera}": image for camera in CAMERAS},
        },
    }


def write_v30(folder: Path, rows: pyarrow.Table | None = None) -> Path:
    for name in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / INFO).write_text(json.dumps(info("v3.0")))
    pyarrow.parquet.write_table(table() if rows is None else rows, folder / DATA, row_group_size=4)
    episodes = pyarrow.table({"episode_index": range(len(LENGTHS)), "length": LENGTHS})
    pyarrow.parquet.write_table(episodes, folder / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pyarrow.table({"task_index": [0, 1], "__index_level_0__": SENTENCES})
    pyarrow.parquet.write_table(tasks, folder / "meta/tasks.parquet")
    return folder


def write_v21(folder: Path) -> Path:
    for name in ("meta", "data/chunk-000"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / INFO).write_text(json.dumps(info("v2.1")))
    first = 0
    for episode, length in enumerate(LENGTHS):
        pyarrow.parquet.write_table(
            table().slice(first, length), folder / f"data/chunk-000/episode_{episode:06d}.parquet"
        )
        first += length
    lines = [{"episode_index": i, "tasks": [], "length": length} for i, length in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    lines = [{"task_index": i, "task": sentence} for i, sentence in enumerate(SENTENCES)]
    (folder / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_v30(tmp_path / "dataset")


@pytest.mark.parametrize("write", [write_v30, write_v21])
def test_both_versions_give_the_same_numbers(tmp_path: Path, write: Any) -> None:
    numbers = LeRobotFolder(write(tmp_path)).numbers()
    states = np.arange(ROWS * 9, dtype=np.float32).reshape(ROWS, 9)
    np.testing.assert_array_equal(numbers.states, states)
    np.testing.assert_array_equal(numbers.actions, -states[:, :8])
    assert numbers.starts.tolist() == [0, 3, 8, 10]
    assert numbers.sentences == ("Push it.", "Pull it.", "Push it.")


@pytest.mark.parametrize(("write", "sizes"), [(write_v30, [4, 4, 2]), (write_v21, [3, 5, 2])])
def test_images_come_as_the_bytes_they_are(tmp_path: Path, write: Any, sizes: list[int]) -> None:
    recorded = LeRobotFolder(write(tmp_path))
    assert [group.rows for group in recorded.groups] == sizes
    assert [group.first for group in recorded.groups] == np.cumsum([0, *sizes[:-1]]).tolist()
    group = recorded.groups[1]
    content = recorded.images(group, CAMERAS[::-1])
    assert list(content) == ["hand_camera", "base_camera"]
    assert content["hand_camera"] == [png(row, "hand_camera") for row in range(group.first, group.first + group.rows)]


def test_another_version_is_refused(folder: Path) -> None:
    (folder / INFO).write_text(json.dumps(info("v2.0")))
    with pytest.raises(DataError, match=r"format 'v2.0', v3.0 and v2.1 can be read; convert it"):
        LeRobotFolder(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    (folder / DATA).write_bytes((folder / DATA).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"file-000.parquet is missing, cut off or damaged \(.*make it again"):
        LeRobotFolder(folder).numbers()


def test_a_damaged_page_is_named(folder: Path) -> None:
    content = bytearray((folder / DATA).read_bytes())
    content[100:1500] = bytes(1400)
    (folder / DATA).write_bytes(content)
    recorded = LeRobotFolder(folder)
    with pytest.raises(DataError, match=r"file-000.parquet is missing, cut off or damaged"):
        recorded.numbers()


def test_a_row_group_missing_in_the_middle_is_named_by_its_row(folder: Path) -> None:
    write_v30(folder, pyarrow.concat_tables([table().slice(0, 4), table().slice(8)]))
    with pytest.raises(DataError, match=r"file-000.parquet: row 4 is numbered 8, so rows before it are missing"):
        LeRobotFolder(folder).numbers()


def test_a_row_group_missing_at_the_end_is_counted(folder: Path) -> None:
    write_v30(folder, table().slice(0, 8))
    with pytest.raises(DataError, match=r"has 8 rows, meta/info.json says 10"):
        LeRobotFolder(folder).numbers()


def change_episodes(folder: Path, lengths: list[int]) -> None:
    episodes = pyarrow.table({"episode_index": range(len(lengths)), "length": lengths})
    pyarrow.parquet.write_table(episodes, folder / "meta/episodes/chunk-000/file-000.parquet")


def test_an_episode_of_another_length_is_named(folder: Path) -> None:
    change_episodes(folder, [3, 4, 3])
    with pytest.raises(DataError, match="episode 1 has 5 rows, its meta data say 4"):
        LeRobotFolder(folder).numbers()


def test_a_missing_episode_is_counted(folder: Path) -> None:
    change_episodes(folder, [3, 5, 2, 6])
    with pytest.raises(DataError, match="has 3 episodes, its meta data say 4"):
        LeRobotFolder(folder).numbers()


def test_an_episode_of_one_step_is_refused(folder: Path) -> None:
    shorter = table().slice(0, 9)
    write_v30(folder, shorter)
    (folder / INFO).write_text(json.dumps(info("v3.0") | {"total_frames": 9}))
    change_episodes(folder, [3, 5, 1])
    with pytest.raises(DataError, match="episode 2 has fewer than two steps"):
        LeRobotFolder(folder).numbers()


def test_a_state_that_is_not_a_number_is_named_by_its_row(folder: Path) -> None:
    states = np.zeros((ROWS, 9), np.float32)
    states[6, 2] = np.nan
    column = pyarrow.FixedSizeListArray.from_arrays(states.ravel(), 9)
    write_v30(folder, table().set_column(0, "observation.state", column))
    with pytest.raises(DataError, match=r"observation.state is not finite in 1 rows, first in row 6"):
        LeRobotFolder(folder).numbers()


def test_a_missing_column_is_named_with_those_there_are(folder: Path) -> None:
    write_v30(folder, table().drop_columns(["action"]))
    with pytest.raises(DataError, match=r"has no column action; it has observation.state, observation.images.base"):
        LeRobotFolder(folder).numbers()


def test_a_missing_camera_is_named_with_those_there_are(folder: Path) -> None:
    with pytest.raises(DataError, match="has no images of left_camera; it has base_camera, hand_camera"):
        LeRobotFolder(folder).check_camera("left_camera", SIZE)


def test_images_of_another_size_are_refused(folder: Path) -> None:
    LeRobotFolder(folder).check_camera("base_camera", SIZE)
    with pytest.raises(DataError, match=r"base_camera has images of \[8, 8, 3\], \[224, 224, 3\] are required"):
        LeRobotFolder(folder).check_camera("base_camera", 224)


def test_videos_are_refused_with_the_reason(folder: Path) -> None:
    content = info("v3.0")
    content["features"]["observation.images.base_camera"]["dtype"] = "video"
    (folder / INFO).write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"keeps base_camera as video, image \(PNG\) is required: a video loses"):
        LeRobotFolder(folder).check_camera("base_camera", SIZE)


def test_a_row_without_its_image_is_named(folder: Path) -> None:
    rows = table()
    content = rows["observation.images.hand_camera"].to_pylist()
    content[5] = {"bytes": None, "path": "elsewhere.png"}
    place = rows.column_names.index("observation.images.hand_camera")
    write_v30(folder, rows.set_column(place, "observation.images.hand_camera", pyarrow.array(content)))
    recorded = LeRobotFolder(folder)
    with pytest.raises(DataError, match=r"file-000.parquet: row 5 has no image of hand_camera in the file itself"):
        recorded.images(recorded.groups[1], CAMERAS)


def test_a_task_without_an_instruction_is_named(folder: Path) -> None:
    tasks = pyarrow.table({"task_index": [0], "__index_level_0__": [SENTENCES[0]]})
    pyarrow.parquet.write_table(tasks, folder / "meta/tasks.parquet")
    with pytest.raises(DataError, match=r"meta/tasks.parquet: task 1 has rows but no instruction"):
        LeRobotFolder(folder).numbers()
