"""gs:// and s3:// against real servers: the same promises as file://, and those that only a network needs."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from google.cloud.storage import Blob
from google.cloud.storage.exceptions import DataCorruption

from pi05 import disk
from pi05.errors import ConfigError, DataError, JobError, TemporaryError
from pi05.storage import MANIFEST, connect, remote, s3
from pi05.storage import bucket as buckets
from pi05.storage import lease as leases
from pi05.storage.remote import BucketStorage
from tests.gcs.emulator import Cloud, Line, Server


def make_folder(folder: Path, size: int = 5) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data/x.bin").write_bytes(b"12345"[:size] if size <= 5 else os.urandom(size))
    (folder / "y.txt").write_text("y")
    (folder / "empty").touch()
    return folder


def test_objects_are_written_read_listed_and_deleted(storage: BucketStorage) -> None:
    assert storage.write("runs/r/status.json", b"1")
    assert storage.write("runs/r/status.json", b"22")
    storage.write("runs/r/.hidden", b"")
    storage.write("runs/r/results/0.json", b"0")
    assert storage.read("runs/r/status.json") == b"22"
    assert storage.children("runs/r") == ["results", "status.json"]
    assert storage.children("runs") == ["r"]
    assert storage.children("nothing") == []
    assert storage.exists("runs/r/status.json")
    assert not storage.exists("runs/r")
    assert abs(storage.modified("runs/r/status.json") - time.time()) < 60
    storage.delete("runs/r")
    assert storage.children("runs") == []
    storage.delete("runs/r")
    with pytest.raises(DataError, match=rf"{storage.url}/runs/r/status.json does not exist"):
        storage.read("runs/r/status.json")


def test_of_several_writers_one_is_first(storage: BucketStorage) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: connect(storage.url).write("runs/r/run.json", b"%d" % i, absent=True), range(8)))
    assert sum(won) == 1
    assert storage.read("runs/r/run.json") == b"%d" % won.index(True)


def test_an_artefact_is_published_with_its_checksums_and_opened(
    storage: BucketStorage, tmp_path: Path, emulator: Server
) -> None:
    emulator.line.requests.clear()
    folder = make_folder(tmp_path / "a", size=3 * buckets.PART + 7)
    storage.publish(folder, "datasets/a")
    manifest = json.loads(storage.read(f"datasets/a/{MANIFEST}"))
    assert manifest["files"]["y.txt"]["size"] == 1
    assert storage.exists("datasets/a")
    assert storage.artefacts("datasets") == ["a"]
    assert storage.children("datasets") == ["a"]
    assert storage.verify("datasets/a") == []
    assert not [one for one in emulator.line.requests if emulator.fetch.match(one) and b"x.bin" in one]
    opened = storage.open("datasets/a")
    for name in ("data/x.bin", "y.txt", "empty"):
        assert (opened / name).read_bytes() == (folder / name).read_bytes()
    assert opened.stat().st_mtime == storage.open("datasets/a").stat().st_mtime  # the same folder, not fetched again


def test_what_was_fetched_once_is_not_fetched_again(
    storage: BucketStorage, tmp_path: Path, line: Line, emulator: Server
) -> None:
    storage.publish(make_folder(tmp_path / "a"), "datasets/a")
    storage.open("datasets/a")
    line.requests.clear()
    again = connect(storage.url).open("datasets/a")
    assert not [one for one in line.requests if emulator.fetch.match(one) and b"x.bin" in one]
    (again / "y.txt").unlink()
    assert (storage.open("datasets/a") / "y.txt").read_text() == "y"


def make_checkpoint(folder: Path) -> Path:
    for name in ("params/a", "train_state/b", "assets/c"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    return folder


def test_parts_alone_are_fetched(storage: BucketStorage, tmp_path: Path, line: Line, emulator: Server) -> None:
    storage.publish(make_checkpoint(tmp_path / "a"), "checkpoints/5")
    line.requests.clear()
    opened = storage.open("checkpoints/5", ("params", "assets"))
    assert sorted(path.name for path in opened.rglob("*") if path.is_file()) == [MANIFEST, "a", "c"]
    assert not [one for one in line.requests if emulator.fetch.match(one) and b"train_state" in one]
    storage.write("checkpoints/5/train_state/b", b"rot")
    assert storage.open("checkpoints/5", ("assets", "params")) == opened
    assert storage.verify("checkpoints/5", ("params",)) == []
    with pytest.raises(DataError, match="cannot be used: train_state/b has"):
        storage.open("checkpoints/5")
    with pytest.raises(DataError, match="cannot be used: it has no weights; there are assets, params, train_state"):
        storage.open("checkpoints/5", ("weights",))
    assert storage.holding("checkpoints", "train_state") == [5]


def test_what_was_borrowed_is_removed(storage: BucketStorage, tmp_path: Path) -> None:
    storage.publish(make_checkpoint(tmp_path / "a"), "checkpoints/5")
    with storage.borrow("checkpoints/5") as folder:
        assert (folder / "train_state/b").read_text() == "train_state/b"
    assert not [path for path in (tmp_path / "TMPDIR").rglob("*") if path.is_file()]


def test_parts_of_several_processes_become_one_artefact(storage: BucketStorage, tmp_path: Path) -> None:
    storage.write("datasets/a/of an earlier attempt", b"")
    one, two = make_folder(tmp_path / "one"), make_checkpoint(tmp_path / "two")
    files = storage.add(one, "datasets/a") | connect(storage.url).add(two, "datasets/a")
    assert not storage.exists("datasets/a")
    storage.complete("datasets/a", files)
    assert storage.verify("datasets/a") == []
    assert storage.children("datasets/a") == [MANIFEST, "assets", "data", "empty", "params", "train_state", "y.txt"]
    with pytest.raises(ConfigError, match="already exists"):
        storage.complete("datasets/a", files)


def test_an_artefact_without_one_of_its_parts_is_not_completed(storage: BucketStorage, tmp_path: Path) -> None:
    files = storage.add(make_folder(tmp_path / "one"), "datasets/a")
    storage.delete("datasets/a/y.txt")
    with pytest.raises(TemporaryError, match="did not arrive whole"):
        storage.complete("datasets/a", files)
    assert not storage.exists("datasets/a")


def test_a_staged_folder_becomes_an_artefact_and_a_failed_one_does_not(storage: BucketStorage, tmp_path: Path) -> None:
    def half() -> None:
        with storage.stage("datasets/b") as folder:
            (folder / "x").write_text("half")
            raise RuntimeError

    with storage.stage("datasets/a") as folder:
        make_folder(folder)
    with pytest.raises(RuntimeError):
        half()
    assert storage.artefacts("datasets") == ["a"]
    assert not list((tmp_path / "TMPDIR").rglob("stage-*"))


def test_an_artefact_is_never_overwritten_and_a_half_made_one_is_cleaned(
    storage: BucketStorage, tmp_path: Path
) -> None:
    storage.write("datasets/a/old.bin", b"of an attempt that was killed")
    storage.write("datasets/a/y.txt", b"other content")
    folder = make_folder(tmp_path / "a")
    storage.publish(folder, "datasets/a")
    assert storage.children("datasets/a") == [MANIFEST, "data", "empty", "y.txt"]
    assert storage.verify("datasets/a") == []
    with pytest.raises(ConfigError, match="already exists and is never overwritten"):
        storage.publish(folder, "datasets/a")
    with pytest.raises(ConfigError, match="already exists"), storage.stage("datasets/a"):
        pass


def test_what_was_never_completed_is_discarded_and_nothing_else(storage: BucketStorage, tmp_path: Path) -> None:
    storage.publish(make_folder(tmp_path / "a"), "datasets/a")
    storage.write("datasets/b/x.bin", b"half")
    assert storage.incomplete("datasets") == ["b"]
    for name in ("a", "b", "c"):
        storage.discard(f"datasets/{name}")
    assert storage.children("datasets") == ["a"]
    assert storage.verify("datasets/a") == []
    assert storage.incomplete("datasets") == storage.incomplete("nothing") == []


def test_an_upload_goes_on_where_the_earlier_one_ended(
    storage: BucketStorage, tmp_path: Path, line: Line, emulator: Server
) -> None:
    folder = make_folder(tmp_path / "a")
    storage.write("datasets/a/data/x.bin", b"12345")
    line.requests.clear()
    storage.publish(folder, "datasets/a")
    assert storage.verify("datasets/a") == []
    writes = [one for one in line.requests if emulator.upload.match(one)]
    once = 2 * (emulator.scheme == "s3")  # whether the store keeps to conditions is tried
    assert len(writes) == 2 + 1 + 2 + once  # two files, the manifest, a lease taken and given back


def test_of_two_publishers_at_once_one_wins_and_its_artefact_is_whole(storage: BucketStorage, tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for number, folder in enumerate(folders):
        make_folder(folder)
        (folder / "who").write_text(str(number))

    def publish(folder: Path) -> bool:
        for _ in range(30):
            with contextlib.suppress(TemporaryError):
                try:
                    connect(storage.url).publish(folder, "datasets/a")
                except ConfigError:
                    return False
                return True
        raise AssertionError("never had its turn")

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(publish, folders))
    assert sum(won) == 1
    assert storage.verify("datasets/a") == []
    assert (storage.open("datasets/a") / "who").read_text() == str(won.index(True))


def test_damage_is_named_file_by_file_without_downloading(
    storage: BucketStorage, tmp_path: Path, line: Line, emulator: Server
) -> None:
    storage.publish(make_folder(tmp_path / "a"), "datasets/a")
    storage.write("datasets/a/data/x.bin", b"12346")
    storage.delete("datasets/a/y.txt")
    line.requests.clear()
    problems = storage.verify("datasets/a")
    assert problems[0].startswith("data/x.bin has crc32c ")
    assert problems[0].endswith("the manifest says 18d12335")
    assert problems[1:] == ["y.txt is missing"]
    assert not [one for one in line.requests if emulator.fetch.match(one) and MANIFEST.encode() not in one]
    assert len(line.requests) <= 4 + 3 * (emulator.scheme == "s3")  # of which each object is asked for its checksum
    with pytest.raises(DataError, match=rf"{storage.url}/datasets/a cannot be used: data/x.bin has crc32c"):
        storage.open("datasets/a")


def test_bytes_that_the_service_keeps_or_sends_wrong_are_noticed_on_arrival(
    storage: BucketStorage, tmp_path: Path, line: Line
) -> None:
    folder = make_folder(tmp_path / "a")
    (folder / "data/x.bin").write_bytes(b"incorruptible")
    storage.publish(folder, "datasets/a")
    line.garbled = (b"incorruptible", b"incorruptable")
    with pytest.raises(DataError, match=r"cannot be used: data/x.bin has crc32c [0-9a-f]{8}, the manifest says"):
        storage.open("datasets/a")
    assert not [path for path in (tmp_path / "TMPDIR").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"files": 3}', b'{"files": {"../../x": {"size": 1, "crc32c": "0"}}}']
)
def test_a_bad_manifest_is_refused(storage: BucketStorage, content: bytes) -> None:
    storage.write(f"datasets/a/{MANIFEST}", content)
    assert len(storage.verify("datasets/a")) == 1
    with pytest.raises(DataError, match=r"MANIFEST.json is damaged|not a relative path"):
        storage.open("datasets/a")


def test_an_artefact_without_manifest_is_none(storage: BucketStorage) -> None:
    storage.write("datasets/a/x", b"1")
    assert not storage.exists("datasets/a")
    assert storage.verify("datasets/a") == ["MANIFEST.json is missing, so it was never completed; make it again"]
    with pytest.raises(DataError, match="never completed"):
        storage.open("datasets/a")


def test_a_thousand_small_objects_are_scanned_in_few_requests(storage: BucketStorage, line: Line) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda i: storage.write(f"runs/r{i}/status.json", b"%d" % i), range(1000)))
    storage.write("runs/r0/shards/3/status.json", b"shard")
    storage.write("runs/r0/run.json", b"{}")
    names = ["status.json", "run.json", "shards/*/status.json"]
    first = storage.scan("runs", names)
    assert len(first) == 1002
    assert first["runs/r17/status.json"] == b"17"
    assert first["runs/r0/shards/3/status.json"] == b"shard"
    storage.write("runs/r17/status.json", b"new")
    line.requests.clear()
    assert connect(storage.url).scan("runs", names)["runs/r17/status.json"] == b"new"
    assert len(line.requests) <= 3 * 2 + 1  # a list of names takes two pages; one object has changed


def test_a_long_listing_is_shared_out_and_loses_nothing(
    storage: BucketStorage, monkeypatch: pytest.MonkeyPatch, emulator: Server
) -> None:
    names = [f"{letter}{dash}{number}" for letter in "abc" for dash in ("", "-", "/x") for number in range(9)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.write(f"runs/{name}/status.json", name.encode()), names))
    storage.write("runs/status.json", b"of no run")
    found = storage.scan("runs", ["status.json", "*/status.json"])
    assert found == {f"runs/{name}/status.json": name.encode() for name in names}
    monkeypatch.setattr(s3, "_PAGES", 0)  # of S3: as if there were more pages than are listed one after the other
    emulator.line.requests.clear()
    assert connect(storage.url).scan("runs", ["status.json", "*/status.json"]) == found
    assert len(emulator.line.requests) < 2 + 1 + buckets.WORKERS + 1


def test_keys_stay_inside(storage: BucketStorage) -> None:
    for key in ("/etc/passwd", "../x", "a/../../x", ""):
        with pytest.raises(DataError, match="not a relative path"):
            storage.read(key)


@pytest.mark.parametrize("url", ["://", "://B/x", ":///x", "://bucket/../x", "://bucket/x?y=1", "://b/x"])
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_other_urls_are_refused(scheme: str, url: str) -> None:
    with pytest.raises(JobError, match=rf"use {scheme}://bucket.* where bucket has 3 |not a relative path"):
        connect(scheme + url)


def test_a_bucket_that_does_not_exist_is_named_with_the_command_that_makes_it(tmp_path: Path, emulator: Server) -> None:
    storage = connect(f"{emulator.scheme}://nowhere/x")
    command = {"gs": "gcloud storage buckets create gs://nowhere", "s3": "aws s3 mb s3://nowhere"}[emulator.scheme]
    folder = make_folder(tmp_path / "a")
    actions = [
        lambda: storage.read("a"),
        lambda: storage.write("a", b""),
        lambda: storage.exists("a"),
        lambda: storage.children("a"),
        lambda: storage.scan("a", ["b"]),
        lambda: storage.publish(folder, "a"),
        lambda: storage.open("a"),
        lambda: storage.leased("a/lease"),
        lambda: storage.lease("a/lease").__enter__(),
    ]
    for action in actions:
        with pytest.raises(ConfigError, match=rf"://nowhere: there is no such bucket; make it \({command}\)"):
            action()


def test_a_bucket_that_does_not_answer_is_worth_another_try(url: str, line: Line) -> None:
    storage = BucketStorage(url, patience=1)
    storage.write("a", b"1")
    line.cut()
    for action in (lambda: storage.read("a"), lambda: storage.write("a", b"2"), lambda: storage.children("")):
        with pytest.raises((TemporaryError, DataError), match=r"could not .* for 1 s|relative path"):
            action()
    line.mend()
    assert storage.read("a") == b"1"


def test_a_short_interruption_is_not_noticed(storage: BucketStorage, tmp_path: Path, line: Line) -> None:
    folder = make_folder(tmp_path / "a", size=4 * buckets.PART)
    line.rate = 64e6
    threading.Timer(0.4, line.cut).start()
    threading.Timer(1.5, line.mend).start()
    storage.publish(folder, "datasets/a")
    assert storage.verify("datasets/a") == []


def damage(times: int, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file arrive damaged so often.

    Google's library notices it after an interruption now and then: it resumed at another byte than the service. Of S3,
    the service notices, here what the line has changed.
    """
    if isinstance(server, Cloud):
        server.line.spoiled = [(b"incorruptible", b"incorruptable")] * times
        return
    send, left = Blob.upload_from_filename, [DataCorruption(None, "the CRC32C does not match")] * times

    def damaging(blob: Blob, path: str, **options: object) -> None:
        if path.endswith("x.bin") and left:
            raise left.pop()
        send(blob, path, **options)

    monkeypatch.setattr(Blob, "upload_from_filename", damaging)


