"""LeRobot folders as people have them: merged, converted, moved, made elsewhere. Read right, or refused in one line.

A dataset of ours is written, and then changed as some tool or hand has changed one; its manifest is made anew, so that
checksums agree.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pi05 import simulator, tasks
from pi05.config import Convention
from pi05.data import dataset as datasets
from pi05.data.blocks import png
from pi05.data.dataset import META, Attempt, DatasetMeta, Demo
from pi05.data.verify import main, problems
from pi05.errors import DataError
from pi05.storage import FileStorage
from pi05ctl.cli import main as cli
from tests.foreign import Foreign

TASK = tasks.find("pushcube")
SIZE = 8
CONVENTION = Convention(cameras=("base_camera",), image_size=SIZE)
NAMES = simulator.stored_names(TASK)
LENGTHS = (5, 7)
INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
ROWS, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
MADE_HERE, BY_HAND = "datasets/pushcube/0123456789ab", "datasets/pushcube/x"
Change = Callable[[Path], object]


def write(folder: Path, convention: Convention = CONVENTION) -> Path:
    random = np.random.default_rng(0)
    demos = [
        Demo(
            seed,
            random.normal(size=(steps, len(NAMES))).astype(np.float32),
            random.normal(size=(steps, 8)).astype(np.float32),
            {
                name: [png(np.full((SIZE, SIZE, 3), row, np.uint8)) for row in range(steps)]
                for name in convention.cameras
            },
        )
        for seed, steps in enumerate(LENGTHS)
    ]
    meta = DatasetMeta(
        task=TASK.name,
        convention=convention,
        renderer="none",
        seeds=(0, 1),
        attempts=tuple(Attempt(seed=s, success=True, steps=n, seconds=0.1) for s, n in enumerate(LENGTHS)),
        versions={},
    )
    datasets.write(folder, TASK, NAMES, demos, meta)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "dataset")


def change_json(name: str, change: Callable[[dict], object]) -> Change:
    def work(folder: Path) -> None:
        content = json.loads((folder / name).read_bytes())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return work


def change_table(name: str, change: Callable[[pyarrow.Table], pyarrow.Table]) -> Change:
    def work(folder: Path) -> None:
        table = pyarrow.parquet.read_table(folder / name)
        pyarrow.parquet.write_table(change(table), folder / name)

    return work


def column(name: str, make: Callable[[list[Any]], Any]) -> Callable[[pyarrow.Table], pyarrow.Table]:
    """Return what replaces a column of a table by one made of its values."""
    return lambda table: table.set_column(
        table.column_names.index(name), name, pyarrow.array(make(table[name].to_pylist()))
    )


def split(folder: Path, change: Callable[[pyarrow.Table], pyarrow.Table], swapped: bool = False) -> None:
    """Put the second episode into a file of its own, changed; swapped: the first one is in the second file."""
    table = pyarrow.parquet.read_table(folder / ROWS)
    parts = [table.slice(0, LENGTHS[0]), change(table.slice(LENGTHS[0]))]
    for number, part in enumerate(parts[::-1] if swapped else parts):
        pyarrow.parquet.write_table(part, folder / f"data/chunk-000/file-{number:03d}.parquet")


def lines(folder: Path, name: str, content: list[object]) -> None:
    (folder / name).write_text("\n".join(map(json.dumps, content)))


def v21(folder: Path, episodes: list[object], sentences: list[object]) -> None:
    """Make a v2.1 folder of a v3.0 one."""
    change_json(INFO, lambda info: info.update(codebase_version="v2.1"))(folder)
    lines(folder, "meta/episodes.jsonl", episodes)
    lines(folder, "meta/tasks.jsonl", sentences)


def whole_v21(folder: Path) -> None:
    episodes: list[object] = [{"episode_index": i, "length": n, "tasks": []} for i, n in enumerate(LENGTHS)]
    v21(folder, episodes, [{"task_index": 0, "task": TASK.sentence}])


def as_floats(values: list[Any]) -> list[float]:
    return [float(value) for value in values]


# ---- What is read ----------------------------------------------------------------------------------------------------


def as_lists(table: pyarrow.Table) -> pyarrow.Table:
    """Return a table whose numbers are lists of any length, as other libraries write them."""
    for name in ("observation.state", "action"):
        values = pyarrow.array(table[name].to_pylist(), pyarrow.large_list(pyarrow.float32()))
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def as_int32(table: pyarrow.Table) -> pyarrow.Table:
    for name in ("index", "episode_index", "task_index"):
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pyarrow.int32()))
    return table


def linked(folder: Path) -> None:
    (folder / "data/chunk-000").rename(folder.parent / "disk")
    (folder / "data/chunk-000").symlink_to(folder.parent / "disk")


def more_of_tasks(table: pyarrow.Table) -> pyarrow.Table:
    return table.add_column(0, "category", pyarrow.array(["push"]))


def named_index(table: pyarrow.Table) -> pyarrow.Table:
    """Return the table as pandas writes it when its index has a name."""
    told = {"index_columns": ["instruction"], "columns": [], "column_indexes": []}
    table = more_of_tasks(table).rename_columns(["category", "task_index", "instruction"])
    return table.replace_schema_metadata({"pandas": json.dumps(told)})


def motors(info: dict) -> None:
    for one in info["features"].values():
        if one["dtype"] == "float32" and one["names"]:
            one["names"] = {"motors": one["names"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: split(folder, as_lists),  # L01
        lambda folder: split(folder, as_int32),  # L01
        lambda folder: split(folder, lambda table: table, swapped=True),  # L14
        linked,  # L09
        change_json(INFO, motors),  # L10
        change_table(TASKS, more_of_tasks),  # L13
        change_table(TASKS, named_index),  # L13
        change_table(EPISODES, column("length", as_floats)),
        change_table(EPISODES, lambda table: table.take([1, 0])),
        whole_v21,
    ],
    ids=[
        "lists",
        "int32",
        "files-swapped",
        "linked",
        "motors",
        "tasks-extra",
        "tasks-named",
        "float-lengths",
        "episodes-swapped",
        "v2.1",
    ],
)
def test_what_others_write_otherwise_is_the_same_dataset(folder: Path, change: Change) -> None:
    before = datasets.load(folder)
    change(folder)
    after = datasets.load(folder)
    np.testing.assert_array_equal(after.states, before.states)
    np.testing.assert_array_equal(after.actions, before.actions)
    assert (after.starts.tolist(), after.state_names) == (before.starts.tolist(), before.state_names)
    assert problems(folder) == []


# ---- What is refused -------------------------------------------------------------------------------------------------


def gripper_first(info: dict) -> None:
    names = info["features"]["action"]["names"]
    info["features"]["action"]["names"] = [names[-1], *names[:-1]]


def scalar_action(folder: Path) -> None:
    change_table(ROWS, column("action", lambda values: [value[-1] for value in values]))(folder)
    change_json(INFO, lambda info: info["features"].update(action={"shape": [1], "names": ["gripper"]}))(folder)


IMAGE = "observation.images.base_camera"


def no_length(folder: Path) -> None:
    whole_v21(folder)
    lines(folder, "meta/episodes.jsonl", [{"episode_index": 0, "tasks": ["x"]}, {"episode_index": 1, "length": 7}])


def no_task_index(folder: Path) -> None:
    whole_v21(folder)
    lines(folder, "meta/tasks.jsonl", [{"index": 0, "task": "x"}])


def broken_line(folder: Path) -> None:
    whole_v21(folder)
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 5}\n{"episode_in')


def cut(folder: Path) -> None:
    (folder / ROWS).write_bytes((folder / ROWS).read_bytes()[:-200])


def pointer(folder: Path) -> None:
    (folder / ROWS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")


def dangling(folder: Path) -> None:
    (folder / "data/chunk-001").symlink_to(folder / "unmounted")


def stats(feature: str, change: Callable[[dict], object]) -> Change:
    return change_json(STATS, lambda content: change(content[feature]))


REFUSED: dict[str, tuple[Change, str]] = {
    "L02 no length": (no_length, "meta/episodes.jsonl: length is missing in {'episode_index': 0"),
    "L02 no task_index": (no_task_index, "meta/tasks.jsonl: task_index is missing in {'index': 0"),
    "L02 broken off": (broken_line, "meta/episodes.jsonl: line 2 is no JSON object"),
    "L02 no length v3.0": (change_table(EPISODES, lambda table: table.drop(["length"])), "has no column length"),
    "L03": (change_table(EPISODES, column("length", lambda _: [5.0, float("nan")])), "length is nan in"),
    "L03 twice": (change_table(EPISODES, column("episode_index", lambda _: [0, 0])), "are numbered [0], 0 to 1"),
    "L04 raw": (change_table(ROWS, column(IMAGE, lambda v: [one["bytes"] for one in v])), f"{IMAGE} holds binary"),
    "L04 path": (change_table(ROWS, column(IMAGE, lambda v: [one["path"] for one in v])), f"{IMAGE} holds string"),
    "L04 null": (change_table(ROWS, column(IMAGE, lambda v: [None, *v[1:]])), "row 0 has no image of base_camera"),
    "L05": (scalar_action, "the actions are gripper; required are, in this order, joint_1"),
    "L05 undescribed": (change_table(ROWS, column("action", lambda v: [1.0] * len(v))), "rows of 1 values of float64"),
    "L07": (change_json(INFO, lambda info: info.update(fps=10)), "fps is 10, meta/pi05.json says control_rate 20"),
    "L07 none": (change_json(INFO, lambda info: info.pop("fps")), "fps is None, meta/pi05.json says control_rate 20"),
    "L07 times": (
        change_table(ROWS, column("timestamp", lambda v: [2 * one for one in v])),
        "row 1 is of 0.1 s, step 1",
    ),
    "L08": (change_json(INFO, gripper_first), "the actions are gripper, joint_1, joint_2"),
    "L09 dangling": (dangling, "data/chunk-001 is a link to "),
    "L10 one name": (
        change_json(INFO, lambda info: info["features"]["observation.state"].update(names=["state"])),
        "has the shape [17] and the names ['state']",
    ),
    "L10 no table": (change_json(INFO, lambda info: info.update(features=[])), "features is [], a table of features"),
    "L11": (lambda folder: (folder / META).unlink(), "made elsewhere and cannot be used as it is; import it"),
    "L15": (cut, "is missing, cut off or damaged (Parquet magic bytes not found"),
    "L15 pointer": (pointer, "it is a Git LFS pointer"),
    "L16": (change_json(INFO, lambda info: info.update(codebase_version="v2.0")), "v3.0 and v2.1 can be read; convert"),
    "L17": (
        change_table(ROWS, column("action", lambda v: v)),  # Python's floats are float64
        "action holds rows of 8 values of float64, float32 rows of 8 are required",
    ),
    "float index": (change_table(ROWS, column("index", as_floats)), "index holds float64, integers are required"),
    "ragged": (change_table(ROWS, column("action", lambda v: [v[0][:7], *v[1:]])), "rows of 7, 8 numbers"),
    "null": (change_table(ROWS, column("action", lambda v: [None, *v[1:]])), "action is missing in 1 rows"),
    "task of another": (change_json(META, lambda meta: meta.update(task="pushtee")), "task is 'pushtee', there are"),
    "stats short": (stats("action", lambda one: one["max"].pop()), "action.max is no list of 8 numbers"),
    "stats nan": (stats("action", lambda one: one["max"].__setitem__(3, float("nan"))), "action.max[3] is nan"),
    "stats swapped": (
        stats("observation.state", lambda one: one.update(min=one["max"], max=one["min"])),
        "observation.state.min[0] is",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_named_with_its_file_and_what_is_required(
    folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = REFUSED[case]
    change(folder)
    assert main([str(folder)]) == DataError.exit_code
    said = capsys.readouterr()
    assert words in said.out
    assert "delete" not in said.out


@pytest.mark.parametrize("case", [case for case in REFUSED if not case.startswith(("stats", "L04", "L07 times"))])
def test_training_refuses_it_too_and_says_that_it_may_have_been_made_elsewhere(folder: Path, case: str) -> None:
    change, words = REFUSED[case]
    change(folder)
    with pytest.raises(DataError) as error:
        datasets.load(folder)
    assert words in str(error.value)
    assert any(word in str(error.value) for word in ("pi05ctl datasets import", "converters", "there are", "put that"))


# ---- As a user types it ----------------------------------------------------------------------------------------------


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStorage:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PI05_STORAGE", (tmp_path / "data").as_uri())
    return FileStorage((tmp_path / "data").as_uri())


def test_the_data_are_blamed_and_not_the_interpreter(
    storage: FileStorage, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_length(folder)
    storage.publish(folder, MADE_HERE)
    assert cli.run(["datasets", "verify", "pushcube"]) == 3
    said = capsys.readouterr().err
    assert "meta/episodes.jsonl: length is missing" in said
    assert said.count("make it again") == 1
    assert "set python" not in said


def test_nobody_is_told_to_delete_what_no_run_has_made(
    storage: FileStorage, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_json(INFO, gripper_first)(folder)
    storage.publish(folder, BY_HAND)
    assert cli.run(["datasets", "verify", "x"]) == 3
    said = capsys.readouterr().err
    assert "the actions are gripper, joint_1" in said
    assert f"import it: pi05ctl datasets import {storage.path(BY_HAND)} --task pushcube" in said
    assert f"delete {storage.url}" not in said


@pytest.mark.parametrize("sealed", [False, True])
def test_what_was_made_elsewhere_is_listed_with_the_way_to_use_it(
    storage: FileStorage, capsys: pytest.CaptureFixture[str], sealed: bool
) -> None:  # L11, L12
    place = Foreign.usual().write_v30(storage.path(BY_HAND))
    if sealed:
        place.rename(storage.root / "moved")
        storage.publish(storage.root / "moved", BY_HAND)
    assert cli.run(["datasets", "list"]) == 0
    said = capsys.readouterr().err
    assert f"pi05ctl datasets import {storage.path(BY_HAND)} --task pushcube" in said
    if sealed:
        assert cli.run(["datasets", "verify", "x"]) == 3
        said = capsys.readouterr().err
        assert "made elsewhere" in said
        assert f"delete {storage.url}" not in said


def test_a_link_into_another_disk_is_part_of_a_dataset(storage: FileStorage, folder: Path) -> None:  # L09
    storage.publish(folder, MADE_HERE)
    linked(storage.path(MADE_HERE))
    assert storage.verify(MADE_HERE) == []
    assert cli.run(["datasets", "verify", "pushcube"]) == 0
    storage.fetch(MADE_HERE, storage.root / "copy")
    assert not (storage.root / "copy/data/chunk-000").is_symlink()
    assert problems(storage.root / "copy") == []


def test_the_program_itself_says_it_in_a_line(folder: Path) -> None:
    change_json(INFO, lambda info: info.update(fps=10))(folder)
    command = [sys.executable, "-m", "pi05.data.verify", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n")) == (65, 1)
    assert "fps is 10" in done.stdout
    assert "Traceback" not in done.stderr
