"""Saving while training goes on: what is written is of its step, on its schedule, and nothing of it is lost."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pi05.errors import DataError, TemporaryError
from pi05.jobs.runtime import Stopped
from pi05.model import weights
from pi05.policy import Policy
from pi05.storage import PARAMS, STATE, FileStorage, RunPaths
from pi05.training import checkpoint, snapshot
from pi05.training.step import TrainState
from tests.train.conftest import MODEL, TRAIN, Around, make_training, new_around
from tests.train.test_resume import equal, run

APART = TRAIN.model_copy(update={"save_every": 4, "save_state_every": 10, "keep_every": 1000})


class Disk(FileStorage):
    """A folder whose checkpoints become complete when a test lets them, and no sooner."""

    def __init__(self, folder: Path, until: Callable[[], bool]) -> None:
        super().__init__(folder.as_uri())
        self._until = until

    @contextlib.contextmanager
    def stage(self, key: str) -> Generator[Path]:
        with super().stage(key) as folder:
            yield folder
            ready = threading.Event()
            for _ in range(3000):
                if self._until():
                    break
                ready.wait(0.01)
            else:
                raise AssertionError("training did not go on")


class Dying(Around):
    """A process that ends after step 18, without a word."""

    @property
    def stopping(self) -> bool:
        if max(self.losses, default=0) == 17:
            raise ZeroDivisionError
        return False


def as_openpi_reads(folder: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a part of a checkpoint by name, read as openpi's restore_params reads parameters."""
    with ocp.PyTreeCheckpointer() as orbax:
        item = orbax.metadata(folder).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(restore_type=np.ndarray), item)
        whole = orbax.restore(folder, ocp.args.PyTreeRestore(item=item, restore_args=arguments))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(whole)[0]}


def openpi_name(path: str) -> str:
    """Return what `as_openpi_reads` calls a parameter."""
    return "".join(f"['{name}']" for name in ("params", *path.split("/")))


def assert_equal(folder: Path, wanted: Path) -> None:
    """Compare two checkpoints to the bit."""
    for part in (PARAMS, STATE):
        one, other = as_openpi_reads(folder / part), as_openpi_reads(wanted / part)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Around]:
    """A run that saves everything every tenth step."""
    around = new_around(tmp_path_factory.mktemp("whole"))
    return run(make_training(), around), around


def test_training_goes_on_while_a_checkpoint_is_written_which_is_of_its_step(
    whole: tuple[TrainState, Around], tmp_path: Path
) -> None:
    around = new_around(tmp_path)
    around.storage = Disk(tmp_path, lambda: max(around.losses) >= 15)
    assert equal(run(make_training(), around), whole[0])
    kinds = [(event.kind, event.step) for event in around.seen]
    assert kinds.index(("progress", 15)) < kinds.index(("checkpoint", 10))
    assert_equal(*(a.storage.path(a.paths.checkpoint(10)) for a in (around, whole[1])))


def test_a_checkpoint_waits_for_the_one_before(tmp_path: Path) -> None:
    around = new_around(tmp_path)
    written: list[int] = []

    def until() -> bool:
        written.append(max(around.losses))
        return len(written) > 300

    around.storage = Disk(tmp_path, until)
    run(make_training(APART), around)
    assert written[299] == 8, "training went on to the next save, and not beyond"
    assert [event.step for event in around.seen if event.kind == "checkpoint"] == [4, 8, 10, 12, 16, 20]


