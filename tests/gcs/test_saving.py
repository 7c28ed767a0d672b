"""Checkpoints that are uploaded while training goes on: when the bucket is slow, gone or full of others' work."""

import io
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from pi05.errors import ConfigError, TemporaryError
from pi05.events import Event, EventWriter, parse
from pi05.storage import RunPaths, Storage, connect
from pi05.storage.remote import BucketStorage
from pi05.training import checkpoint, delivery
from pi05.training.delivery import Delivery
from tests.gcs.emulator import Line, Server

PATHS = RunPaths("train-pushcube-000000")


class Around:
    """The process around a training."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.paths, self.stream = storage, PATHS, io.StringIO()
        self.events = EventWriter(PATHS.run, self.stream, lambda: 0.0)

    @property
    def stopping(self) -> bool:
        return False

    def stop(self) -> NoReturn:
        raise AssertionError

    @property
    def seen(self) -> list[Event]:
        return [event for line in self.stream.getvalue().splitlines() if (event := parse(line))]

    def steps(self, kind: str) -> list[int | None]:
        return [event.step for event in self.seen if event.kind == kind]

    @property
    def warnings(self) -> list[str]:
        return [event.message or "" for event in self.seen if event.kind == "warning"]


@pytest.fixture
def around(url: str) -> Around:
    return Around(BucketStorage(url, patience=0.5))


@pytest.fixture(autouse=True)
def _quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_LONGEST_PAUSE", 0.5)


def fill(place: Delivery, step: int, size: int = 5, whole: bool = True) -> None:
    def write(folder: Path) -> None:
        for part in ("params", "train_state")[: 1 + whole]:
            (folder / part).mkdir()
            (folder / part / "data").write_bytes(str(step).encode() * size)

    place.put(step, write, whole, last=False)


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def local_files(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "TMPDIR").rglob("*") if path.is_file()]


def test_a_checkpoint_is_announced_when_the_bucket_has_it(around: Around, tmp_path: Path) -> None:
    with delivery.delivery(around, keep_every=1000, total=30) as place:
        fill(place, 10)
        until(lambda: around.steps("checkpoint") == [10])
        assert around.storage.verify(PATHS.checkpoint(10)) == []
        fill(place, 20)
    assert around.steps("checkpoint") == [10, 20]
    assert checkpoint.steps(around.storage, PATHS.run) == [20]
    assert (around.storage.open(PATHS.checkpoint(20)) / "params/data").read_bytes() == b"20" * 5
    assert not [path for path in local_files(tmp_path) if "scratch" in path.parts]


def test_last_and_every_kept_one_stay(around: Around) -> None:
    with delivery.delivery(around, keep_every=20, total=50) as place:
        for step in (10, 20, 30, 40, 50):
            fill(place, step)
            until(lambda step=step: step in around.steps("checkpoint"))
    assert checkpoint.steps(around.storage, PATHS.run) == [20, 40, 50]


def test_training_goes_on_while_the_bucket_is_gone(around: Around, line: Line) -> None:
    with delivery.delivery(around, keep_every=20, total=50) as place:
        fill(place, 5)
        until(lambda: around.steps("checkpoint") == [5])
        line.cut()
        start = time.monotonic()
        for step in (10, 20, 30, 40, 50):
            fill(place, step)
        assert time.monotonic() - start < 2
        until(lambda: any(re.search("checkpoint 50 is not uploaded yet: ..://", text) for text in around.warnings))
        line.mend()
    assert sorted(step or 0 for step in around.steps("checkpoint")) in ([5, 20, 40, 50], [5, 10, 20, 40, 50])
    assert checkpoint.steps(around.storage, PATHS.run) == [20, 40, 50]
    assert "uploads are behind: checkpoint 30 is dropped for 40, which is newer" in around.warnings
    for step in (20, 40, 50):
        assert around.storage.verify(PATHS.checkpoint(step)) == []


def uploads(server: Server) -> int:
    return len([*filter(server.upload.match, server.line.requests)])


def test_the_newest_is_uploaded_first(around: Around, line: Line, emulator: Server) -> None:
    line.rate = 2e6
    with delivery.delivery(around, keep_every=10, total=50) as place:
        before, end = uploads(emulator), time.monotonic() + 30
        fill(place, 10, size=1 << 20)
        while uploads(emulator) == before and time.monotonic() < end:
            time.sleep(0.01)  # the others come while it is on its way
        for step in (20, 30):
            fill(place, step, size=1 << 20)
    assert around.steps("checkpoint") == [10, 30, 20]
    assert checkpoint.steps(around.storage, PATHS.run) == [10, 20, 30]


def test_a_full_scratch_disk_costs_a_checkpoint_and_not_the_training(around: Around, line: Line) -> None:
    def write(_: Path) -> None:
        raise ValueError("tensorstore says: No space left on device")

    def save_too_much(place: Delivery) -> None:
        assert not place.put(20, write, whole=True, last=False)

    with delivery.delivery(around, keep_every=1000, total=50) as place:
        with pytest.raises(TemporaryError, match="disk full while writing checkpoint 20"):
            save_too_much(place)
        line.cut()
        fill(place, 10)
        save_too_much(place)
        line.mend()
        until(lambda: around.steps("checkpoint") == [10])
        fill(place, 30)
    assert any(
        text.startswith("checkpoint 20 is left out while [10] wait for upload: disk full") for text in around.warnings
    )
    assert checkpoint.steps(around.storage, PATHS.run) == [30]


def test_an_error_of_the_trainer_leaves_nothing_half_and_what_waits_is_uploaded(around: Around) -> None:
    def half(folder: Path) -> None:
        (folder / "half").touch()
        raise ZeroDivisionError

    def train() -> None:
        with delivery.delivery(around, keep_every=1000, total=50) as place:
            fill(place, 10)
            place.put(20, half, whole=True, last=False)

    with pytest.raises(ZeroDivisionError):
        train()
    assert checkpoint.steps(around.storage, PATHS.run) == [10]


class Refusing(BucketStorage):
    """A bucket whose rights are taken away."""

    refuses = True

    def publish(self, folder: Path, key: str) -> None:
        if self.refuses:
            raise ConfigError("not allowed to write")
        super().publish(folder, key)


def test_rights_that_are_taken_away_end_a_run_at_its_end_only(url: str) -> None:
    around = Around(Refusing(url))

    def train() -> None:
        with delivery.delivery(around, keep_every=1000, total=50) as place:
            fill(place, 10)
            until(lambda: len(around.warnings) > 1)

    with pytest.raises(ConfigError, match="not allowed to write"):
        train()
    assert "checkpoint 10 is not uploaded yet: not allowed to write" in around.warnings[0]


def test_rights_that_come_back_lose_nothing(url: str) -> None:
    storage = Refusing(url)
    around = Around(storage)
    with delivery.delivery(around, keep_every=1000, total=50) as place:
        fill(place, 10)
        until(lambda: len(around.warnings) > 0)
        storage.refuses = False
        until(lambda: around.steps("checkpoint") == [10])
    assert checkpoint.steps(storage, PATHS.run) == [10]


def test_a_run_that_was_taken_over_uploads_no_more(around: Around, url: str) -> None:
    def train() -> None:
        with delivery.delivery(around, keep_every=1000, total=50) as place:
            fill(place, 10)

    with around.storage.lease(PATHS.lease) as held:
        connect(url).delete(PATHS.lease)
        until(lambda: held.lost)
        with pytest.raises(TemporaryError, match="another process has taken over this run"):
            train()
    assert checkpoint.steps(around.storage, PATHS.run) == []


class Damaging(BucketStorage):
    """A bucket that changes the first artefact right after it was published."""

    def publish(self, folder: Path, key: str) -> None:
        super().publish(folder, key)
        if not hasattr(self, "done"):
            self.done = True
            self.write(f"{key}/params/data", b"rot")


def test_a_checkpoint_that_arrived_damaged_is_uploaded_again(url: str) -> None:
    around = Around(Damaging(url))
    with delivery.delivery(around, keep_every=1000, total=50) as place:
        fill(place, 10)
    assert "it arrived damaged (params/data has 3 bytes, the manifest says 10)" in around.warnings[0]
    assert around.storage.verify(PATHS.checkpoint(10)) == []


def test_the_thread_is_gone_at_the_end(around: Around) -> None:
    with delivery.delivery(around, keep_every=1000, total=50) as place:
        fill(place, 10)
    assert "uploads" not in [thread.name for thread in threading.enumerate()]


def test_what_a_killed_process_left_is_removed(around: Around) -> None:
    left = around.storage.scratch(PATHS.checkpoints) / "10"
    left.mkdir(parents=True)
    (left / "half").touch()
    with delivery.delivery(around, keep_every=1000, total=50) as place:
        fill(place, 10)
    assert around.storage.children(PATHS.checkpoint(10)) == ["MANIFEST.json", "params", "train_state"]


def test_the_last_checkpoint_waits_for_room_on_a_full_disk(around: Around, line: Line) -> None:
    def write(folder: Path) -> None:
        (folder / "params").mkdir()
        if (folder.parent / "10").exists():
            raise ValueError("tensorstore says: No space left on device")
        (folder / "params/data").touch()

    def the_bucket_comes_back() -> None:
        until(lambda: any("checkpoint 20 is written again when one is through" in text for text in around.warnings))
        line.mend()

    with delivery.delivery(around, keep_every=1000, total=20) as place:
        line.cut()
        fill(place, 10)
        meanwhile = threading.Thread(target=the_bucket_comes_back)
        meanwhile.start()
        assert place.put(20, write, whole=False, last=True)
        meanwhile.join()
    assert around.steps("checkpoint") == [10, 20]
    assert checkpoint.steps(around.storage, PATHS.run) == [10, 20], "training goes on from 10"


def test_one_to_go_on_from_is_never_dropped_for_one_that_only_policies_use(around: Around, line: Line) -> None:
    with delivery.delivery(around, keep_every=1000, total=50) as place:
        line.cut()
        for step in (10, 20, 30, 40):
            fill(place, step, whole=step in (10, 20))
        line.mend()
    assert checkpoint.steps(around.storage, PATHS.run) == [20, 40]
    assert checkpoint.resumable(around.storage, PATHS.run) == [20]


def test_a_checkpoint_of_an_earlier_start_stays_unless_it_holds_less(around: Around) -> None:
    def put(step: int, whole: bool) -> float:
        time.sleep(1.1)  # S3 tells times in whole seconds, and one that is put again shall be seen
        with delivery.delivery(around, keep_every=10, total=50) as place:
            fill(place, step, whole=whole)
        return around.storage.modified(PATHS.checkpoint(step))

    first = put(10, whole=False)
    assert put(10, whole=False) == first
    whole = put(10, whole=True)
    assert whole > first
    assert put(10, whole=False) == put(10, whole=True) == whole
    assert checkpoint.resumable(around.storage, PATHS.run) == [10]
