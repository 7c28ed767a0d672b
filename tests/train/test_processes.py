"""Two processes of four devices each train what one of eight trains; they stop, fail and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest

from pi05 import tasks
from pi05.config import Convention, TrainJob
from pi05.data import dataset as datasets
from pi05.data.batches import Loader
from pi05.data.dataset import Attempt, Demo
from pi05.errors import ConfigError
from pi05.events import Event, parse
from pi05.model import weights
from pi05.storage import FileStorage, RunPaths
from pi05.training import checkpoint
from pi05.training.company import Company
from pi05.training.processes import STOP_EVERY
from tests.recorded import publish
from tests.train.conftest import CONVENTION, GEMMA, MODEL, TRAIN, make_dataset, make_training
from tests.train.test_saving import as_openpi_reads, openpi_name

pytestmark = pytest.mark.timeout(900)  # two processes compile at the same time, on whatever cores there are
SHALLOW = GEMMA.model_copy(update={"depth": 1})
SMALL_MODEL = MODEL.model_copy(update={"vlm": SHALLOW, "expert": SHALLOW})
RUN = RunPaths("train-pushcube-000000")
KEY = "datasets/pushcube/0"
WAITING = 280
SMALL = {"fsdp_min_bytes": 2**15}
"""Shard the larger matrices only: every one of them is a collective over eight ranks on whatever cores there are."""
SHORT = {**SMALL, "steps": 6, "save_every": 3, "keep_every": 3}
ENDLESS = {**SMALL, "steps": 100_000, "save_every": 3, "keep_every": 100_000}


@dataclass
class Process:
    """A process of a training and what it printed."""

    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def events(self) -> list[Event]:
        return [event for line in self.said.splitlines() if (event := parse(line))]

    @property
    def losses(self) -> dict[int, float]:
        return self._metric("loss")

    @property
    def held_out(self) -> dict[int, float]:
        return self._metric("loss_held_out")

    def _metric(self, name: str) -> dict[int, float]:
        told = [(e.step, e.metrics) for e in self.events if e.kind == "progress" and e.step and e.metrics]
        return {step: metrics[name] for step, metrics in told if name in metrics}

    def code(self, seconds: float = WAITING) -> int:
        return self.popen.wait(seconds)


class Bench:
    """A storage with a dataset, and trainings started on it."""

    def __init__(self, folder: Path, dataset: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.storage = FileStorage((folder / "data").as_uri())
        self.storage.publish(dataset, KEY)
        self.started: list[Process] = []

    def job(self, **train: object) -> Path:
        job = TrainJob(
            run=RUN.run,
            task="pushcube",
            storage=self.storage.url,
            convention=CONVENTION,
            dataset=KEY,
            model=SMALL_MODEL,
            train=TRAIN.model_validate({**TRAIN.model_dump(), **train}),
        )
        path = self.folder / f"job{len(list(self.folder.glob('job*')))}.json"
        path.write_text(job.model_dump_json())
        return path

    def start(self, job: Path, *words: str, devices: int = 4) -> Process:
        """Start a process of the job."""
        return self.python("-m", "pi05.jobs.train", str(job), *words, devices=devices)

    def python(self, *words: str, devices: int = 4) -> Process:
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        cached = {"JAX_COMPILATION_CACHE_DIR": str(self.cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
        log = self.folder / f"log{len(self.started)}.txt"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [sys.executable, *words],
                env={**os.environ, **cached, "XLA_FLAGS": flags},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.started.append(Process(popen, log))
        return self.started[-1]

    def pair(self, job: Path, other: Path | None = None) -> list[Process]:
        """Start two processes that train together."""
        where = address()
        jobs = [job, other or job]
        words = [("--process", str(i), "--processes", "2", "--coordinator", where) for i in range(2)]
        return [self.start(jobs[i], *words[i]) for i in range(2)]

    def alone(self, job: Path) -> Process:
        process = self.start(job, devices=8)
        assert process.code() == 0, process.said
        return process

    def until(self, fact: Callable[[], object]) -> None:
        end = time.monotonic() + WAITING
        while not fact():
            ended = time.monotonic() > end or all(process.popen.poll() is not None for process in self.started)
            assert not ended, "\n".join(process.said for process in self.started)
            time.sleep(0.05)


def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset on disk, written as the demos job writes it."""
    drawn, folder = make_dataset(), tmp_path_factory.mktemp("dataset") / "0"
    spans = list(zip(drawn.starts[:-1], drawn.starts[1:], strict=True))
    demos = [Demo(seed, drawn.states[a:b], drawn.actions[a:b]) for seed, (a, b) in enumerate(spans)]
    attempts = tuple(Attempt(seed=demo.seed, success=True, steps=len(demo.states), seconds=1.0) for demo in demos)
    meta = drawn.meta.model_copy(update={"attempts": attempts})
    datasets.write(folder, tasks.find("pushcube"), drawn.state_names, demos, meta)
    return folder


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled-by-processes")


