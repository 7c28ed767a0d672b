"""Weights and checkpoints as people have them: linked, cut off, of other libraries, with spoilt statistics.

What is pushed is opened first, whole; what a job reads is used, or refused in one line with exit code 65.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pi05.config import Convention
from pi05.data import stats
from pi05.data.stats import statistics
from pi05.errors import DataError
from pi05.model import arrays, tree, weights
from pi05.storage import FileStorage
from pi05.training import checkpoint
from pi05.training.opening import main
from pi05ctl.errors import UsageError
from pi05ctl.stored import artefacts
from tests.conftest import options

Change = Callable[[Path], object]
CONFIG = options("tiny").model
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1064960\n"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny model."""
    folder = tmp_path_factory.mktemp("whole") / "base"
    weights.write(folder / "params", tree.initial(CONFIG, 0))
    return folder


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(whole, tmp_path / "base")


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage((tmp_path / "store").as_uri())


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def moved(folder: Path) -> None:
    """Move what is heavy to another disk and link it back, as people do."""
    for name in ("d", "ocdbt.process_0"):
        (folder / "params" / name).rename(folder.parent / f"disk-{name}")
        (folder / "params" / name).symlink_to(folder.parent / f"disk-{name}")


# ---- What is pushed --------------------------------------------------------------------------------------------------


def test_linked_folders_are_pushed_whole(base: Path, whole: Path, storage: FileStorage) -> None:  # C01
    moved(base)
    pushed = artefacts.push_weights(storage, "base", base, sys.executable)
    assert (pushed.files, pushed.unopened) == (len(files(whole)), "")
    assert pushed.size == sum((whole / name).stat().st_size for name in files(whole))
    assert files(storage.open("weights/base")) == sorted(["MANIFEST.json", *files(whole)])
    read = weights.read(storage.open("weights/base") / "params", CONFIG)
    np.testing.assert_array_equal(
        read["action_in_proj/kernel"], weights.read(whole / "params", CONFIG)["action_in_proj/kernel"]
    )


def dangling(folder: Path) -> None:
    moved(folder)
    shutil.rmtree(folder.parent / "disk-d")


def loop(folder: Path) -> None:
    (folder / "params/again").symlink_to(folder)


def pipe(folder: Path) -> None:

    os.mkfifo(folder / "params/pipe")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dangling, r"params/d is a link to .*disk-d, which does not exist"),
        (loop, r"again/params is a link back to .*, in which it lies itself"),
        (pipe, r"params/pipe is neither a file nor a folder"),
        (lambda folder: largest(folder).write_bytes(POINTER), "is a Git LFS pointer, not the file"),
    ],
)
def test_what_would_be_left_out_is_refused(base: Path, storage: FileStorage, change: Change, words: str) -> None:
    change(base)
    with pytest.raises(DataError, match=words):
        artefacts.push_weights(storage, "base", base)
    assert storage.artefacts("weights") == []


def no_directory(folder: Path) -> None:
    (folder / "params/manifest.ocdbt").unlink()


def test_what_broke_off_is_found_before_it_is_pushed(base: Path, storage: FileStorage) -> None:  # C05, C06
    no_directory(base)
    with pytest.raises(DataError, match=rf"^{base}/params/manifest.ocdbt is missing, so no array"):
        artefacts.push_weights(storage, "base", base, sys.executable)
    assert storage.artefacts("weights") == []


def test_where_nothing_can_open_them_nobody_says_verified(base: Path, storage: FileStorage) -> None:
    pushed = artefacts.push_weights(storage, "base", base, "/no/python")
    assert pushed.unopened == "/no/python does not run (No such file or directory)"


def test_a_tokenizer_is_opened_too(tmp_path: Path, storage: FileStorage) -> None:
    from pi05.data.tokenizer import TINY

    (tmp_path / "cut.model").write_bytes(TINY.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"cut.model: .* is not a SentencePiece model; fetch it again"):
        artefacts.push_weights(storage, "cut", tmp_path / "cut.model", sys.executable)
    assert not artefacts.push_weights(storage, "tiny", TINY, sys.executable).unopened


def test_a_link_that_leads_nowhere_is_called_one(tmp_path: Path, storage: FileStorage) -> None:
    (tmp_path / "base").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"base is a link to .*gone, which does not exist"):
        artefacts.push_weights(storage, "base", tmp_path / "base")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [(no_directory, 3, "manifest.ocdbt is missing"), (moved, 0, "is there now, verified: 10 files")],
)
def test_as_a_user_types_it(base: Path, tmp_path: Path, damage: Change, code: int, words: str) -> None:
    damage(base)
    (tmp_path / "pi05.toml").write_text(f'python = "{sys.executable}"\nstorage = "store"\n')
    command = [sys.executable, "-m", "pi05ctl", "weights", "push", "base", "--from", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "store/weights/base").exists() == (code == 0)


# ---- What is opened, and what a job reads ----------------------------------------------------------------------------


def anew(content: Any) -> Change:
    """Return a change that saves another tree in place of the parameters."""

    def change(folder: Path) -> None:
        shutil.rmtree(folder / "params")
        arrays.save(folder / "params", content() if callable(content) else content)

    return change


def with_extra(value: object) -> Change:
    return anew(lambda: {"params": {**tree.nest(tree.initial(CONFIG, 0)), "extra": value}})


def metadata(content: bytes) -> Change:
    return lambda folder: (folder / "params/_METADATA").write_bytes(content)