def test_without_room_for_a_copy_training_waits_and_the_numbers_are_the_same(
    whole: tuple[TrainState, Around], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_free", lambda _: 1000)
    around = new_around(tmp_path)
    around.storage = Disk(tmp_path, lambda: True)
    assert equal(run(make_training(), around), whole[0])
    assert [e.message for e in around.seen if e.kind == "warning"] == [
        "the devices have no room for a copy of the state: training waits for checkpoints"
    ]
    assert_equal(*(a.storage.path(a.paths.checkpoint(10)) for a in (around, whole[1])))


def test_a_copy_fits_in_half_of_what_was_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    array = jax.device_put(np.zeros(1000, np.float32), jax.devices()[0])
    for free, fits in ((7999, False), (8000, True), (None, True)):
        monkeypatch.setattr(snapshot, "_free", lambda _, free=free: free)
        assert snapshot.fits({"a": array}) == fits


def test_parameters_and_state_have_schedules_of_their_own(whole: tuple[TrainState, Around], tmp_path: Path) -> None:
    around = new_around(tmp_path)
    assert equal(run(make_training(APART), around), whole[0])
    said = [event.step for event in around.seen if event.kind == "checkpoint"]
    assert said == [4, 8, 10, 12, 16, 20]
    kept = APART.model_copy(update={"keep_every": 1})
    everything = new_around(tmp_path / "everything")
    run(make_training(kept), everything)
    assert checkpoint.steps(everything.storage, everything.paths.run) == said
    assert checkpoint.resumable(everything.storage, everything.paths.run) == [10, 20]


def test_a_run_goes_on_from_the_newest_that_it_can_and_passes_the_others_again(
    whole: tuple[TrainState, Around], tmp_path: Path
) -> None:
    cut = Dying(FileStorage(tmp_path.as_uri()), RunPaths("train-pushcube-000000"))
    with pytest.raises(ZeroDivisionError):
        run(make_training(APART), cut)
    storage = cut.storage
    assert checkpoint.steps(storage, cut.paths.run) == [10, 16], "what training can go on from stays"
    resumed = new_around(tmp_path)
    assert equal(run(make_training(APART), resumed), whole[0])
    assert sorted(resumed.losses) == list(range(11, 21))
    assert resumed.losses == {step: whole[1].losses[step] for step in resumed.losses}
    assert checkpoint.resumable(storage, cut.paths.run) == [20]


def test_a_signal_leaves_one_to_go_on_from(whole: tuple[TrainState, Around], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(make_training(APART), new_around(tmp_path, stop_after=12))  # a step of which only parameters are due
    assert checkpoint.resumable(new_around(tmp_path).storage, "train-pushcube-000000") == [12]
    assert equal(run(make_training(APART), new_around(tmp_path)), whole[0])


def test_a_policy_needs_nothing_of_the_training(tmp_path: Path) -> None:
    around = new_around(tmp_path)
    run(make_training(), around)
    key = around.paths.checkpoint(20)
    shutil.rmtree(around.storage.path(key) / "train_state")
    Policy.load(around.storage.open(key, checkpoint.POLICY), rows=2, sampling_steps=2, seed=0)
    with pytest.raises(DataError, match=r"train_state/.* is missing"):
        around.storage.open(key)


def test_what_goes_wrong_in_writing_ends_the_run(tmp_path: Path) -> None:
    class Full(FileStorage):
        @contextlib.contextmanager
        def stage(self, key: str) -> Generator[Path]:
            raise TemporaryError(f"no room for {key}")
            yield

    around = new_around(tmp_path)
    around.storage = Full(tmp_path.as_uri())
    with pytest.raises(TemporaryError, match=r"no room for .*/checkpoints/4"):
        run(make_training(APART), around)
    assert max(around.losses) < 9, "at one of the next steps"
    assert checkpoint.steps(around.storage, around.paths.run) == []


def test_a_damaged_newest_checkpoint_is_named_with_the_way_on(tmp_path: Path) -> None:
    around, training = new_around(tmp_path), make_training()
    run(training, around)
    folder = around.storage.path(around.paths.checkpoint(20))
    (folder / checkpoint.META).write_text("rot")
    command = f"rm -r {folder} && pi05ctl resume {around.paths.run}"
    for look in (lambda: run(training, around), lambda: checkpoint.check(around.storage, around.paths.run, 20)):
        with pytest.raises(DataError, match=r"pi05.json has 3 bytes, .*; to go on from an earlier one: rm ") as error:
            look()
        assert str(error.value).endswith(command)
    subprocess.run(command.partition(" &&")[0].split(), check=True)
    run(training, around)
    assert checkpoint.steps(around.storage, around.paths.run) == [10, 20]


def test_what_is_written_is_what_the_reference_implementation_reads(whole: tuple[TrainState, Around]) -> None:
    folder = whole[1].storage.path(whole[1].paths.checkpoint(20)) / PARAMS
    found, ours = as_openpi_reads(folder), weights.read(folder, MODEL)
    assert len(found) == len(ours)
    for path, array in ours.items():
        np.testing.assert_array_equal(found[openpi_name(path)], array)
