"""Compiled programs in a bucket: a new pod takes what another one compiled, and needs no bucket to work."""

import shutil
import time
import zlib
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pi05.jobs import compiled
from pi05.storage import connect
from pi05.storage.remote import BucketStorage
from tests.gcs.emulator import Line, Server

EVENTS = {"/jax/compilation_cache/compile_requests_use_cache": "asked", "/jax/compilation_cache/cache_hits": "kept"}
PROGRAM = zlib.compress(bytes(1000))


@pytest.fixture
def counts() -> Generator[Counter[str]]:
    """What JAX is asked to compile from here on, however little, and what of it was kept."""
    found: Counter[str] = Counter()

    def count(event: str, **_: object) -> None:
        found.update([EVENTS.get(event, "other")])

    before = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.monitoring.register_event_listener(count)
    yield found
    jax.monitoring.unregister_event_listener(count)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def in_a_new_pod(storage: BucketStorage) -> None:
    """Compile something where nothing is on the disk and nothing in memory."""
    shutil.rmtree(storage.scratch(compiled.KEY), ignore_errors=True)
    jax.clear_caches()
    with compiled.kept(storage):
        jax.block_until_ready(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8))))


def test_a_new_pod_compiles_nothing(storage: BucketStorage, counts: Counter[str]) -> None:
    in_a_new_pod(storage)
    assert (counts["asked"] > 0, counts["kept"]) == (True, 0)
    asked = counts["asked"]
    counts.clear()
    in_a_new_pod(storage)
    assert (counts["asked"], counts["kept"]) == (asked, asked)
    assert jax.config.values["jax_compilation_cache_dir"] is None


def test_a_bucket_out_of_reach_costs_a_compilation_and_nothing_else(url: str, line: Line, counts: Counter[str]) -> None:
    storage = connect(url, patience=0.5)
    assert isinstance(storage, BucketStorage)
    line.cut()
    in_a_new_pod(storage)
    line.mend()
    assert counts["asked"] > 0
    in_a_new_pod(storage)
    assert storage.children(compiled.KEY) == [compiled.machine()]


def shelf(storage: BucketStorage, folder: Path) -> compiled.BucketCache:
    (folder / compiled._TUNING).mkdir(parents=True)
    return compiled.BucketCache(storage, "cache/compiled/x", folder)


def test_what_is_new_is_uploaded_while_the_job_runs(
    storage: BucketStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_PERIOD", 0.1)
    here, there = tmp_path / "here", tmp_path / "there"
    with shelf(storage, here).uploading(), shelf(storage, there).uploading():
        for folder in (here, there):  # two pods that compiled the same
            (folder / "a-cache").write_bytes(PROGRAM)
        (there / compiled._TUNING / "b").write_bytes(b"measured")
        deadline = time.monotonic() + 20
        while len(storage.children("cache/compiled/x")) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert storage.read("cache/compiled/x/a-cache") == PROGRAM
    third = tmp_path / "third"
    assert compiled._prepared(third, shelf(storage, third)) == ["a-cache", f"{compiled._TUNING}/b"]
    assert (third / compiled._TUNING / "b").read_bytes() == b"measured"


def test_a_bucket_keeps_the_newest_programs(
    storage: BucketStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emulator: Server
) -> None:
    monkeypatch.setattr(compiled, "_MOST", 2)
    for name in "abc":
        storage.write(f"cache/compiled/x/{name}-cache", PROGRAM)
        time.sleep(emulator.tick)  # or the service's clock would not tell them apart
    folder = tmp_path / "pod"
    assert compiled._prepared(folder, shelf(storage, folder)) == ["b-cache", "c-cache"]
    assert storage.children("cache/compiled/x") == ["b-cache", "c-cache"]
    monkeypatch.setattr(compiled, "_LARGEST", len(PROGRAM))
    assert compiled._prepared(folder, compiled.BucketCache(storage, "cache/compiled/x", folder)) == ["c-cache"]
    assert storage.children("cache/compiled/x") == ["c-cache"]