@pytest.mark.parametrize(("times", "arrives"), [(2, True), (3, False)])
def test_what_arrived_damaged_is_sent_anew(
    storage: BucketStorage,
    tmp_path: Path,
    emulator: Server,
    monkeypatch: pytest.MonkeyPatch,
    times: int,
    arrives: bool,
) -> None:
    folder = make_folder(tmp_path / "a")
    (folder / "data/x.bin").write_bytes(b"incorruptible")
    damage(times, emulator, monkeypatch)
    if arrives:
        storage.publish(folder, "datasets/a")
        assert storage.verify("datasets/a") == []
    else:
        with pytest.raises(TemporaryError, match=r"could not write team/datasets/a/data/x.bin: .*CRC32C.*; try again"):
            storage.publish(folder, "datasets/a")


def test_without_credentials_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(ConfigError, match=r"no usable credentials.*log in with: gcloud auth application-default login"):
        connect("gs://bucket/x").read("a")


def test_a_full_disk_is_told_before_anything_is_fetched(
    storage: BucketStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.publish(make_folder(tmp_path / "a"), "datasets/a")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage._replace(free=3))
    with pytest.raises(TemporaryError, match=r"disk full: .* are to be fetched into .* free some space, or set TMPDIR"):
        storage.open("datasets/a")


