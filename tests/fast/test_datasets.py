"""`pi05ctl datasets`: what is said of a dataset, and how every damage is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pi05 import tasks
from pi05.config import Convention
from pi05.data import dataset as datasets
from pi05.data.blocks import png
from pi05.data.dataset import META, Attempt, DatasetMeta, Demo
from pi05.data.verify import main, problems
from pi05.storage import MANIFEST, FileStorage
from pi05ctl.cli import main as cli
from pi05ctl.stored.datasets import spans

SIZE = 16
CONVENTION = Convention(image_size=SIZE)
LENGTHS = {3: 5, 4: 7, 9: 4}
"""Steps of each episode, by seed."""
KEY = "datasets/pushcube/3f2a917c0b1d"
ROWS = "data/chunk-000/file-000.parquet"
BASE, HAND = (f"observation.images.{camera}" for camera in CONVENTION.cameras)


def demos() -> list[Demo]:
    random = np.random.default_rng(0)

    def frames(steps: int) -> list[bytes]:
        return [png(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(steps)]

    return [
        Demo(
            seed,
            random.normal(size=(steps, 9)).astype(np.float32),
            random.normal(size=(steps, 8)).astype(np.float32),
            {camera: frames(steps) for camera in CONVENTION.cameras},
        )
        for seed, steps in LENGTHS.items()
    ]


def meta() -> DatasetMeta:
    attempts = [
        Attempt(
            seed=seed,
            success=seed in LENGTHS,
            steps=LENGTHS.get(seed, 8),
            seconds=0.5,
            replay_seconds=2.0,
            reason="" if seed in LENGTHS else "no plan found",
        )
        for seed in range(3, 10)
    ]
    return DatasetMeta(
        task="pushcube",
        convention=CONVENTION,
        renderer="lavapipe 25.0.7",
        seeds=tuple(LENGTHS),
        attempts=tuple(attempts),
        versions={"mani_skill": "3.0.1"},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = FileStorage(tmp_path_factory.mktemp("made").as_uri())
    with storage.stage(KEY) as folder:
        datasets.write(folder, tasks.find("pushcube"), [f"number_{i}" for i in range(9)], demos(), meta())
    return storage.root


@pytest.fixture
def storage(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStorage:
    """A copy to damage, which pi05ctl works on."""
    shutil.copytree(made, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PI05_STORAGE", (tmp_path / "data").as_uri())
    return FileStorage((tmp_path / "data").as_uri())


def pi05ctl(*words: str) -> int:
    return cli.run(["datasets", *words])


def change_rows(storage: FileStorage, change: Callable[[pyarrow.Table], pyarrow.Table]) -> None:
    path = storage.path(KEY) / ROWS
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path, row_group_size=4)


def change_json(storage: FileStorage, name: str, change: Callable[[dict], object]) -> None:
    path = storage.path(KEY) / name
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def seal(storage: FileStorage) -> None:
    """Make the manifest anew, as whoever writes a wrong dataset would."""
    shutil.move(storage.path(KEY), storage.root / "moved")
    (storage.root / "moved" / MANIFEST).unlink()
    storage.publish(storage.root / "moved", KEY)


def with_image(row: int, camera: str, content: bytes) -> Callable[[pyarrow.Table], pyarrow.Table]:
    def change(table: pyarrow.Table) -> pyarrow.Table:
        column = table[camera].to_pylist()
        column[row]["bytes"] = content
        return table.set_column(table.column_names.index(camera), camera, pyarrow.array(column))

    return change


# ---- What is written -------------------------------------------------------------------------------------------------


def test_frames_are_stored_as_the_png_files_they_came_as(made: Path) -> None:
    table = pyarrow.parquet.read_table(made / KEY / ROWS)
    written = demos()
    assert [image["bytes"] for image in table[HAND].to_pylist()[:5]] == list(written[0].frames["hand_camera"])
    assert pyarrow.parquet.ParquetFile(made / KEY / ROWS).metadata.num_row_groups == len(written)
    assert not (made / KEY / "images").exists()


def test_lerobot_opens_it_and_sees_the_pixels(made: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from pi05.data.images import decode

    data = LeRobotDataset("pi05/pushcube", root=made / KEY)
    assert (len(data), data.num_episodes) == (16, 3)
    stored = demos()[1].frames["base_camera"][0]
    wanted = decode(stored, data[5][BASE].shape[-1]).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_allclose(data[5][BASE].numpy(), wanted, atol=1e-6)


# ---- What is said ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("storage")
def test_the_list_has_what_one_chooses_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert pi05ctl("list") == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["DATASET", "DEMOS", "FRAMES", "SIZE", "AGE", "CAMERAS", "RENDERER", "YIELD", "S/DEMO"]
    for word in ("pushcube/3f2a917c0b1d", " 3 ", " 16 ", "base + hand, 16 px", "lavapipe 25.0.7", "43%", "5.8"):
        assert word in line
    assert pi05ctl("list", "-o", "json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["key"], one["seeds"], one["convention"]["image_size"]) == (KEY, list(LENGTHS), SIZE)
    assert one["failures"] == {"no plan found": 4}


@pytest.mark.parametrize("name", ["pushcube", "3f2a", "pushcube/3f2a917c0b1d", KEY])
def test_one_dataset_is_shown_whatever_it_is_called(
    storage: FileStorage, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert pi05ctl("show", name) == 0
    shown = capsys.readouterr().out
    assert f"{storage.url}/{KEY}" in shown
    assert "seeds        3-4, 9; 7 tried, yield 43%" in shown
    assert "failed       4 times no plan found" in shown
    assert "drawn by lavapipe 25.0.7, the goal is visible" in shown


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pushcub", "did you mean 'pushcube'"),
        ("pickcube", "no dataset of pickcube yet; make one: pi05ctl submit demos pickcube"),
    ],
)
@pytest.mark.usefixtures("storage")
def test_a_dataset_that_is_not_there_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert pi05ctl("show", name) == 2
    assert words in capsys.readouterr().err


def test_a_damaged_meta_file_does_not_hide_the_others(storage: FileStorage, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(storage.path(KEY), storage.path("datasets/pushcube/aaaa"))
    (storage.path("datasets/pushcube/aaaa") / META).write_text("{")
    assert pi05ctl("list") == 0
    said = capsys.readouterr()
    assert "pushcube/3f2a917c0b1d" in said.out
    assert "datasets/pushcube/aaaa cannot be described" in said.err


def test_seeds_are_written_as_people_do() -> None:
    assert [spans(seeds) for seeds in ((), (4,), (0, 1, 2, 4, 7, 8))] == ["", "4", "0-2, 4, 7-8"]


# ---- What is found ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("storage")
def test_an_intact_dataset_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert pi05ctl("verify", "pushcube") == 0
    assert "every checksum agrees, every row and image is there" in capsys.readouterr().err


def test_a_flipped_byte_is_found(storage: FileStorage, capsys: pytest.CaptureFixture[str]) -> None:
    path = storage.path(KEY) / ROWS
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert pi05ctl("verify", "pushcube") == 3
    assert "file-000.parquet has crc32c" in (said := capsys.readouterr().err)
    assert "make it again: pi05ctl submit demos pushcube" in said


def test_a_damage_that_the_manifest_covers_is_found_by_looking_inside(
    storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    change_rows(storage, lambda table: table.slice(0, 12))  # the last row group
    seal(storage)
    assert storage.verify(KEY) == []
    assert pi05ctl("verify", "pushcube") == 3
    assert "has 12 rows, meta/info.json says 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: pyarrow.concat_tables([table.slice(0, 4), table.slice(8)]), "row 4 is numbered 8, so rows"),
        (lambda table: table.slice(0, 15), "has 15 rows, meta/info.json says 16"),
        (with_image(6, HAND, b"\x89PNG but not really"), "row 6, hand_camera: it is no PNG or JPEG image"),
        (with_image(6, BASE, png(np.zeros((8, 8, 3), np.uint8))), r"row 6, base_camera: it has 8 x 8 pixels"),
        (with_image(6, BASE, png(np.zeros((16, 16), np.uint8))), "row 6, base_camera: its pixels are L, RGB is"),
    ],
    ids=["missing row group", "missing row", "no image", "image of another size", "grey image"],
)
def test_damaged_rows_are_named(storage: FileStorage, change: Callable, words: str) -> None:
    change_rows(storage, change)
    (problem,) = problems(storage.path(KEY))
    assert words in problem


def test_a_flipped_byte_in_an_image_is_found_without_a_manifest(storage: FileStorage) -> None:
    content = bytearray(demos()[1].frames["hand_camera"][1])
    content[len(content) // 2] ^= 1
    change_rows(storage, with_image(6, HAND, bytes(content)))
    assert "row 6, hand_camera: it is no PNG or JPEG image" in problems(storage.path(KEY))[0]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("meta/info.json", lambda info: info.update(total_frames=17), "has 16 rows, meta/info.json says 17"),
        ("meta/info.json", lambda info: info.update(total_episodes=4), "meta/info.json says 4 episodes, there are 3"),
        (META, lambda meta: meta.update(seeds=[3, 4]), "has 3 episodes, meta/pi05.json says 2"),
        (
            META,
            lambda meta: meta["attempts"][1].update(steps=8),
            "seed 4) has 7 rows, meta/pi05.json says 8",
        ),
        (META, lambda meta: meta["attempts"][1].update(success=False), "says that 2 attempts succeeded"),
        ("meta/stats.json", lambda stats: stats["action"].update(count=[15]), "counts [15] rows, there are 16"),
    ],
)
def test_wrong_counts_are_named(storage: FileStorage, name: str, change: Callable, words: str) -> None:
    change_json(storage, name, change)
    assert words in " ".join(problems(storage.path(KEY)))


def test_the_program_prints_its_first_problems_and_says_so_in_its_exit_code(
    storage: FileStorage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(storage.path(KEY))]) == 0
    assert capsys.readouterr().out == ""
    for row in range(16):
        for camera in (BASE, HAND):
            change_rows(storage, with_image(row, camera, b""))
    assert main([str(storage.path(KEY))]) == 65
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (21, "and 12 more")


@pytest.mark.usefixtures("storage")
def test_an_interpreter_that_cannot_look_inside_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pi05.toml").write_text('python = "/usr/bin/false"\n')
    assert pi05ctl("verify", "pushcube") == 2
    assert "every checksum of" in (said := capsys.readouterr().err)
    assert "/usr/bin/false cannot look into it" in said