@pytest.fixture
def bench(tmp_path: Path, dataset: Path, compiled: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, dataset, compiled)
    yield made
    for process in made.started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, dataset: Path, compiled: Path) -> tuple[dict[int, float], Bench]:
    """The losses of one process with eight devices, and where its checkpoints are."""
    made = Bench(tmp_path_factory.mktemp("whole"), dataset, compiled)
    return made.alone(made.job(**SHORT)).losses, made


def last(losses: dict[int, float]) -> list[float]:
    return [losses[step] for step in (4, 5, 6)]


def test_two_processes_train_what_one_trains_and_their_checkpoints_are_read_by_both(
    bench: Bench, whole: tuple[dict[int, float], Bench]
) -> None:
    first, second = bench.pair(bench.job(**SHORT))
    assert (first.code(), second.code()) == (0, 0), first.said + second.said
    assert list(first.losses) == list(range(1, 7))
    np.testing.assert_allclose(list(first.losses.values()), list(whole[0].values()), rtol=2e-5)
    assert [event.kind for event in second.events] == ["started", "finished"], "only the first one speaks"
    assert "Step 1:" in first.said
    assert "Step 1:" not in second.said
    assert checkpoint.steps(bench.storage, RUN.run) == [3, 6]
    assert json.loads(bench.storage.read(RUN.status))["kind"] == "finished"

    retried = bench.start(bench.job(**SHORT), "--process", "1", "--processes", "2", "--coordinator", "127.0.0.1:1")
    assert retried.code() == 0, "all is done, so nobody has to be met"

    folder = bench.storage.open(RUN.checkpoint(6))
    ours = weights.read(folder / "params", SMALL_MODEL)
    found = as_openpi_reads(folder / "params")
    assert all(np.array_equal(array, found[openpi_name(path)]) for path, array in ours.items())
    assert not list(bench.storage.path(RUN.work).glob("*/*")), "no part is left"

    bench.storage.delete(RUN.checkpoint(6))
    again, beside = bench.pair(bench.job(**SHORT))
    assert (again.code(), beside.code()) == (0, 0), again.said + beside.said
    assert again.losses == {step: first.losses[step] for step in (4, 5, 6)}, "to the bit"

    bench.storage.delete(RUN.checkpoint(6))
    np.testing.assert_allclose(last(bench.alone(bench.job(**SHORT)).losses), last(whole[0]), rtol=2e-5)


def test_two_processes_see_the_same_held_out_loss_as_one(bench: Bench) -> None:
    job = bench.job(**SHORT, held_out=2, held_out_every=3)
    first, second = bench.pair(job)
    assert (first.code(), second.code()) == (0, 0), first.said + second.said
    bench.storage.delete(RUN.root)
    together, alone = first.held_out, bench.alone(job).held_out
    assert list(together) == [3, 6]
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=2e-5)