def test_a_folder_of_another_user_is_not_trusted(monkeypatch: pytest.MonkeyPatch, storage: BucketStorage) -> None:
    monkeypatch.setattr(remote.os, "getuid", lambda: 4242)
    with pytest.raises(ConfigError, match="belongs to another user"), storage.stage("datasets/a"):
        pass


# ---- S3 alone -------------------------------------------------------------------------------------------------------


def raw(storage: BucketStorage) -> tuple[Any, str]:
    """Another program's client, and the bucket."""
    return botocore.session.get_session().create_client("s3"), storage.url.split("/")[2]


@pytest.mark.store("s3")
def test_what_another_program_has_put_there_is_read_to_be_verified(storage: BucketStorage, tmp_path: Path) -> None:
    storage.publish(make_folder(tmp_path / "a"), "datasets/a")
    client, bucket = raw(storage)
    client.put_object(Bucket=bucket, Key="team/datasets/a/data/x.bin", Body=b"12345")
    assert "ChecksumCRC32C" not in client.head_object(
        Bucket=bucket, Key="team/datasets/a/data/x.bin", ChecksumMode="ENABLED"
    )
    assert storage.verify("datasets/a") == []
    client.put_object(Bucket=bucket, Key="team/datasets/a/data/x.bin", Body=b"12346")
    assert storage.verify("datasets/a")[0].startswith("data/x.bin has crc32c ")


