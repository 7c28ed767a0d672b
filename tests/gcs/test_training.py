"""Real training processes against the bucket: killed while they upload, cut off from it, told to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pi05 import tasks
from pi05.config import Convention
from pi05.data import dataset as datasets
from pi05.events import Event, parse
from pi05.simulator import state_names
from pi05.storage import RunPaths, connect
from pi05.storage.remote import BucketStorage
from pi05.training import checkpoint
from tests.gcs.emulator import Line, Server, new_bucket

ROOT = Path(__file__).parents[2]
PATHS = RunPaths("train-pushcube-222222")
DATASET = "datasets/pushcube/222222"
STEPS, SAVE, KEEP = 60, 10, 20
CONVENTION = Convention(cameras=(), state="joints_and_poses")
GS = pytest.mark.store("gs")
"""What takes long, and is of the trainer more than of the store."""
NAMES = state_names(tasks.find("pushcube"), CONVENTION)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    random = np.random.default_rng(0)
    demos = [
        datasets.Demo(
            seed,
            random.normal(size=(12, len(NAMES))).astype(np.float32),
            random.normal(size=(12, 8)).astype(np.float32),
        )
        for seed in range(4)
    ]
    meta = datasets.DatasetMeta(
        task="pushcube",
        convention=CONVENTION,
        renderer="none",
        seeds=tuple(range(4)),
        attempts=(),
        versions={},
    )
    datasets.write(folder, tasks.find("pushcube"), NAMES, demos, meta)
    return folder


class Trainer:
    """A training job in one bucket, started as often as a test wants."""

    def __init__(self, folder: Path, compiled: Path, dataset: Path, storage: BucketStorage) -> None:
        self.folder, self.storage = folder, storage
        storage.publish(dataset, DATASET)
        job = json.loads((ROOT / "tests/golden/ctl_train_tiny_pushcube.job.json").read_text())
        gemma = {"width": 64, "depth": 2, "mlp_dim": 128, "num_heads": 4, "num_kv_heads": 1, "head_dim": 16}
        job |= {"run": PATHS.run, "storage": storage.url, "dataset": DATASET}
        job["model"] |= {"vlm": gemma, "expert": gemma, "action_horizon": 4}
        job["train"] |= {"steps": STEPS, "batch_size": 8, "save_every": SAVE, "keep_every": KEEP, "log_every": 1}
        job["train"]["optimizer"] |= {"warmup_steps": 3, "decay_steps": STEPS}
        self.job = folder / "train.json"
        self.job.write_text(json.dumps(job))
        self.environment = os.environ | {
            "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }

    def start(self, pod: str, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.gcs.program", "train", os.devnull, str(self.job), "--attempt", pod]
        command += words
        with (self.folder / f"{pod}.out").open("wb") as out:
            return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=self.environment)

    def pair(self, pod: str) -> list[subprocess.Popen[bytes]]:
        """Start two processes that train together."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"127.0.0.1:{free.getsockname()[1]}"
        words = ("--processes", "2", "--coordinator", where)
        return [self.start(f"{pod}-{process}", "--process", str(process), *words) for process in range(2)]

    def change(self, **train: object) -> None:
        job = json.loads(self.job.read_text())
        job["train"] |= train
        self.job.write_text(json.dumps(job))

    def run(self, pod: str) -> int:
        return self.start(pod).wait(200)

    def events(self, pod: str, kind: str) -> list[Event]:
        lines = (self.folder / f"{pod}.out").read_text().splitlines()
        return [event for line in lines if (event := parse(line)) and event.kind == kind]

    def losses(self, pod: str) -> dict[int, float]:
        return {e.step: e.metrics["loss"] for e in self.events(pod, "progress") if e.step and e.metrics}

    def steps(self, pod: str, kind: str) -> list[int | None]:
        return [event.step for event in self.events(pod, kind)]

    def saved(self) -> list[int]:
        return checkpoint.steps(self.storage, PATHS.run)

    def verified(self) -> bool:
        return all(self.storage.verify(PATHS.checkpoint(step)) == [] for step in self.saved())


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(emulator: Server, dataset: Path, compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run that nothing happened to."""
    storage = connect(new_bucket(emulator))
    assert isinstance(storage, BucketStorage)
    trainer = Trainer(tmp_path_factory.mktemp("whole"), compiled, dataset, storage)
    assert trainer.run("whole") == 0, (trainer.folder / "whole.out").read_text()[-2000:]
    return trainer


@pytest.fixture
def trainer(tmp_path: Path, compiled: Path, dataset: Path, storage: BucketStorage) -> Trainer:
    return Trainer(tmp_path, compiled, dataset, storage)


def until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_leaves_its_checkpoints_in_the_bucket(whole: Trainer) -> None:
    assert whole.saved() == [20, 40, 60]
    assert whole.verified()
    announced = [event.step for event in whole.events("whole", "checkpoint")]
    assert announced[-1] == STEPS or STEPS in announced
    assert len(whole.events("whole", "finished")) == 1
    assert sorted(whole.losses("whole")) == list(range(1, STEPS + 1))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("uploads", [pytest.param(3, marks=GS), 9, pytest.param(30, marks=GS)])
def test_killed_while_it_uploads_it_resumes_with_the_same_numbers(
    trainer: Trainer, whole: Trainer, line: Line, emulator: Server, uploads: int
) -> None:
    """SIGKILL after so many requests of uploads: before, in and after the first checkpoint."""
    line.requests.clear()
    line.rate = 1e6
    process = trainer.start("first")
    until(lambda: len([*filter(emulator.upload.match, line.requests)]) > uploads or process.poll() is not None)
    assert process.poll() is None
    process.kill()
    process.wait()
    line.rate = None
    assert trainer.verified()
    kept = trainer.saved()
    assert trainer.run("second") == 0
    second = trainer.losses("second")
    assert sorted(second) == list(range((kept or [0])[-1] + 1, STEPS + 1))
    assert second == {step: loss for step, loss in whole.losses("whole").items() if step in second}
    assert trainer.saved() == [20, 40, 60]
    assert trainer.verified()


@pytest.mark.timeout(400)
def test_cut_off_for_a_while_it_trains_on_and_everything_arrives(trainer: Trainer, whole: Trainer, line: Line) -> None:
    process = trainer.start("first")
    until(lambda: len(trainer.events("first", "progress")) > 5)
    line.cut()
    until(lambda: len(trainer.events("first", "warning")) > 1 and len(trainer.losses("first")) == STEPS)
    assert process.poll() is None  # it waits for the bucket
    line.mend()
    assert process.wait(120) == 0
    assert trainer.losses("first") == whole.losses("whole")
    assert trainer.saved() == [20, 40, 60]
    assert trainer.verified()
    assert "could not" in str(trainer.events("first", "warning")[0].message)


@GS
@pytest.mark.timeout(400)
def test_told_to_stop_it_saves_and_uploads_before_it_ends(trainer: Trainer, whole: Trainer, line: Line) -> None:
    line.rate = 2e6
    process = trainer.start("first")
    until(lambda: len(trainer.events("first", "progress")) > 14)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    line.rate = None
    stopped = max(trainer.losses("first"))
    assert trainer.saved()[-1] == stopped
    assert trainer.verified()
    assert trainer.run("second") == 0
    assert trainer.losses("first") | trainer.losses("second") == whole.losses("whole")
    assert min(trainer.losses("second")) == stopped + 1


@pytest.mark.timeout(400)
def test_what_is_done_is_not_fetched_again(whole: Trainer, line: Line, emulator: Server) -> None:
    line.requests.clear()
    assert whole.run("again") == 0
    fetched = [one for one in line.requests if emulator.fetch.match(one)]
    assert not [one for one in fetched if b"checkpoints" in one and b"MANIFEST.json" not in one]
    assert whole.losses("again") == {}


@GS
@pytest.mark.timeout(600)
def test_two_processes_bring_their_parts_and_go_on_when_the_bucket_was_away(
    trainer: Trainer, whole: Trainer, line: Line, tmp_path: Path
) -> None:
    trainer.change(fsdp_min_bytes=1024)
    both = trainer.pair("first")
    until(lambda: trainer.steps("first-0", "checkpoint"))
    line.cut()
    until(lambda: any("is left out: the one before" in (e.message or "") for e in trainer.events("first-0", "warning")))
    line.mend()
    assert [process.wait(200) for process in both] == [0, 0]
    assert trainer.verified()
    assert trainer.saved()[-1] == STEPS
    losses = trainer.losses("first-0")
    np.testing.assert_allclose(list(losses.values()), list(whole.losses("whole").values()), rtol=1e-4)
    assert not trainer.losses("first-1")

    for step in trainer.saved()[1:]:
        trainer.storage.delete(PATHS.checkpoint(step))
    started = trainer.saved()[0]
    assert [process.wait(200) for process in trainer.pair("second")] == [0, 0]
    assert trainer.losses("second-0") == {step: loss for step, loss in losses.items() if step > started}
    assert not [path for path in (tmp_path / "TMPDIR").rglob("*") if path.is_file() and "checkpoints" in path.parts]
