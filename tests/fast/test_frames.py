"""The cache of decoded frames: what it holds, who may share it, and what happens when it cannot be whole."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pi05.data import frames, images
from pi05.data.frames import dataset_digest, make_room, open_frames
from pi05.errors import DataError, TemporaryError
from tests.fast.test_lerobot import CAMERAS, DATA, ROWS, SIZE, png, table, write_v21, write_v30

SIZES = (SIZE, SIZE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_v30(tmp_path / "dataset")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "frames"


def test_a_row_has_the_pixels_of_its_image(folder: Path, cache: Path) -> None:
    with open_frames(folder, CAMERAS, SIZES, cache) as opened:
        content = opened.read(np.array([7, 0, 7]))
        assert list(content) == list(CAMERAS)
        for number, camera in enumerate(CAMERAS):
            assert content[camera].shape == (3, SIZE, SIZE, 3)
            assert content[camera].dtype == np.uint8
            assert content[camera][:, 4, 4].tolist() == [[7, number, 7], [0, number, 7], [7, number, 7]]


def test_both_versions_give_the_same_frames(folder: Path, tmp_path: Path, cache: Path) -> None:
    older = write_v21(tmp_path / "older")
    rows = np.arange(ROWS)
    with open_frames(folder, CAMERAS, SIZES, cache) as one, open_frames(older, CAMERAS, SIZES, cache) as other:
        for camera in CAMERAS:
            np.testing.assert_array_equal(one.read(rows)[camera], other.read(rows)[camera])


def test_frames_are_decoded_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, int]] = []
    open_frames(folder, CAMERAS[:1], SIZES, cache, lambda *progress: said.append(progress)).close()
    assert said[-1] == (ROWS, ROWS)
    monkeypatch.setattr(frames, "decode", lambda *_: pytest.fail("decoded again"))
    open_frames(folder, CAMERAS[:1], SIZES, cache).close()


def test_another_camera_is_added_while_the_first_is_in_use(folder: Path, cache: Path) -> None:
    with open_frames(folder, CAMERAS[:1], SIZES, cache), open_frames(folder, CAMERAS, SIZES, cache) as both:
        assert both.read(np.array([3]))["hand_camera"][0, 0, 0].tolist() == [3, 1, 7]


def test_frames_of_another_size_are_resized(folder: Path, cache: Path) -> None:
    with open_frames(folder, CAMERAS[:1], (SIZE, 4), cache) as opened:
        assert opened.read(np.array([9]))["base_camera"][0].tolist() == np.full((4, 4, 3), [9, 0, 7]).tolist()


def test_a_wide_picture_keeps_its_aspect_between_black_bars() -> None:
    fitted = images.fit(np.full((10, 20, 3), 200, np.uint8), 8)
    assert fitted.shape == (8, 8, 3)
    assert (fitted[2:6] == 200).all()
    assert (fitted[:2] == 0).all()
    assert (fitted[6:] == 0).all()


class Stop(Exception):
    """What a job raises when it is asked to stop."""


def test_an_interrupted_build_leaves_nothing_and_is_begun_again(folder: Path, cache: Path) -> None:
    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        open_frames(folder, CAMERAS, SIZES, cache, check_stop=stop)
    assert [path.name for path in cache.rglob("*") if path.is_file() and path.stat().st_size] == []
    open_frames(folder, CAMERAS, SIZES, cache).close()


def test_a_killed_build_is_begun_again(folder: Path, cache: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from pi05.data import frames
decode = frames.decode
def dying(content, size, calls=[]):
    calls.append(0)
    if len(calls) > 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(content, size)
frames.decode = dying
frames.open_frames(Path(sys.argv[1]), ["base_camera", "hand_camera"], (8, 8), Path(sys.argv[2]))
"""
    killed = subprocess.run([sys.executable, "-c", script, str(folder), str(cache)], check=False)
    assert killed.returncode == -9
    assert [path.suffix for path in cache.rglob(".*camera*")] == [".incomplete"] * 2
    with open_frames(folder, CAMERAS, SIZES, cache) as opened:
        assert opened.read(np.array([9]))["hand_camera"][0, 0, 0].tolist() == [9, 1, 7]
    assert list(cache.rglob("*.incomplete")) == []