@pytest.mark.store("s3")
@pytest.mark.parametrize("size", [9, buckets.PART + 1])
def test_of_a_file_that_changes_while_it_is_sent_nothing_is_left(
    storage: BucketStorage, tmp_path: Path, size: int
) -> None:
    (tmp_path / "x").write_bytes(bytes(size))
    with pytest.raises(TemporaryError, match="it had 00000000; it was changed meanwhile"):
        storage._bucket.send("team/x", tmp_path / "x", "00000000")
    client, bucket = raw(storage)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


# ---- Leases ---------------------------------------------------------------------------------------------------------


def test_a_run_has_one_writer(storage: BucketStorage) -> None:
    assert not storage.leased("runs/r/lease")
    with storage.lease("runs/r/lease") as held:
        assert storage.leased("runs/r/lease")
        with (
            pytest.raises(TemporaryError, match=r"another process \(.*, process \d+\) is writing runs/r; wait for it"),
            connect(storage.url).lease("runs/r/lease"),
        ):
            pass
        time.sleep(4)  # longer than it would live without its signs of life
        assert storage.leased("runs/r/lease")
        assert not held.lost
    assert not storage.leased("runs/r/lease")
    assert storage.children("runs") == []
    with connect(storage.url).lease("runs/r/lease"):
        pass


