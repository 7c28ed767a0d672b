"""Compiled programs are kept: a later start compiles nothing."""

import contextlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from pi05.config import Convention, TrainJob
from pi05.jobs import compiled
from pi05.storage import FileStorage, RunPaths
from tests.recorded import publish
from tests.train.conftest import MODEL, TRAIN
from tests.train.test_processes import address

ROOT = Path(__file__).parents[2]
CONVENTION = Convention(cameras=(), state="joints")
DATASET = "datasets/pushcube/0"
ENVIRONMENT = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def start(storage: FileStorage, run: str) -> dict[str, int]:
    """Train in a process of its own and return how many programs it asked for, and how many were kept."""
    job = TrainJob(
        run=run,
        task="pushcube",
        storage=storage.url,
        convention=CONVENTION,
        dataset=DATASET,
        model=MODEL,
        train=TRAIN.model_copy(update={"steps": 4, "save_every": 4}),
    )
    storage.write(RunPaths(run).job, job.model_dump_json().encode())
    command = [sys.executable, "-m", "tests.compiling", str(storage.path(RunPaths(run).job))]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert "rror" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    storage = FileStorage(tmp_path.as_uri())
    publish(storage, DATASET, "pushcube", CONVENTION)
    return storage


def test_the_second_start_compiles_nothing(storage: FileStorage) -> None:
    first = start(storage, "train-pushcube-000000")
    assert (first["asked"] > 0, first["kept"]) == (True, 0)
    assert start(storage, "train-pushcube-000001") == {"asked": first["asked"], "kept": first["asked"]}


TOGETHER = """
import sys, jax
from pathlib import Path
from pi05.jobs import compiled
from pi05.storage import FileStorage
url, coordinator, process = sys.argv[1:]
jax.distributed.initialize(coordinator, 2, int(process))
storage = FileStorage(url)
with compiled.kept(storage):
    storage.path("said").write_text(str(jax.config.values["jax_compilation_cache_dir"]))
"""


def together(*storages: FileStorage) -> list[str]:
    """Return the folders that two processes keep programs in, given their storages."""
    command, where = [sys.executable, "-c", TOGETHER], address()
    words = [[storage.url, where, str(number)] for number, storage in enumerate(storages)]
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(subprocess.Popen(command + given, stderr=subprocess.PIPE)) for given in words]
        said = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return [storage.path("said").read_text() for storage in storages]


def test_processes_that_train_together_use_the_same_programs_or_none(tmp_path: Path) -> None:
    one, other = FileStorage((tmp_path / "one").as_uri()), FileStorage((tmp_path / "other").as_uri())
    key = f"{compiled.KEY}/{compiled.machine()}"
    for storage in (one, other):
        storage.write(f"{key}/step-cache", zlib.compress(b"step"))
    assert together(one, other) == [str(storage.path(key)) for storage in (one, other)]
    other.write(f"{key}/another-cache", zlib.compress(b"another"))
    assert together(one, other) == ["None", "None"]


def test_the_oldest_programs_go_and_so_does_one_whose_writer_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_MOST", 3)
    for age, name in enumerate("abcde"):
        (tmp_path / f"{name}-cache").write_bytes(zlib.compress(bytes(1000)))
        os.utime(tmp_path / f"{name}-cache", (1e9 - age, 1e9 - age))
    (tmp_path / "b-cache").write_bytes(zlib.compress(bytes(1000))[:-3])
    os.utime(tmp_path / "b-cache", (1e9, 1e9))
    assert compiled._prepared(tmp_path, None) == ["a-cache", "c-cache", "d-cache"]
    monkeypatch.setattr(compiled, "_LARGEST", 2 * len(zlib.compress(bytes(1000))))
    assert compiled._prepared(tmp_path, None) == ["a-cache", "c-cache"]
