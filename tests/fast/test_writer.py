"""What we write, held to what lerobot writes of the same demonstrations: rows, frames, statistics and meta data."""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from pi05.data import shades
from pi05.data.blocks import png
from pi05.data.images import pixels
from pi05.data.lerobot import LeRobotFolder
from pi05.data.writer import Form, Writer

LENGTHS = (5, 7, 120, 2)
"""Steps of each episode; of one with more than 100, LeRobot looks at some frames alone."""
FORM = Form(
    robot="panda_wristcam",
    rate=20,
    sentence="Push a cube.",
    numbers={"observation.state": [f"s{i}" for i in range(9)], "action": [f"a{i}" for i in range(8)]},
    cameras=("observation.images.base_camera", "observation.images.hand_camera"),
    size=16,
)
ROWS = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"

Episode = tuple[dict[str, np.ndarray], dict[str, list[bytes]]]


def episodes(form: Form = FORM) -> list[Episode]:
    """Return random episodes; a number of the second feature never changes, and neither does a shade."""
    random = np.random.default_rng(0)
    found: list[Episode] = []
    for steps in LENGTHS:
        numbers = {name: random.normal(size=(steps, len(of))).astype(np.float32) for name, of in form.numbers.items()}
        numbers["action"][:, 3] = -1
        pictures = random.integers(0, 200, (len(form.cameras), steps, form.size, form.size, 3), dtype=np.uint8)
        pictures[..., 2] = 7
        frames = zip(form.cameras, pictures, strict=True)
        found.append((numbers, {name: [png(picture) for picture in seen] for name, seen in frames}))
    return found


def write(folder: Path, form: Form = FORM, counted: bool = False) -> Path:
    with Writer(folder, form) as writer:
        for numbers, frames in episodes(form):
            seen = {name: shades.of_episode([shades.of_frame(pixels(c)) for c in v]) for name, v in frames.items()}
            writer.add(numbers, frames, seen if counted else None)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Import and use lerobot without the network, progress bars and its deprecations."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import datasets

            datasets.disable_progress_bars()
            yield
    finally:
        logging.disable(logging.NOTSET)


def as_it_is(content: bytes) -> Any:
    """Return a PIL image that LeRobot does not encode again."""
    image: Any = PIL.Image.open(io.BytesIO(content))
    image.save = lambda path, **_: Path(path).write_bytes(content)
    return image


def write_by_lerobot(folder: Path, form: Form = FORM) -> Path:
    with quiet():
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        features = {k: v for k, v in form.features.items() if v["dtype"] == "image" or k in form.numbers}
        for feature in features.values():
            feature["shape"] = tuple(feature["shape"])
        dataset = LeRobotDataset.create("a/b", form.rate, features, folder, form.robot, use_videos=False)
        for numbers, frames in episodes(form):
            columns = {**numbers, **{name: map(as_it_is, contents) for name, contents in frames.items()}}
            for row in zip(*columns.values(), strict=True):
                dataset.add_frame({**dict(zip(columns, row, strict=True)), "task": form.sentence})
            dataset.save_episode()
        dataset.finalize()
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_by_lerobot(tmp_path_factory.mktemp("theirs") / "dataset")


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ours") / "dataset")


def same_table(ours: Path, theirs: Path) -> None:
    one, other = pyarrow.parquet.read_table(ours), pyarrow.parquet.read_table(theirs)
    assert one.schema.equals(other.schema)
    for name in other.column_names:
        assert one[name].equals(other[name]), name


def test_every_row_and_every_byte_of_every_frame_is_lerobots(ours: Path, theirs: Path) -> None:
    same_table(ours / ROWS, theirs / ROWS)
    groups = [pyarrow.parquet.read_metadata(folder / ROWS).num_row_groups for folder in (ours, theirs)]
    assert groups == [len(LENGTHS)] * 2


def test_every_value_of_an_episodes_record_is_lerobots(ours: Path, theirs: Path) -> None:
    same_table(ours / EPISODES, theirs / EPISODES)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/stats.json"])
def test_info_and_statistics_are_lerobots(ours: Path, theirs: Path, name: str) -> None:
    assert json.loads((ours / name).read_bytes()) == json.loads((theirs / name).read_bytes())


def test_what_the_library_datasets_is_told_of_the_columns_is_lerobots(ours: Path, theirs: Path) -> None:
    told = [json.loads(pyarrow.parquet.read_schema(f / ROWS).metadata[b"huggingface"])["info"] for f in (ours, theirs)]
    assert told[0] == told[1]


def test_our_reader_takes_both(ours: Path, theirs: Path) -> None:
    one, other = (LeRobotFolder(folder).numbers() for folder in (ours, theirs))
    np.testing.assert_array_equal(one.states, other.states)
    np.testing.assert_array_equal(one.actions, other.actions)
    assert (one.starts.tolist(), one.sentences) == (other.starts.tolist(), other.sentences)
    for folder in (ours, theirs):
        LeRobotFolder(folder).check_camera("hand_camera", FORM.size)


def test_lerobot_reads_the_same_of_both(ours: Path, theirs: Path) -> None:
    with quiet():
        import torch
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        one, other = (LeRobotDataset("a/b", root=folder) for folder in (ours, theirs))
        assert (one.num_episodes, one.num_frames, one.fps) == (4, sum(LENGTHS), 20)
        assert one.meta.tasks.equals(other.meta.tasks)
        assert one.meta.features == other.meta.features
        for row in (0, 4, 5, 131, 133):
            mine, wanted = one[row], other[row]
            assert mine.keys() == wanted.keys()
            for name, value in wanted.items():
                assert torch.equal(mine[name], value) if isinstance(value, torch.Tensor) else mine[name] == value, name


def test_shades_that_a_worker_counted_give_the_same_bytes(ours: Path, tmp_path: Path) -> None:
    again = write(tmp_path / "again", counted=True)
    for path in sorted(path for path in ours.rglob("*") if path.is_file()):
        assert path.read_bytes() == (again / path.relative_to(ours)).read_bytes(), path


def test_rows_go_on_in_a_next_file_where_lerobot_begins_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pi05.data.writer._FILE_MB", 0.1)
    monkeypatch.setattr("lerobot.datasets.utils.DEFAULT_DATA_FILE_SIZE_IN_MB", 0.1)
    ours, theirs = write(tmp_path / "ours"), write_by_lerobot(tmp_path / "theirs")
    files = [sorted(path.name for path in (folder / "data").rglob("*.parquet")) for folder in (ours, theirs)]
    assert files[0] == files[1]
    assert len(files[0]) > 1
    same_table(ours / EPISODES, theirs / EPISODES)


def test_large_images_are_thinned_as_lerobot_does() -> None:
    from lerobot.datasets.compute_stats import auto_downsample_height_width

    picture = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    thinned = auto_downsample_height_width(picture.transpose(2, 0, 1))
    assert shades.of_frame(picture)[1].tolist() == np.bincount(thinned[1].ravel(), minlength=256).tolist()


def test_a_writer_that_fails_leaves_no_meta_data(tmp_path: Path) -> None:
    numbers, frames = episodes()[0]
    with pytest.raises(KeyError), Writer(tmp_path / "dataset", FORM) as writer:
        writer.add({"action": numbers["action"]}, frames)
    assert not (tmp_path / "dataset/meta/info.json").exists()
