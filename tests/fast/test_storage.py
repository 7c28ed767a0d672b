"""Artefacts: whole or not there, verified, leased; keys that stay inside."""

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pi05.errors import ConfigError, DataError, TemporaryError
from pi05.storage import MANIFEST, FileStorage, RunPaths, check_key, connect, disk_errors, user_cache
from pi05.storage.local import scratch


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(tmp_path.as_uri())


def publish(storage: FileStorage, key: str = "datasets/a") -> Path:
    with storage.stage(key) as folder:
        (folder / "data").mkdir()
        (folder / "data/x.bin").write_bytes(b"12345")
        (folder / "y.txt").write_text("y")
    return storage.path(key)


@pytest.mark.parametrize("url", ["az://bucket/x", "/tmp", "file://host/x", "", "file://"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="use file:///absolute/path"):
        connect(url)


@pytest.mark.parametrize("key", ["/etc/passwd", "../x", "a/../../x", "", "a\\b", "a\nb"])
def test_keys_stay_inside(key: str) -> None:
    with pytest.raises(DataError, match="not a relative path"):
        check_key(key)


def test_an_artefact_is_published_with_its_checksums(storage: FileStorage) -> None:
    folder = publish(storage)
    manifest = json.loads((folder / MANIFEST).read_text())
    # crc32c("12345") by an independent table-driven computation
    assert manifest["files"]["data/x.bin"] == {"size": 5, "crc32c": "18d12335"}
    assert storage.exists("datasets/a")
    assert storage.verify("datasets/a") == []
    assert storage.open("datasets/a") == folder


def test_an_artefact_is_never_overwritten(storage: FileStorage) -> None:
    publish(storage)
    with pytest.raises(ConfigError, match="already exists and is never overwritten"):
        publish(storage)


def test_a_failed_attempt_leaves_nothing(storage: FileStorage) -> None:
    def half() -> None:
        with storage.stage("datasets/a") as folder:
            (folder / "x").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert not storage.exists("datasets/a")
    assert list(storage.path("datasets").iterdir()) == []


def _die_while_staging(url: str) -> None:
    with FileStorage(url).stage("datasets/a") as folder:
        (folder / "x").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_attempt_is_not_there_and_the_next_one_succeeds(storage: FileStorage) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_while_staging, args=(storage.url,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not storage.exists("datasets/a")
    assert storage.children("datasets") == []
    assert storage.incomplete("datasets") == ["a"]
    publish(storage)
    assert storage.verify("datasets/a") == []


def test_what_was_never_completed_is_discarded_and_nothing_else(storage: FileStorage) -> None:
    publish(storage)
    for name in ("b", ".c.incomplete"):  # half deleted, half made
        (storage.path("datasets") / name).mkdir()
    assert storage.incomplete("datasets") == ["b", "c"]
    for name in ("a", "b", "c"):
        storage.discard(f"datasets/{name}")
    assert [path.name for path in storage.path("datasets").iterdir()] == ["a"]
    assert storage.verify("datasets/a") == []
    assert storage.incomplete("nothing") == []


def test_damage_is_named_file_by_file(storage: FileStorage) -> None:
    folder = publish(storage)
    (folder / "data/x.bin").write_bytes(b"12346")
    (folder / "y.txt").unlink()
    problems = storage.verify("datasets/a")
    assert problems[0].startswith("data/x.bin has crc32c ")
    assert problems[1] == "y.txt is missing"
    with pytest.raises(DataError, match=r"cannot be used: data/x\.bin"):
        storage.open("datasets/a")


def test_a_manifest_cannot_point_outside(storage: FileStorage) -> None:
    folder = publish(storage)
    (folder / MANIFEST).write_text('{"files": {"../../secret": {"size": 1, "crc32c": "00"}}}')
    with pytest.raises(DataError, match="not a relative path"):
        storage.open("datasets/a")


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 3}'])
def test_a_damaged_manifest_is_named(storage: FileStorage, content: str) -> None:
    (publish(storage) / MANIFEST).write_text(content)
    assert "MANIFEST.json is damaged" in storage.verify("datasets/a")[0]


def test_objects_are_replaced_whole(storage: FileStorage) -> None:
    storage.write("runs/r/status.json", b"1")
    storage.write("runs/r/status.json", b"22")
    assert storage.read("runs/r/status.json") == b"22"
    assert storage.children("runs/r") == ["status.json"]
    storage.delete("runs/r/status.json")
    with pytest.raises(DataError, match="does not exist"):
        storage.read("runs/r/status.json")


def test_delete_takes_the_manifest_first(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(storage)
    monkeypatch.setattr("shutil.rmtree", lambda _: None)  # as if killed right after the first step
    storage.delete("datasets/a")
    assert not storage.exists("datasets/a")


def test_a_full_disk_is_worth_another_try_and_a_forbidden_one_is_not() -> None:
    with (
        pytest.raises(TemporaryError, match="disk full while writing x; nothing that was complete is lost"),
        disk_errors("writing x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConfigError, match="not allowed to write"), disk_errors("writing x"):
        raise OSError(errno.EROFS, "Read-only file system")
    with pytest.raises(FileNotFoundError), disk_errors("writing x"):
        raise FileNotFoundError


def _hold(url: str, held: Event) -> None:
    with FileStorage(url).lease("runs/r/lease"):
        held.set()
        time.sleep(60)


def test_a_run_has_one_writer_and_a_killed_one_frees_it(storage: FileStorage) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(storage.url, held))
    assert not storage.leased("runs/r/lease")
    process.start()
    assert held.wait(30)
    assert storage.leased("runs/r/lease")
    with (
        pytest.raises(TemporaryError, match="another process is writing runs/r; wait for it or cancel it first"),
        storage.lease("runs/r/lease"),
    ):
        pass
    process.kill()
    process.join()
    assert not storage.leased("runs/r/lease")
    with storage.lease("runs/r/lease"):
        pass


def test_run_paths_name_every_artefact() -> None:
    paths = RunPaths("train-pushcube-3f2a91")
    assert paths.checkpoint(500) == "runs/train-pushcube-3f2a91/checkpoints/500"
    assert {paths.spec, paths.job, paths.status, paths.log} == {
        f"runs/train-pushcube-3f2a91/{name}" for name in ("run.json", "job.json", "status.json", "log.txt")
    }


def test_a_shard_has_a_status_and_a_lease_of_its_own() -> None:
    paths = RunPaths("eval-pushcube-3f2a91", shard=3)
    assert paths.status == "runs/eval-pushcube-3f2a91/shards/3/status.json"
    assert paths.lease == "runs/eval-pushcube-3f2a91/shards/3/lease"
    assert paths.results == "runs/eval-pushcube-3f2a91/results"
    assert paths.attempt_log("pod-1") == "runs/eval-pushcube-3f2a91/logs/pod-1.txt"


def test_of_several_writers_one_is_first(storage: FileStorage) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.write("runs/r/run.json", b"%d" % i, absent=True), range(8)))
    assert sum(won) == 1
    assert storage.read("runs/r/run.json") == b"%d" % won.index(True)
    assert storage.children("runs/r") == ["run.json"]
    assert [path.name for path in storage.path("runs/r").iterdir()] == ["run.json"]


def test_a_published_folder_stays_as_it_is(storage: FileStorage, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "data").mkdir(parents=True)
    (folder / "data/x").write_text("x")
    (folder / "link").symlink_to(folder / "data/x")
    (folder / MANIFEST).write_text("of another artefact")
    storage.publish(folder, "weights/a")
    assert storage.verify("weights/a") == []
    assert (storage.path("weights/a") / "link").read_text() == "x"
    assert not (storage.path("weights/a") / "link").is_symlink()
    assert (folder / MANIFEST).read_text() == "of another artefact"
    with pytest.raises(ConfigError, match="already exists"):
        storage.publish(folder, "weights/a")


def test_objects_of_all_runs_are_scanned(storage: FileStorage) -> None:
    publish(storage, "runs/.hidden")
    for key in ("runs/a/status.json", "runs/b/status.json", "runs/b/shards/0/status.json", "runs/b/x/y/status.json"):
        storage.write(key, key.encode())
    found = storage.scan("runs", ["status.json", "shards/*/status.json", "run.json"])
    assert found == {
        key: key.encode() for key in ("runs/a/status.json", "runs/b/status.json", "runs/b/shards/0/status.json")
    }
    assert storage.scan("nothing", ["x"]) == {}


def test_complete_artefacts_are_told_from_others(storage: FileStorage) -> None:
    publish(storage)
    storage.write("datasets/half/x", b"")
    assert storage.artefacts("datasets") == ["a"]
    assert abs(storage.modified("datasets/a") - time.time()) < 60
    for key in ("datasets/half", "datasets/none"):
        with pytest.raises(DataError, match="does not exist"):
            storage.modified(key)


def test_an_artefact_is_fetched_whole_or_not_at_all(storage: FileStorage, tmp_path: Path) -> None:
    folder = publish(storage)
    storage.fetch("datasets/a", tmp_path / "here/copy")
    assert (tmp_path / "here/copy/data/x.bin").read_bytes() == b"12345"
    assert (tmp_path / "here/copy" / MANIFEST).read_bytes() == (folder / MANIFEST).read_bytes()
    (folder / "y.txt").unlink()
    with pytest.raises(DataError, match=r"cannot be used: y\.txt is missing"):
        storage.fetch("datasets/a", tmp_path / "here/other")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["copy"]


@pytest.mark.parametrize(
    ("url", "library"), [("file:///x", ""), ("gs://bucket", "google.cloud"), ("s3://bucket", "botocore")]
)
def test_a_bucket_costs_the_imports_of_its_service_when_it_is_connected(url: str, library: str) -> None:
    code = f"import sys, pi05.storage; pi05.storage.connect({url!r})\nfor name in sys.modules: print(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in ("google.cloud", "botocore") if name in done.stdout.split()] == [library] * bool(library)


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_parts_are_opened_and_verified_alone(storage: FileStorage) -> None:
    with storage.stage("runs/r/checkpoints/5") as folder:
        make(folder, "params/a", "train_state/b", "assets/c")
    (folder := storage.path("runs/r/checkpoints/5") / "train_state/b").write_text("rot")
    assert storage.open("runs/r/checkpoints/5", ("params", "assets")) == folder.parents[1]
    with pytest.raises(DataError, match=r"cannot be used: train_state/b has"):
        storage.open("runs/r/checkpoints/5")
    with pytest.raises(DataError, match="it has no weights; there are assets, params, train_state"):
        storage.open("runs/r/checkpoints/5", ("weights",))


def test_what_artefacts_hold_is_told_from_their_manifests(storage: FileStorage) -> None:
    for name, files in {"5": ("params/a", "train_state/b"), "6": ("params/a",), "x": ("train_state/b",)}.items():
        with storage.stage(f"checkpoints/{name}") as folder:
            make(folder, *files)
    assert storage.parts("checkpoints/5") == {"params", "train_state"}
    assert storage.holding("checkpoints", "train_state") == [5]
    (storage.path("checkpoints/6") / MANIFEST).write_text("{")
    assert storage.holding("checkpoints", "train_state") == [5, 6], "whoever opens it is told"


def test_parts_of_several_processes_become_one_artefact(storage: FileStorage, tmp_path: Path) -> None:
    make(storage.path("datasets/.a.incomplete"), "data/of an earlier attempt")
    one, two = make(tmp_path / "one", "data/0", "x"), make(tmp_path / "two", "data/1")
    files = storage.add(one, "datasets/a") | storage.add(two, "datasets/a")
    assert not storage.exists("datasets/a")
    storage.complete("datasets/a", files)
    assert storage.verify("datasets/a") == []
    assert sorted(json.loads(storage.read(f"datasets/a/{MANIFEST}"))["files"]) == ["data/0", "data/1", "x"]
    assert [path.name for path in storage.path("datasets").iterdir()] == ["a"]
    with pytest.raises(ConfigError, match="already exists"):
        storage.complete("datasets/a", files)


def test_an_artefact_without_one_of_its_parts_is_not_completed(storage: FileStorage, tmp_path: Path) -> None:
    files = storage.add(make(tmp_path / "one", "x", "y"), "datasets/a")
    (storage.path("datasets/.a.incomplete") / "y").unlink()
    with pytest.raises(TemporaryError, match="y of datasets/a went missing"):
        storage.complete("datasets/a", files)
    assert not storage.exists("datasets/a")


def test_of_two_that_make_one_artefact_the_second_is_refused(storage: FileStorage) -> None:
    with storage.stage("datasets/a") as folder:
        make(folder, "x")
        with pytest.raises(TemporaryError, match="another process is writing datasets/a"):
            publish(FileStorage(storage.url))
    assert storage.children("datasets/a") == [MANIFEST, "x"]
    assert [path.name for path in storage.path("datasets").iterdir()] == ["a"]


def test_makers_of_one_artefact_in_turn_never_mix(storage: FileStorage) -> None:
    def attempt(number: int) -> bool:
        for _ in range(100):
            with contextlib.suppress(TemporaryError):
                try:
                    with FileStorage(storage.url).stage("datasets/a") as folder:
                        make(folder, f"{number}/x")
                except ConfigError:
                    return False
                return True
        raise AssertionError("never had its turn")

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(attempt, range(6)))
    assert sum(won) == 1
    assert storage.children("datasets/a") == [str(won.index(True)), MANIFEST]
    assert storage.verify("datasets/a") == []


def test_what_was_borrowed_stays(storage: FileStorage) -> None:
    folder = publish(storage)
    with storage.borrow("datasets/a") as borrowed:
        assert borrowed == folder
    assert storage.verify("datasets/a") == []


def test_a_user_without_a_home_has_a_cache_among_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache().parent == scratch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "pi05"