def test_processes_share_one_build(folder: Path, cache: Path) -> None:
    script = """
import sys
from pathlib import Path
from pi05.data import frames
calls = []
decode = frames.decode
frames.decode = lambda content, size: calls.append(0) or decode(content, size)
with frames.open_frames(Path(sys.argv[1]), ["base_camera"], (8, 8), Path(sys.argv[2])) as opened:
    print(len(calls), opened.read([4])["base_camera"][0, 0, 0])
"""
    command = [sys.executable, "-c", script, str(folder), str(cache)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = sorted(process.communicate()[0].strip() for process in processes)
    assert said == ["0 [4 0 7]", "0 [4 0 7]", f"{ROWS} [4 0 7]"]


def test_a_marker_of_something_else_is_not_believed(folder: Path, cache: Path) -> None:
    open_frames(folder, CAMERAS[:1], SIZES, cache).close()
    (file,) = cache.rglob("base_camera.u8")
    os.truncate(file, 100)
    with open_frames(folder, CAMERAS[:1], SIZES, cache) as opened:
        assert opened.read(np.array([5]))["base_camera"][0, 0, 0].tolist() == [5, 0, 7]


def replace_image(folder: Path, row: int, content: bytes) -> None:
    rows = table()
    column = rows["observation.images.hand_camera"].to_pylist()
    column[row]["bytes"] = content
    place = rows.column_names.index("observation.images.hand_camera")
    write_v30(folder, rows.set_column(place, "observation.images.hand_camera", pyarrow.array(column)))


def encoded(form: str) -> bytes:
    """Return a picture in some form."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(stream, form)
    return stream.getvalue()


def header(size: int) -> bytes:
    """Return a PNG that says it has `size` pixels square, and nothing more."""
    said = b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + said + struct.pack(">I", zlib.crc32(said))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


def test_a_jpeg_is_an_image_too() -> None:
    assert images.decode(encoded("JPEG"), SIZE).shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("given", "inside"),
    [((480, 640), (168, 224)), ((720, 1280), (126, 224)), ((300, 300), (224, 224)), ((223, 225), (222, 223))],
)
def test_pictures_are_fitted_as_the_release_does(given: tuple[int, int], inside: tuple[int, int]) -> None:
    """Of 225 pixels in 224, rounding leaves 223.99... there, of which it takes the whole ones."""
    fitted = images.fit(np.full((*given, 3), 200, np.uint8), 224) > 0
    assert (fitted.any(axis=(1, 2)).sum(), fitted.any(axis=(0, 2)).sum()) == inside


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(6, "hand_camera", 9), r"it has 9 x 9 pixels, 8 x 8 are required \(convention.image_size\)"),
        (png(6, "hand_camera")[:50], "it is no PNG or JPEG image"),
        (encoded("GIF"), "it is no PNG or JPEG image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "it is no PNG or JPEG image"),
        (header(20_000), "it is far too large"),
        (header(12_000), "it is far too large"),
        (header(5_000), "it has 5000 x 5000 pixels"),
    ],
)
def test_a_bad_image_is_named_by_camera_and_row(folder: Path, cache: Path, content: bytes, words: str) -> None:
    replace_image(folder, 6, content)
    with pytest.raises(DataError, match=rf"the image of hand_camera in row 6 cannot be used: {words}.*make it again"):
        open_frames(folder, CAMERAS, SIZES, cache)
    assert list(cache.rglob("*.u8")) == []


def test_a_truncated_file_is_named(folder: Path, cache: Path) -> None:
    content = (folder / DATA).read_bytes()
    (folder / DATA).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"file-000.parquet is missing, cut off or damaged"):
        open_frames(folder, CAMERAS, SIZES, cache)


def test_a_changed_dataset_has_another_digest_and_frames_of_its_own(folder: Path, cache: Path) -> None:
    before = dataset_digest(folder)
    open_frames(folder, CAMERAS[:1], SIZES, cache).close()
    states = pyarrow.FixedSizeListArray.from_arrays(np.ones(9 * ROWS, np.float32), 9)
    write_v30(folder, table().set_column(0, "observation.state", states))
    assert dataset_digest(folder) != before
    open_frames(folder, CAMERAS[:1], SIZES, cache).close()
    assert len(list(cache.rglob("base_camera.json"))) == 2


def test_a_dataset_that_changes_while_it_is_decoded_is_refused(folder: Path, cache: Path) -> None:
    def change(done: int, total: int) -> None:
        (folder / "meta/note.txt").write_text(f"{done} of {total}")

    with pytest.raises(DataError, match="changed while its frames were decoded"):
        open_frames(folder, CAMERAS, SIZES, cache, change)
    assert list(cache.rglob("*.json")) == []


Usage = namedtuple("Usage", "total used free")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(TemporaryError, match=r"frames need 0.00 GB in .*frames, whose disk has 0.00 GB free .*smaller"):
        open_frames(folder, CAMERAS, SIZES, cache)
    assert [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_unused_caches_make_room_and_used_ones_stay(
    folder: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_v21(tmp_path / "other")
    open_frames(other, CAMERAS, SIZES, cache).close()
    with open_frames(folder, CAMERAS, SIZES, cache):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
        with pytest.raises(TemporaryError):
            make_room(cache / "new", 1)
        assert [path.name for path in cache.glob("[!.]*")] == [f"{dataset_digest(folder)[:16]}-{SIZE}"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, really full when it is full."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_meanwhile_is_an_error_and_not_a_crash(
    folder: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "_RESERVE", -(2**30))
    (small_disk / "filler").write_bytes(bytes(60 * 1024))
    with pytest.raises(TemporaryError, match="disk full while decoding the frames"):
        open_frames(folder, CAMERAS, SIZES, small_disk / "frames")
    assert list(small_disk.rglob("*.incomplete")) == []


def test_a_waiting_process_can_be_stopped(folder: Path, cache: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(*_: int) -> None:
        entered.set()
        leave.wait(20)

    def stop() -> None:
        raise Stop

    builder = threading.Thread(target=lambda: open_frames(folder, CAMERAS, SIZES, cache, hold).close())
    builder.start()
    entered.wait(20)
    try:
        with pytest.raises(Stop):
            open_frames(folder, CAMERAS, SIZES, cache, check_stop=stop)
    finally:
        leave.set()
        builder.join()
    assert json.loads(next(cache.rglob("base_camera.json")).read_bytes())["shape"] == [ROWS, SIZE, SIZE, 3]