def test_two_processes_go_on_from_what_one_has_saved(bench: Bench, whole: tuple[dict[int, float], Bench]) -> None:
    losses, made = whole
    folder = made.storage.open(RUN.checkpoint(3))
    bench.storage.publish(folder, RUN.checkpoint(3))
    first, second = bench.pair(bench.job(**SHORT))
    assert (first.code(), second.code()) == (0, 0), first.said + second.said
    np.testing.assert_allclose(last(first.losses), last(losses), rtol=2e-5)
    ours, theirs = (storage.open(RUN.checkpoint(6)) for storage in (bench.storage, made.storage))
    one, other = (weights.read(folder / "params", SMALL_MODEL) for folder in (ours, theirs))
    for path, array in one.items():
        np.testing.assert_allclose(array, other[path], rtol=1e-3, atol=1e-5)


def test_two_processes_that_see_train_what_one_trains(bench: Bench, tmp_path: Path) -> None:
    convention = Convention(image_size=40)
    publish(bench.storage, "datasets/pushcube/seen", "pushcube", convention)
    job = TrainJob.model_validate_json(bench.job(**SHORT).read_bytes()).model_copy(
        update={
            "convention": convention,
            "dataset": "datasets/pushcube/seen",
            "model": SMALL_MODEL.model_copy(update={"image_size": 28}),
        }
    )
    path = tmp_path / "seeing.json"
    path.write_text(job.model_dump_json())
    first, second = bench.pair(path)
    assert (first.code(), second.code()) == (0, 0), first.said + second.said
    bench.storage.delete(RUN.root)
    together, alone = first.losses, bench.alone(path).losses
    np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=1e-4)


def test_a_signal_to_one_stops_both_after_a_save_and_a_dead_one_ends_the_other(bench: Bench) -> None:
    job = bench.job(**ENDLESS)
    first, second = bench.pair(job)
    bench.until(lambda: first.losses)
    second.popen.send_signal(signal.SIGTERM)
    assert (first.code(), second.code()) == (69, 143), first.said + second.said
    stopped = max(checkpoint.steps(bench.storage, RUN.run))
    assert stopped % STOP_EVERY == 0
    assert [event.exit_code for event in (first.events[-1], second.events[-1])] == [69, 143]

    first, second = bench.pair(job)
    bench.until(lambda: first.losses)
    assert min(first.losses) == stopped + 1
    second.popen.kill()
    assert first.code() == 69, first.said
    assert "has lost the others of this training (2 processes)" in (first.events[-1].message or "")
    assert (first.events[-1].kind, first.events[-1].exit_code) == ("failed", 69)
    assert json.loads(bench.storage.read(RUN.status))["exit_code"] == 69


def test_the_death_of_the_first_ends_the_second(bench: Bench) -> None:
    first, second = bench.pair(bench.job(**ENDLESS))
    bench.until(lambda: first.losses)
    first.popen.kill()
    assert second.code() == 69, second.said
    assert (second.events[-1].kind, second.events[-1].exit_code) == ("failed", 69)


def test_processes_with_different_jobs_refuse_to_train(bench: Bench) -> None:
    first, second = bench.pair(bench.job(**SHORT), bench.job(**SHORT, seed=1))
    assert (first.code(), second.code()) == (64, 64), first.said + second.said
    for process in (first, second):
        assert "processes 1 of 2 were given another job.json than process 0" in (process.events[-1].message or "")


def test_a_batch_that_does_not_divide_by_all_devices_is_refused_by_all(bench: Bench) -> None:
    first, second = bench.pair(bench.job(**SHORT, batch_size=12))
    assert (first.code(), second.code()) == (64, 64), first.said + second.said
    message = "batch_size 12 is not divisible by 8 devices of 2 processes; use 8 or 16"
    assert [process.events[-1].message for process in (first, second)] == [message] * 2


# ---- A step that never ends -----------------------------------------------------------------------------------------