BOTH: dict[str, tuple[Change, str]] = {
    "C05 removed": (lambda folder: largest(folder).unlink(), "is a damaged Orbax checkpoint ("),
    "C05 emptied": (lambda folder: largest(folder).write_bytes(b""), "OUT_OF_RANGE"),
    "C05 cut": (lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:100_000]), "OUT_OF_RANGE"),
    "C06 missing": (no_directory, "params/manifest.ocdbt is missing"),
    "C06 empty": (lambda folder: (folder / "params/manifest.ocdbt").write_bytes(b""), "manifest.ocdbt is empty"),
    "C06 page": (lambda folder: (folder / "params/manifest.ocdbt").write_bytes(b"<html>"), "damaged Orbax checkpoint"),
    "C03 description a list": (metadata(b"[]"), "params/_METADATA holds no tree_metadata"),
    "C03 description a page": (metadata(b"<html>"), "damaged Orbax checkpoint: _METADATA: Expecting value"),
    "C03 description missing": (lambda folder: (folder / "params/_METADATA").unlink(), "it has no _METADATA"),
}
JOB: dict[str, tuple[Change, str]] = {
    "C03 a list": (with_extra([np.ones(3), np.ones(2)]), "extra/0: not a parameter of this model; extra/1: not a"),
    "C03 only a list": (anew({"params": [np.ones(3)]}), "0: not a parameter of this model"),
    "C03 a list on top": (anew([np.ones(3)]), "holds list, expected the parameters under the key 'params'"),
    "C09 None": (with_extra(None), "extra: not a parameter of this model. Use the preset"),
}


AMID_ARRAYS = ("C05 removed", "C05 emptied", "C05 cut", "C06 page")
"""Those that are noticed while arrays are read, several at a time."""


@pytest.mark.parametrize("case", AMID_ARRAYS)
def test_an_array_that_cannot_be_read_is_one_line(base: Path, case: str) -> None:
    change, words = BOTH[case]
    change(base)
    # In a process of its own: when one array fails, Orbax abandons those that it has begun beside it.
    command = [sys.executable, "-m", "pi05.training.opening", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n")) == (65, 1)
    assert words in done.stdout
    assert len(done.stdout) < 1000


@pytest.mark.parametrize("case", [case for case in BOTH if case not in AMID_ARRAYS])
def test_what_is_damaged_is_named_when_it_is_opened_and_when_it_is_read(
    base: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = BOTH[case]
    change(base)
    assert main([str(base)]) == DataError.exit_code
    said = capsys.readouterr().out
    assert words in said
    assert said.count("\n") == 1
    with pytest.raises(DataError) as error:
        weights.read(base / "params", CONFIG)
    assert words in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("case", JOB)
def test_a_tree_of_others_is_whole_and_its_leaves_do_not_fit(base: Path, case: str) -> None:
    change, words = JOB[case]
    change(base)
    assert main([str(base)]) == 0
    with pytest.raises(DataError) as error:
        weights.read(base / "params", CONFIG)
    assert words in str(error.value)
    assert "fetch it again" not in str(error.value)


def test_what_the_devices_say_is_not_about_the_checkpoint(tmp_path: Path) -> None:
    import jax

    with pytest.raises(jax.errors.JaxRuntimeError), arrays.reading(tmp_path):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


# ---- Statistics of a checkpoint --------------------------------------------------------------------------------------


def short(told: dict) -> None:
    told["state"]["q99"] = told["state"]["q99"][:7]


def not_a_number(told: dict) -> None:
    told["actions"]["q99"][3] = float("nan")


def swapped(told: dict) -> None:
    told["actions"]["q01"], told["actions"]["q99"] = told["actions"]["q99"], told["actions"]["q01"]


def negative(told: dict) -> None:
    told["state"]["std"][0] = -1


def of_others(told: dict) -> None:
    told["state"], told["actions"] = told["actions"], told["state"]


def padded(told: dict) -> None:
    for name, row in told["actions"].items():
        told["actions"][name] = [*row, *[0.0] * 24]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (short, "norm_stats.state: of each there must be as many numbers, found mean 16, std 16, q01 16, q99 7"),
        (not_a_number, "norm_stats.actions: q99[3] is nan, a finite number is required"),
        (swapped, "norm_stats.actions: q01[0] is 2.326"),
        (negative, "norm_stats.state: std[0] is -1, at least 0 is required"),
        (of_others, "norm_stats.state is of 8 numbers, pushcube has 16"),
        (padded, "norm_stats.actions is of 32 numbers, pushcube has 8"),
        (lambda told: told.pop("state"), "norm_stats.state: Field required"),
    ],
)
def test_spoilt_statistics_are_named_and_not_the_weights(
    tmp_path: Path, change: Callable[[dict], object], words: str
) -> None:  # C04
    folder = tmp_path / "assets" / checkpoint.ASSET_ID
    normal = np.random.default_rng(0).standard_normal((100_000, 16))
    stats.write(folder, stats.DataStats(state=statistics(normal), actions=statistics(normal[:, :8])))
    content = json.loads((folder / stats.FILE_NAME).read_bytes())
    change(content["norm_stats"])
    (folder / stats.FILE_NAME).write_text(json.dumps(content))
    told: Any = SimpleNamespace(task="pushcube", convention=Convention(cameras=(), state="joints_and_poses"))
    with pytest.raises(DataError) as error:
        checkpoint.read_recipe(tmp_path, told)
    assert str(folder / stats.FILE_NAME) in str(error.value)
    assert words.split(" is 2.3")[0] in str(error.value)
    assert "evaluate an earlier" not in str(error.value)
