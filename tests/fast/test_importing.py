"""Datasets of others: what is used, what is converted, and what is refused with the field it fails at."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pi05 import tasks
from pi05.data import dataset as datasets
from pi05.data.images import decode, pixels
from pi05.data.importing import Wish, import_folder, main
from pi05.data.lerobot import LeRobotFolder
from pi05.data.verify import problems
from pi05.errors import ConfigError, DataError
from pi05.simulator import JOINT_NAMES, STORED_JOINTS, stored_names
from tests.foreign import ROBOT, SENTENCE, Foreign, course, picture, png

USUAL = Foreign.usual()
WRITERS: list[Callable[[Foreign, Path], Path]] = [Foreign.write_v30, Foreign.write_v21]


def imported(folder: Path, task: str = "pushcube", **wishes: Any) -> datasets.Dataset:
    """Import a folder, look at every row and image, and return the dataset."""
    out = folder.with_name(f"{folder.name}-imported")
    shutil.rmtree(out, ignore_errors=True)
    import_folder(Wish(folder, tasks.find(task), **wishes), out)
    assert problems(out) == []
    return datasets.load(out)


def refused(folder: Path, words: str, task: str = "pushcube", **wishes: Any) -> None:
    with pytest.raises((DataError, ConfigError), match=words):
        imported(folder, task, **wishes)


def frames(data: datasets.Dataset, camera: str) -> list[bytes]:
    assert data.folder is not None
    recorded = LeRobotFolder(data.folder)
    return [content for group in recorded.groups for content in recorded.images(group, [camera])[camera]]


@pytest.mark.parametrize("write", WRITERS)
def test_both_versions_with_the_names_of_openpis_converters_are_used(write: Any, tmp_path: Path) -> None:
    data = imported(write(USUAL, tmp_path / "theirs"))
    np.testing.assert_array_equal(data.states, USUAL.columns["state"].astype(np.float32))
    np.testing.assert_array_equal(data.actions, USUAL.columns["actions"].astype(np.float32))
    assert (data.starts.tolist(), data.state_names) == ([0, 6, 15, 20], STORED_JOINTS)
    convention = data.meta.convention
    assert (convention.cameras, convention.image_size, convention.state) == (
        ("base_camera", "hand_camera"),
        32,
        "joints",
    )
    assert (data.meta.seeds, data.meta.seeds_known) == ((0, 1, 2), False)
    assert frames(data, "hand_camera") == [png(picture(row, 32, 32)) for row in range(20)]


def test_names_may_be_anything_when_the_user_says_which(tmp_path: Path) -> None:
    states, actions = course(USUAL.lengths)
    extended = np.column_stack([np.full(20, 5.0), states, np.full(20, 7.0)])
    theirs = USUAL.but(columns={"robot": extended, "cmd": actions}, cameras={"cam_high": (32, 32)})
    folder = theirs.write_v30(tmp_path / "theirs")
    refused(folder, "has no state by a usual name; it has robot, cmd; say which: --map FEATURE=state")
    maps = ("robot[1:10]=state", "cmd=action", "cam_high=observation.images.base_camera")
    data = imported(folder, maps=maps)
    np.testing.assert_array_equal(data.states, states.astype(np.float32))
    assert data.meta.convention.cameras == ("base_camera",)


def test_parts_of_a_state_are_put_side_by_side(tmp_path: Path) -> None:
    states, actions = course(USUAL.lengths)
    theirs = USUAL.but(columns={"arm": states[:, :7], "hand": states[:, 7:8], "actions": actions})
    data = imported(theirs.write_v30(tmp_path / "theirs"), maps=("arm=state", "hand=state"))
    np.testing.assert_array_equal(data.states, states[:, :8].astype(np.float32))
    assert data.state_names == JOINT_NAMES


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("image", "--map 'image' is not THEIRS=OURS"),
        ("imag=base_camera", "no feature 'imag'; did you mean 'image'"),
        ("image=base", "'base' is none of ours"),
        ("image=state", "that is a picture, numbers are required"),
        ("state=base_camera", "that is float32, an image or a video is required"),
        ("state[0:30]=state", r"asks for more than the 9 numbers that state has"),
    ],
)
def test_a_map_that_cannot_be_is_named(given: str, words: str, tmp_path: Path) -> None:
    refused(USUAL.write_v30(tmp_path / "theirs"), words, maps=(given,))


def test_a_camera_can_be_left_out(tmp_path: Path) -> None:
    data = imported(USUAL.write_v30(tmp_path / "theirs"), maps=("wrist_image=none",))
    assert data.meta.convention.cameras == ("base_camera",)
    assert data.meta.convention.robot == "panda"


@pytest.mark.parametrize("kind", [pyarrow.float64(), pyarrow.float32()])
def test_wider_numbers_become_float32(kind: pyarrow.DataType, tmp_path: Path) -> None:
    data = imported(USUAL.but(kind=kind).write_v30(tmp_path / "theirs"))
    np.testing.assert_array_equal(data.actions, USUAL.columns["actions"].astype(np.float32))


def test_images_keep_their_size_or_get_the_one_that_is_asked_for(tmp_path: Path) -> None:
    folder = USUAL.but(cameras={"image": (48, 48), "wrist_image": (40, 40)}).write_v30(tmp_path / "theirs")
    assert imported(folder).meta.convention.image_size == 40
    data = imported(folder, size=24)
    assert decode(frames(data, "base_camera")[3], 24)[12, 12].tolist() == [63, 90, 120]


def test_black_bars_are_cut_off_and_other_wide_images_are_refused(tmp_path: Path) -> None:
    theirs = USUAL.but(cameras={"image": (32, 44)})
    refused(
        theirs.write_v30(tmp_path / "wide"), r"image \(base_camera\) cannot be used: it has 32 x 44 pixels and no bl"
    )
    folder = theirs.write_v30(tmp_path / "padded")
    padded = np.pad(picture(9, 32, 32), ((0, 0), (6, 6), (0, 0)))
    column = pyarrow.array([{"bytes": png(padded), "path": None}] * 20)
    rows = theirs.table.set_column(theirs.table.column_names.index("image"), "image", column)
    pyarrow.parquet.write_table(rows, folder / "data/chunk-000/file-000.parquet")
    data = imported(folder)
    assert decode(frames(data, "base_camera")[0], 32).tolist() == picture(9, 32, 32).tolist()


@pytest.mark.parametrize("write", WRITERS)
def test_videos_become_images_frame_by_frame(write: Any, tmp_path: Path) -> None:
    data = imported(write(USUAL.but(videos=("image", "wrist_image")), tmp_path / "theirs"))
    for row, content in enumerate(frames(data, "base_camera")):
        assert np.abs(pixels(content).astype(int) - picture(row, 32, 32)).max() <= 4, row


def test_a_video_that_is_too_short_is_named_with_the_second(tmp_path: Path) -> None:
    theirs = USUAL.but(videos=("image",))
    folder = theirs.write_v30(tmp_path / "theirs")
    path = folder / "videos/image/chunk-000/file-000.mp4"
    path.unlink()
    refused(folder, "file-000.mp4 is missing or damaged")
    path.parent.rmdir()
    theirs._film(path, "image", 0, 17)
    refused(folder, r"file-000.mp4 has no frame at 0.850 s, that of row 2 of 5")


@pytest.mark.parametrize("rate", [10, 30])
def test_another_rate_is_refused_with_both_numbers(rate: int, tmp_path: Path) -> None:
    folder = USUAL.but(info={"fps": rate}).write_v30(tmp_path / "theirs")
    refused(folder, rf"has {rate} rows a second \(fps\), the simulator is controlled 20 times")
    assert imported(folder, rate=20).meta.convention.control_rate == 20


def test_named_numbers_in_another_order_are_put_in_ours(tmp_path: Path) -> None:
    states, actions = course(USUAL.lengths)
    theirs = USUAL.but(
        columns={"state": states, "actions": np.roll(actions, 1, axis=1)},
        names={"state": {"motors": [f"panda_joint{i}" for i in range(1, 8)] + ["finger_l", "finger_r"]}}
        | {"actions": ["gripper", *ROBOT]},
    )
    data = imported(theirs.write_v30(tmp_path / "theirs"))
    np.testing.assert_array_equal(data.actions, actions.astype(np.float32))


def test_joints_in_another_order_without_names_are_seen_by_their_values(tmp_path: Path) -> None:
    states, actions = course(USUAL.lengths)
    theirs = USUAL.but(columns={"state": states, "actions": actions[:, [1, 0, 3, 2, 5, 4, 6, 7]]})
    words = r"in another order than those of a state: by their values they are joint_2, joint_1, joint_4, joint_3"
    refused(theirs.write_v30(tmp_path / "theirs"), words)


def test_other_control_modes_are_refused_or_converted(tmp_path: Path) -> None:
    states, actions = course(USUAL.lengths)
    deltas = np.column_stack([(actions[:, :7] - states[:, :7]) / 0.1, actions[:, 7]])
    theirs = USUAL.but(columns={"state": states, "actions": deltas})
    folder = theirs.write_v30(tmp_path / "theirs")
    refused(folder, r"not absolute joint targets in rad.* the control mode is another one \(pd_joint_delta_pos, ")
    data = imported(folder, mode="pd_joint_delta_pos")
    np.testing.assert_allclose(data.actions, actions, atol=1e-6)
    data = imported(folder, mode="pd_joint_target_delta_pos")  # from target to target: the same where each is reached
    np.testing.assert_allclose(data.actions, actions, atol=1e-6)
    theirs.but(columns={"state": states, "actions": deltas[:, :7]}).write_v30(tmp_path / "hand")
    refused(
        tmp_path / "hand", r"an action has 7 numbers, 8 are required: 7 absolute joint targets in rad and the gripper"
    )


ARM, FINGERS, GRIPPER = slice(9, 16), slice(7, 9), slice(16, 17)
"""Of rows that are a state and then an action: the joints' targets, the fingers' opening and the gripper."""


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        (ARM, np.rad2deg, "they would fit as degrees"),
        (GRIPPER, np.negative, "the gripper closes where its action is positive"),
        (GRIPPER, lambda values: (values + 1) / 2, "the gripper's actions are from 0 to 1, -1"),
        (FINGERS, lambda values: values * 25, "a finger opens from 0 to 1, 0 to 0.04 m is required"),
        (slice(0, 9), lambda values: values * 0, "the joints of the state never move"),
    ],
)
def test_numbers_of_another_meaning_are_refused_unless_they_are_wanted_as_they_are(
    part: slice, change: Callable[[np.ndarray], np.ndarray], words: str, tmp_path: Path
) -> None:
    rows = np.column_stack(course(USUAL.lengths))
    rows[:, part] = change(rows[:, part])
    theirs = USUAL.but(columns={"state": rows[:, :9], "actions": rows[:, 9:]})
    folder = theirs.write_v30(tmp_path / "theirs")
    refused(folder, f"{words}.*To take the numbers all the same: --as-is")
    assert len(imported(folder, as_is=True).meta.seeds) == 3


def test_the_goal_has_to_be_seen_in_images_of_pickcube(tmp_path: Path) -> None:
    folder = USUAL.write_v30(tmp_path / "theirs")
    refused(
        folder, "PickCube-v1 cannot be learned from these images: its goal, a green ball, is not in them", "pickcube"
    )
    assert not imported(folder, "pickcube", as_is=True).meta.goal_visible
    assert imported(USUAL.but(goal=True).write_v30(tmp_path / "shown"), "pickcube").meta.goal_visible


def test_poses_are_used_where_they_have_our_names(tmp_path: Path) -> None:
    states, actions = course(USUAL.lengths)
    names = list(stored_names(tasks.find("pushcube")))
    all_states = np.column_stack([states, np.tile(np.arange(len(names) - 9), (20, 1))])
    theirs = USUAL.but(columns={"state": all_states, "actions": actions}, names={"state": names}, cameras={})
    data = imported(theirs.write_v30(tmp_path / "theirs"))
    assert (data.state_names, data.meta.convention.state) == (tuple(names), "joints_and_poses")
    of_another = imported(theirs.but(cameras={"image": (32, 32)}).write_v30(tmp_path / "seen"), "pickcube", as_is=True)
    assert of_another.state_names == STORED_JOINTS
    refused(USUAL.but(cameras={}).write_v30(tmp_path / "blind"), "nothing can be learned from it")


def test_episodes_longer_than_an_evaluation_are_left_out_and_counted(tmp_path: Path) -> None:
    lengths = (6, 151, 5)
    data = imported(Foreign.usual(lengths).write_v30(tmp_path / "theirs"))
    assert data.meta.seeds == (0, 2)
    reasons = [attempt.reason for attempt in data.meta.attempts]
    assert reasons == ["", "it is longer than an evaluation of pushcube allows (150 steps)", ""]
    assert [one.tolist() for one in (data.starts, data.states[6])] == [
        [0, 6, 11],
        course(lengths)[0][157].astype(np.float32).tolist(),
    ]
    refused(Foreign.usual((151, 152)).write_v30(tmp_path / "long"), "no episode that can be used: 2 times it is longer")


def test_of_several_instructions_one_is_chosen(tmp_path: Path) -> None:
    folder = USUAL.but(sentences=(SENTENCE, "pull it")).write_v30(tmp_path / "theirs")
    refused(folder, r"has 2 instructions; say which is pushcube, with --instruction: 'pull it'; 'push the cube")
    assert imported(folder, instruction=SENTENCE).meta.seeds == (0, 2)


def cut(folder: Path) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def shorten(folder: Path) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 15), path)


def not_finite(folder: Path) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    rows = pyarrow.parquet.read_table(path)
    values = rows["state"].to_pylist()
    values[4][2] = float("nan")
    column = pyarrow.array(values, rows["state"].type)
    pyarrow.parquet.write_table(rows.set_column(rows.column_names.index("state"), "state", column), path)


def old(folder: Path) -> None:
    said = json.loads((folder / "meta/info.json").read_bytes())
    (folder / "meta/info.json").write_text(json.dumps(said | {"codebase_version": "v2.0"}))


def test_a_folder_without_instructions_is_used(tmp_path: Path) -> None:
    folder = USUAL.write_v30(tmp_path / "theirs")
    pyarrow.parquet.write_table(pyarrow.table({"task": ["x"]}), folder / "meta/tasks.parquet")
    assert len(imported(folder).meta.seeds) == 3
    (folder / "meta/tasks.parquet").unlink()
    assert len(imported(folder).meta.seeds) == 3


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "file-000.parquet is missing, cut off or damaged"),
        (shorten, "has 15 rows, meta/info.json: total_frames is 20; fetch it again, whole"),
        (not_finite, "state is not finite in 1 rows, first in row 4"),
        (old, "codebase_version is 'v2.0', v3.0 or v2.1 is required"),
        (lambda folder: (folder / "meta/info.json").unlink(), "info.json does not exist; name the folder of a LeRobot"),
    ],
)
def test_damage_is_named_and_nobody_is_told_to_delete(damage: Any, words: str, tmp_path: Path) -> None:
    folder = USUAL.write_v30(tmp_path / "theirs")
    damage(folder)
    with pytest.raises(DataError, match=words) as caught:
        imported(folder)
    assert "delete" not in str(caught.value)


def test_files_behind_links_and_in_another_order_are_read(tmp_path: Path) -> None:
    folder = USUAL.write_v30(tmp_path / "theirs")
    rows = pyarrow.parquet.read_table(folder / "data/chunk-000/file-000.parquet")
    pyarrow.parquet.write_table(rows.slice(15), folder / "data/chunk-000/file-000.parquet")
    pyarrow.parquet.write_table(rows.slice(0, 15), folder / "data/chunk-000/file-001.parquet")
    (folder / "data/chunk-000").rename(tmp_path / "elsewhere")
    (folder / "data/chunk-000").symlink_to(tmp_path / "elsewhere")
    np.testing.assert_array_equal(imported(folder).states, USUAL.columns["state"].astype(np.float32))


def test_images_beside_the_rows_are_read_and_none_outside_the_folder(tmp_path: Path) -> None:
    folder = USUAL.but(cameras={"image": (32, 32)}).write_v30(tmp_path / "theirs")
    (folder / "images").mkdir()
    (folder / "images/one.jpg").write_bytes(png(picture(0, 32, 32), "jpeg"))
    path = folder / "data/chunk-000/file-000.parquet"
    rows = pyarrow.parquet.read_table(path)

    def point_to(name: str) -> None:
        column = pyarrow.array(
            [{"bytes": None, "path": name}] * 20, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        )
        pyarrow.parquet.write_table(rows.set_column(rows.column_names.index("image"), "image", column), path)

    point_to("images/one.jpg")
    assert frames(imported(folder), "base_camera")[0] == (folder / "images/one.jpg").read_bytes()
    point_to("../one.jpg")
    refused(folder, "names the file ../one.jpg, which is not below the folder")


def test_the_program_says_what_it_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = USUAL.but(info={"fps": 10}).write_v30(tmp_path / "theirs")
    words = [str(folder), "--task", "pushcube", "--out", str(tmp_path / "out")]
    assert main(words) == 65
    assert capsys.readouterr().out.count("\n") == 1
    assert main([*words, "--rate", "20"]) == 0
    assert main([*words, "--rate", "20", "--map", "x=state"]) == 64