HANGS = """
import sys, time
from functools import partial
import jax, numpy as np
from pi05.config import TrainJob
from pi05.jobs import runtime
from pi05.jobs.train import train
from pi05.training import loop

steps = []

def wait(loss):
    time.sleep(600)
    return loss

def make_step(*arguments):
    step = real(*arguments)

    def hanging(state, batch):
        state, metrics = step(state, batch)
        steps.append(metrics)
        if len(steps) == 6 and jax.process_index() == jax.process_count() - 1:
            if jax.process_count() > 1:
                time.sleep(600)
            shape = jax.ShapeDtypeStruct((), np.float32)
            metrics["loss"] = jax.jit(lambda loss: jax.pure_callback(wait, shape, loss))(metrics["loss"])
        return state, metrics

    hanging.lower = step.lower
    return hanging

real, loop.make_step = loop.make_step, make_step
loop.Watchdog = partial(loop.Watchdog, floor=20.0, look=0.1)
runtime.main(TrainJob, train)
"""
HANGING = {**SMALL, "steps": 20, "save_every": 5, "keep_every": 5}


def counted(*both: Process) -> Process:
    """Return the process whose failure counts; that of the other may be the loss of its company, which does not."""
    codes = [process.code() for process in both]
    assert set(codes) in ({69, 75}, {75}), both[0].said + both[1].said
    return both[codes.index(75)]


def check_hung(process: Process, function: str) -> None:
    assert process.code() == 75, process.said
    assert "no step has ended for" in (process.events[-1].message or ""), process.said
    assert (process.events[-1].kind, process.events[-1].exit_code) == ("failed", 75)
    assert "Current thread" in process.said
    assert f"in {function}" in process.said, "the stack of the thread that waits"


def test_a_step_that_hangs_ends_the_process_and_leaves_a_verdict(bench: Bench) -> None:
    process = bench.python("-c", HANGS, str(bench.job(**HANGING)))
    check_hung(process, "fit")
    assert json.loads(bench.storage.read(RUN.status))["exit_code"] == 75
    assert checkpoint.steps(bench.storage, RUN.run) == [5]
    assert not bench.storage.leased(RUN.lease)


def test_a_step_that_hangs_in_one_process_ends_both(bench: Bench) -> None:
    job, where = str(bench.job(**HANGING)), address()
    words = [("--process", str(i), "--processes", "2", "--coordinator", where) for i in range(2)]
    first, second = (bench.python("-c", HANGS, job, *each) for each in words)
    hung = counted(first, second)
    assert "no step has ended for" in (hung.events[-1].message or ""), hung.said
    assert [event.exit_code for event in (first.events[-1], second.events[-1])] == [first.code(), second.code()]


# ---- Company without training: quick --------------------------------------------------------------------------------

COMPANY = """
import sys, time
from pi05.errors import DataError, JobError
from pi05.training.company import Company
from pi05.training.processes import choice_of_first, wait_for_all
process, address, patience, what = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
try:
    with Company(process, 2, address, lambda words: print("LOST", words, flush=True), patience).together():
        print("met", choice_of_first(process + 7), flush=True)
        if what == "fails":
            raise DataError("a file here is damaged")
        if what == "waits":
            wait_for_all()
        if what == "hangs":
            time.sleep(600)
except JobError as error:
    print("ERROR", error, flush=True)
    sys.exit(error.exit_code)
"""


def company(bench: Bench, process: int, where: str, what: str = "", patience: int = 60) -> Process:
    return bench.python("-c", COMPANY, str(process), where, str(patience), what)


def test_processes_meet_and_part(bench: Bench) -> None:
    where = address()
    both = [company(bench, process, where) for process in range(2)]
    assert [process.code() for process in both] == [0, 0], both[0].said + both[1].said
    assert all("met 7" in process.said for process in both)


def test_a_coordinator_that_is_not_there_is_named(bench: Bench) -> None:
    process = company(bench, 1, "127.0.0.1:1", patience=2)
    assert process.code() == 69, process.said
    assert "did not all meet at 127.0.0.1:1 within 2 s; are all of them running" in process.said


def test_processes_that_do_not_come_are_not_waited_for_for_ever(bench: Bench) -> None:
    process = company(bench, 0, address(), patience=2)
    assert process.code() == 69, process.said
    assert "LOST the 2 processes of this training did not all meet" in process.said


