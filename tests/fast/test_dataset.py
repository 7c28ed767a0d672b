"""Datasets on disk: what is written is read, by us and by lerobot, and what is damaged is named."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pi05 import tasks
from pi05.config import Convention
from pi05.data.dataset import META, Attempt, DatasetMeta, Demo, check_convention, load, write
from pi05.errors import DataError

CONVENTION = Convention(cameras=(), state="joints_and_poses")
NAMES = tuple(f"number_{i}" for i in range(11))
LENGTHS = {3: 5, 4: 7, 9: 2}
"""Steps of each episode, by seed."""


def demos() -> list[Demo]:
    rng = np.random.default_rng(0)
    return [
        Demo(
            seed,
            rng.normal(size=(steps, len(NAMES))).astype(np.float32),
            rng.normal(size=(steps, 8)).astype(np.float32),
        )
        for seed, steps in LENGTHS.items()
    ]


def meta() -> DatasetMeta:
    attempts = [Attempt(seed=seed, success=seed in LENGTHS, steps=4, seconds=0.5) for seed in range(3, 10)]
    return DatasetMeta(
        task="pushcube",
        convention=CONVENTION,
        renderer="none",
        seeds=tuple(LENGTHS),
        attempts=tuple(attempts),
        versions={"mani_skill": "3.0.1"},
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write(folder, tasks.find("pushcube"), NAMES, demos(), meta())
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(written, tmp_path / "dataset")


def change_rows(folder: Path, change: Callable[[pyarrow.Table], pyarrow.Table]) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def with_column(name: str, values: np.ndarray) -> Callable[[pyarrow.Table], pyarrow.Table]:
    column = pyarrow.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    return lambda table: table.set_column(table.column_names.index(name), name, column)


def test_what_is_read_is_what_was_written(written: Path) -> None:
    data = load(written)
    assert (data.meta, data.state_names) == (meta(), NAMES)
    assert data.starts.tolist() == [0, 5, 12, 14]
    assert (data.starts.dtype, data.states.dtype, data.actions.dtype) == (np.int64, np.float32, np.float32)
    np.testing.assert_array_equal(data.states, np.concatenate([demo.states for demo in demos()]))
    np.testing.assert_array_equal(data.actions, np.concatenate([demo.actions for demo in demos()]))


def test_lerobot_opens_it(written: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("pi05/pushcube", root=written)
    assert (len(data), data.num_episodes, data.fps) == (14, 3, 20)
    assert data[5]["task"] == tasks.find("pushcube").sentence
    np.testing.assert_array_equal(data[5]["observation.state"].numpy(), demos()[1].states[0])
    assert data.features["action"]["names"] == [*(f"joint_{i}" for i in range(1, 8)), "gripper"]


def test_reading_needs_neither_lerobot_nor_torch(written: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pi05.data.dataset import load;"
        "load(Path(sys.argv[1])); print({'torch', 'lerobot', 'mani_skill', 'jax'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script, str(written)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_same_demonstrations_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", tasks.find("pushcube"), NAMES, demos(), meta())
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(written)).read_bytes(), path


def test_meta_says_what_the_demonstrations_cost() -> None:
    assert meta().solver_yield == pytest.approx(3 / 7)
    assert meta().solver_seconds == pytest.approx(7 * 0.5 / 3)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "meta/info.json").unlink()
    with pytest.raises(DataError, match=r"meta/info.json is missing; if the demos job made it, .*make it again"):
        load(folder)


def test_what_others_made_is_to_be_imported(folder: Path) -> None:
    (folder / META).unlink()
    with pytest.raises(DataError, match=r"made elsewhere and cannot be used as it is; import it: .* import /") as error:
        load(folder)
    assert "delete" not in str(error.value)


def test_missing_rows_are_named(folder: Path) -> None:
    shutil.rmtree(folder / "data")
    with pytest.raises(DataError, match="holds no parquet file"):
        load(folder)


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_damaged_json_is_named(folder: Path, content: bytes) -> None:
    (folder / META).write_bytes(content)
    with pytest.raises(DataError, match=r"pi05.json is damaged"):
        load(folder)


def test_meta_of_another_form_is_named_by_its_field(folder: Path) -> None:
    content = json.loads((folder / META).read_bytes())
    del content["renderer"]
    (folder / META).write_text(json.dumps(content))
    with pytest.raises(DataError, match="renderer: Field required"):
        load(folder)


def test_a_truncated_parquet_file_is_damaged(folder: Path) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"file-000.parquet is missing, cut off or damaged \(.*make it again"):
        load(folder)


def test_a_value_that_is_not_finite_is_named_by_its_row(folder: Path) -> None:
    states = np.zeros((14, len(NAMES)), np.float32)
    states[6, 2] = np.nan
    change_rows(folder, with_column("observation.state", states))
    with pytest.raises(DataError, match=r"observation.state is not finite in 1 rows, first in row 6"):
        load(folder)


def test_rows_of_another_width_are_refused(folder: Path) -> None:
    change_rows(folder, with_column("action", np.zeros((14, 7), np.float32)))
    with pytest.raises(DataError, match=r"action holds rows of 7 values of float32, float32 rows of 8 are required"):
        load(folder)


def change_meta(folder: Path, **fields: object) -> None:
    content = json.loads((folder / META).read_bytes())
    (folder / META).write_text(json.dumps(content | fields))


def test_a_seed_too_few_is_counted(folder: Path) -> None:
    change_meta(folder, seeds=[3, 4])
    with pytest.raises(DataError, match=r"has 3 episodes, meta/pi05.json says 2"):
        load(folder)


def test_the_instruction_of_another_task_is_refused(folder: Path) -> None:
    change_meta(folder, task="pullcube")
    with pytest.raises(
        DataError, match=r"has the instruction 'Push and .*', pullcube has 'Pull a cube onto a target.'"
    ):
        load(folder)


def test_images_that_are_not_there_are_refused(folder: Path) -> None:
    change_meta(folder, convention=CONVENTION.model_copy(update={"cameras": ("hand_camera",)}).model_dump())
    with pytest.raises(DataError, match="has no images of hand_camera; it has none"):
        load(folder)


def test_an_equal_convention_passes() -> None:
    equal = Convention(cameras=(), state="joints_and_poses")
    check_convention(CONVENTION, equal, "dataset x")
    assert equal == CONVENTION


def test_each_differing_field_is_named_with_both_values() -> None:
    found = CONVENTION.model_copy(update={"state": "joints", "control_rate": 10})
    with pytest.raises(DataError) as caught:
        check_convention(found, CONVENTION, "dataset datasets/pushcube/3f2a91")
    message = str(caught.value)
    assert "dataset datasets/pushcube/3f2a91 follows another convention" in message
    assert "control_rate is 10, the job wants 20" in message
    assert "state is 'joints', the job wants 'joints_and_poses'" in message
    assert "robot" not in message