def _hold(url: str, held: Event) -> None:
    leases.TTL, leases.BEAT = 3.0, 0.5
    with connect(url).lease("runs/r/lease"):
        held.set()
        time.sleep(60)


def test_a_killed_holder_is_followed_when_its_lease_expires(storage: BucketStorage) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=_hold, args=(storage.url, held))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
    assert storage.leased("runs/r/lease")
    with storage.lease("runs/r/lease"):
        assert storage.leased("runs/r/lease")


def test_a_holder_that_slept_notices_before_it_writes(storage: BucketStorage, tmp_path: Path) -> None:
    """A frozen process (SIGSTOP, a suspended machine) comes back to a lease that another has taken."""
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    woken, report = tmp_path / "woken", tmp_path / "report"
    process = context.Process(target=_write_late, args=(storage.url, held, woken, report))
    process.start()
    assert held.wait(60)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    with storage.lease("runs/r/lease"):
        woken.touch()
        os.kill(process.pid, signal.SIGCONT)
        process.join(30)
        assert storage.leased("runs/r/lease")
    assert report.read_text() == "another process has taken over this run; this one stops and leaves it alone"
    assert not storage.exists("runs/r/status.json")


def _write_late(url: str, held: Event, woken: Path, report: Path) -> None:
    leases.TTL, leases.BEAT = 3.0, 0.5
    storage = connect(url)
    with storage.lease("runs/r/lease"):
        held.set()
        while not woken.exists():
            time.sleep(0.05)
        try:
            storage.write("runs/r/status.json", b"late")
        except TemporaryError as error:
            report.write_text(str(error))


def test_a_holder_that_was_cut_off_keeps_its_lease_when_nobody_took_it(
    url: str, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = BucketStorage(url, patience=0.5)
    with storage.lease("runs/r/lease") as held:
        line.cut()
        time.sleep(4)
        assert not held.lost
        line.mend()
        monkeypatch.setattr(leases, "BEAT", 60)
        assert storage.write("runs/r/status.json", b"1")
        assert storage.leased("runs/r/lease")


def test_a_sign_of_life_whose_answer_was_lost_is_no_other_holders(
    storage: BucketStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT", 60)
    with storage.lease("runs/r/lease") as held:
        assert isinstance(held, leases.BucketLease)
        storage._bucket.write("team/runs/r/lease", b"a sign that arrived, and its holder does not know it")
        held.renew()
        assert not held.lost
        connect(storage.url).write("runs/r/lease", b"of somebody else")
        held.renew()
        assert held.lost


def test_a_deleted_run_stops_its_holder(storage: BucketStorage) -> None:
    with storage.lease("runs/r/lease") as held:
        connect(storage.url).delete("runs/r")
        time.sleep(2)
        assert held.lost
        with pytest.raises(TemporaryError, match="this one stops"):
            storage.write("runs/r/x", b"")