@pytest.mark.parametrize("where", ["127.0.0.1", ":80", "host:http"])
def test_an_address_without_host_or_port_is_refused(where: str) -> None:
    with (
        pytest.raises(ConfigError, match=rf"--coordinator '{where}' is not HOST:PORT"),
        Company(0, 2, where).together(),
    ):
        pass


def test_an_address_that_is_taken_is_named(bench: Bench) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        process = company(bench, 0, where)
        assert process.code() == 75, process.said
    assert f"ERROR process 0 cannot listen on port {where.rpartition(':')[2]} (Address already in use" in process.said


def test_one_that_fails_alone_keeps_its_code_and_ends_the_other(bench: Bench) -> None:
    where = address()
    waits, fails = company(bench, 0, where, "waits"), company(bench, 1, where, "fails")
    assert fails.code() == 65, fails.said
    assert waits.code() == 69, waits.said
    assert "process 0 has lost the others" in waits.said  # said by XLA's abort or by a collective, whichever is first
    assert "LOST" not in fails.said


def test_one_that_was_restarted_before_anybody_noticed_ends_with_the_others(bench: Bench) -> None:
    where = address()
    waits, killed = company(bench, 0, where, "waits"), company(bench, 1, where, "hangs")
    bench.until(lambda: "met" in killed.said or killed.popen.poll() is not None)
    killed.popen.kill()
    again = company(bench, 1, where, patience=20)
    assert (waits.code(), again.code()) == (69, 69), waits.said + again.said
    assert "LOST" in again.said or "ERROR process 1 cannot take part" in again.said


PARTS = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pi05 import sharding
from pi05.model import arrays
from pi05.training.company import Company
process, folder = int(sys.argv[1]), Path(sys.argv[3])
with Company(process, 2, sys.argv[2]).together():
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "fsdp"), ()))
    content = {
        "split": sharding.place_whole(np.arange(80.0).reshape(2, 40), split),
        "whole": sharding.place_whole(np.arange(3), whole),
        "none": None,
    }
    arrays.save(folder / str(process), content)
"""


def test_each_process_writes_its_part_and_all_parts_are_a_checkpoint(bench: Bench, tmp_path: Path) -> None:
    where = address()
    both = [bench.python("-c", PARTS, str(process), where, str(tmp_path), devices=2) for process in range(2)]
    assert [process.code() for process in both] == [0, 0], both[0].said + both[1].said
    names = [
        {path.relative_to(tmp_path / str(process)).as_posix() for path in (tmp_path / str(process)).rglob("*")}
        for process in range(2)
    ]
    assert {name for name in names[0] if name.startswith("split/")} == {"split/.zarray", "split/0.0", "split/0.1"}
    assert {name for name in names[1] if "/" in name} == {"split/0.2", "split/0.3"}
    for path in (tmp_path / "1/split").iterdir():
        path.rename(tmp_path / "0/split" / path.name)
    found = as_openpi_reads(tmp_path / "0")
    np.testing.assert_array_equal(found["['split']"], np.arange(80.0).reshape(2, 40))
    np.testing.assert_array_equal(found["['whole']"], np.arange(3))


def test_a_part_that_cannot_be_written_ends_all_with_words(bench: Bench) -> None:
    bench.storage.write(f"{RUN.work}/part-1", b"in the way")
    first, second = bench.pair(bench.job(**SHORT))
    assert counted(first, second) is first
    assert "process 1 could not write its part of checkpoint 3: " in (first.events[-1].message or "")
    assert checkpoint.steps(bench.storage, RUN.run) == []


# ---- One process's part ----------------------------------------------------------------------------------------------


def test_a_part_of_a_batch_is_those_rows_of_the_whole() -> None:
    made = make_training().loader
    whole, part = (Loader(made.sources, made.recipe, 8, 0, 0.02, rows).batch(5) for rows in (slice(None), slice(2, 6)))
    pairs = zip(jax.tree.leaves((whole.observation, whole.actions, whole.real)), strict=False)
    wanted = [array[2:6] for (array,) in pairs]
    found = jax.tree.leaves((part.observation, part.actions, part.real))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
