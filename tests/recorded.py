"""A small dataset with images, as the demos job leaves it in storage, written with pyarrow in no time."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from pi05 import simulator, tasks
from pi05.config import ACTION_NAMES, Convention
from pi05.data.dataset import META, DatasetMeta
from pi05.data.lerobot import INFO
from pi05.storage import Storage


def publish(
    storage: Storage,
    key: str,
    task: str,
    convention: Convention,
    lengths: tuple[int, ...] = (20, 20, 20),
    renderer: str = "none",
    first_seed: int = 0,
) -> None:
    """Put a dataset of random episodes into storage; what an image shows depends on its row."""
    with storage.stage(key) as folder:
        write(folder, task, convention, lengths, renderer, first_seed)


def write(
    folder: Path, task: str, convention: Convention, lengths: tuple[int, ...], renderer: str, first_seed: int
) -> None:
    """Write the files of a dataset."""
    for name in ("meta/episodes/chunk-000", "data/chunk-000"):
        (folder / name).mkdir(parents=True)
    names = simulator.state_names(tasks.find(task), convention)
    rows, random = sum(lengths), np.random.default_rng(first_seed)
    states = random.normal(size=(rows, len(names))).astype(np.float32)
    actions = (states[:, :8] + random.normal(size=(rows, 8), scale=0.1)).astype(np.float32)
    table = {
        "observation.state": pyarrow.FixedSizeListArray.from_arrays(states.ravel(), len(names)),
        "action": pyarrow.FixedSizeListArray.from_arrays(actions.ravel(), 8),
        **{f"observation.images.{camera}": _images(rows, convention.image_size) for camera in convention.cameras},
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(rows),
        "task_index": np.zeros(rows, int),
    }
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "data/chunk-000/file-000.parquet", row_group_size=20)
    episodes = pyarrow.table({"episode_index": range(len(lengths)), "length": lengths})
    pyarrow.parquet.write_table(episodes, folder / "meta/episodes/chunk-000/file-000.parquet")
    sentence = tasks.find(task).sentence
    pyarrow.parquet.write_table(
        pyarrow.table({"task_index": [0], "__index_level_0__": [sentence]}), folder / "meta/tasks.parquet"
    )
    size = convention.image_size
    features = {
        "observation.state": {"dtype": "float32", "shape": [len(names)], "names": list(names)},
        "action": {"dtype": "float32", "shape": [8], "names": list(ACTION_NAMES)},
        **{
            f"observation.images.{camera}": {"dtype": "image", "shape": [size, size, 3], "names": ["h", "w", "c"]}
            for camera in convention.cameras
        },
    }
    info = {"codebase_version": "v3.0", "total_frames": rows, "fps": convention.control_rate, "features": features}
    (folder / INFO).write_text(json.dumps(info))
    meta = DatasetMeta(
        task=task,
        convention=convention,
        renderer=renderer,
        seeds=tuple(range(first_seed, first_seed + len(lengths))),
        attempts=(),
        versions={},
    )
    (folder / META).write_text(meta.model_dump_json())


def _images(rows: int, size: int) -> pyarrow.Array:
    """Return PNG images in LeRobot's form."""
    found = []
    for row in range(rows):
        stream = io.BytesIO()
        Image.fromarray(np.full((size, size, 3), row, np.uint8)).save(stream, "png")
        found.append({"bytes": stream.getvalue(), "path": f"frame-{row:06d}.png"})
    return pyarrow.array(found)
