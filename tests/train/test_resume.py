"""Checkpoints: exact resume, other device counts, damage, and what must never be written."""

import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from pi05.config import Convention
from pi05.data import dataset as datasets
from pi05.errors import ConfigError, DataError, NotLearning, TemporaryError
from pi05.jobs.runtime import Stopped
from pi05.model import weights
from pi05.policy import Policy
from pi05.training import checkpoint
from pi05.training.loop import Training, start
from pi05.training.step import TrainState
from tests.train.conftest import CONVENTION, MODEL, TRAIN, Around, make_dataset, make_training, new_around


def run(training: Training, around: Around) -> TrainState:
    return training.fit(start(training, around), around)


def equal(one: TrainState, other: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainState, Around]:
    around = new_around(tmp_path_factory.mktemp("whole"))
    return run(make_training(), around), around


def test_twenty_steps_equal_ten_and_ten_bit_for_bit(whole: tuple[TrainState, Around], tmp_path: Path) -> None:
    first, second = new_around(tmp_path, stop_after=10), new_around(tmp_path)
    with pytest.raises(Stopped):
        run(make_training(), first)
    resumed = run(make_training(), second)
    assert sorted(second.losses) == list(range(11, 21))
    assert first.losses | second.losses == whole[1].losses
    assert equal(resumed, whole[0])


def test_without_averaging_resume_is_exact_too(tmp_path: Path) -> None:
    plain = TRAIN.model_copy(update={"ema_decay": None, "steps": 8, "save_every": 4, "freeze": ("PaliGemma/img/.*",)})
    uninterrupted = run(make_training(plain), new_around(tmp_path / "whole"))
    with pytest.raises(Stopped):
        run(make_training(plain), new_around(tmp_path / "parts", stop_after=4))
    assert equal(run(make_training(plain), new_around(tmp_path / "parts")), uninterrupted)


def test_a_signal_between_saves_loses_nothing(whole: tuple[TrainState, Around], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(make_training(), new_around(tmp_path, stop_after=13))
    assert checkpoint.steps(new_around(tmp_path).storage, "train-pushcube-000000") == [10, 13]
    assert equal(run(make_training(), new_around(tmp_path)), whole[0])


def test_a_checkpoint_moves_to_other_device_counts(whole: tuple[TrainState, Around], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(make_training(devices=8), new_around(tmp_path, stop_after=10))
    around = new_around(tmp_path)
    run(make_training(devices=2), around)
    wanted = [whole[1].losses[step] for step in range(11, 21)]
    np.testing.assert_allclose(list(around.losses.values()), wanted, rtol=1e-4)


def test_frozen_parameters_do_not_move(around: Around) -> None:
    training = make_training(TRAIN.model_copy(update={"steps": 4, "freeze": ("PaliGemma/llm/embedder/.*",)}))
    before = np.asarray(start(training, around).params["PaliGemma/llm/embedder/input_embedding"])
    state = run(training, around)
    np.testing.assert_array_equal(state.params["PaliGemma/llm/embedder/input_embedding"], before)
    assert state.ema is not None
    assert "PaliGemma/llm/embedder/input_embedding" not in state.ema


def test_a_pattern_that_freezes_nothing_is_refused(around: Around) -> None:
    with pytest.raises(ConfigError, match="matches no parameter"):
        start(make_training(TRAIN.model_copy(update={"freeze": ("PaliGema/.*",)})), around)


def test_the_policy_reads_the_averaged_weights(whole: tuple[TrainState, Around]) -> None:
    state, around = whole
    folder = around.storage.open(around.paths.checkpoint(20))
    found = weights.read(folder / "params", MODEL)
    assert state.ema is not None
    for path, array in state.ema.items():
        np.testing.assert_array_equal(found[path], array)
    policy = Policy.load(folder, rows=4, sampling_steps=3, seed=0)
    states = make_dataset().states[:3]
    together = policy.act([7, 8, 9], 0, states, {})
    assert together.shape == (3, 4, 8)
    np.testing.assert_allclose(policy.act([9], 0, states[2:], {}), together[2:], rtol=1e-5, atol=1e-6)
    assert not np.allclose(policy.act([7, 8, 9], 1, states, {}), together)
    with pytest.raises(DataError, match="states of 16 numbers, given 8"):
        policy.act([7], 0, states[:1, :8], {})


def test_retention_keeps_the_last_the_last_to_go_on_from_and_the_multiples() -> None:
    saved = [500, 1000, 5000, 6000, 10000, 10500]
    assert checkpoint.superseded(saved, saved, keep_every=5000) == [500, 1000, 6000]
    assert checkpoint.superseded(saved, [500, 6000], keep_every=5000) == [500, 1000], "training goes on from 6000"


def test_a_flipped_bit_is_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(make_training(), new_around(tmp_path, stop_after=10))
    around = new_around(tmp_path)
    folder = around.storage.path(around.paths.checkpoint(10))
    victim = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DataError, match=rf"{victim.name} has crc32c [0-9a-f]+, the manifest says"):
        start(make_training(), around)


def test_a_truncated_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(make_training(), new_around(tmp_path, stop_after=10))
    around = new_around(tmp_path)
    folder = around.storage.path(around.paths.checkpoint(10))
    (folder / checkpoint.TOKENIZER).write_bytes(b"short")
    (folder / checkpoint.META).unlink()
    with pytest.raises(DataError, match=r"pi05\.json is missing; .*tokenizer\.model has 5 bytes"):
        start(make_training(), around)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(make_training(), new_around(tmp_path, stop_after=10))
    with pytest.raises(ConfigError, match=r"train\.state_noise 0\.02 \(job: 0\.5\)\. Submit"):
        start(make_training(TRAIN.model_copy(update={"state_noise": 0.5, "seed": 1})), new_around(tmp_path))
    start(make_training(TRAIN.model_copy(update={"log_every": 5})), new_around(tmp_path))


def test_a_training_goes_on_with_another_seed_rate_and_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(make_training(TRAIN.model_copy(update={"keep_every": 20})), new_around(tmp_path))
    faster = TRAIN.optimizer.model_copy(update={"peak_lr": 2e-3, "decay_steps": 20})
    around = new_around(tmp_path)
    training = make_training(TRAIN.model_copy(update={"steps": 24, "seed": 1, "optimizer": faster}))
    caplog.set_level("INFO")
    state = run(training, around)
    assert sorted(around.losses) == [21, 22, 23, 24]
    assert around.metric("learning_rate") == pytest.approx([faster.end_lr] * 4), "it had fallen to its end by step 20"
    assert int(state.step) == 24
    said = [record.message for record in caplog.records if "goes on otherwise" in record.message]
    assert [words.partition(": ")[2] for words in said] == [
        "train.steps 20 (job: 24)",
        "train.seed 0 (job: 1)",
        "train.optimizer.peak_lr 0.001 (job: 0.002)",
    ]
    metas = [checkpoint.read_meta(around.storage.open(around.paths.checkpoint(step))) for step in (20, 24)]
    assert [meta.train.seed for meta in metas] == [0, 1], "each checkpoint tells its own"


def test_a_foreign_folder_is_refused(around: Around, tmp_path: Path) -> None:
    with around.storage.stage(around.paths.checkpoint(5)) as folder:
        for part in ("params", "train_state"):
            (folder / part).mkdir()
            (folder / part / "model.safetensors").write_bytes(b"not ours")
    with pytest.raises(DataError, match=r"no checkpoint of this project: assets/pi05.json is missing"):
        start(make_training(), around)
    with pytest.raises(DataError, match="not an Orbax checkpoint: it has no _METADATA"):
        weights.read(tmp_path / around.paths.checkpoint(5) / "params", MODEL)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, really full when it is full."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


# The writer's failed tasks complain when they are collected, after their event loop has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_keeps_the_last_checkpoint(small_disk: Path) -> None:
    with pytest.raises(Stopped):
        run(make_training(), new_around(small_disk, stop_after=10))
    around, filler = new_around(small_disk), small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2**20))  # a checkpoint takes 3 MB
    with pytest.raises(TemporaryError, match=r"disk full while writing .*/checkpoints/20; nothing that was complete"):
        run(make_training(), around)
    assert checkpoint.steps(around.storage, around.paths.run) == [10]
    assert [path.name for path in around.storage.path(around.paths.checkpoints).iterdir()] == ["10"]
    gc.collect()  # the writer's failed tasks say so now, not when the process ends
    filler.unlink()
    run(make_training(), new_around(small_disk))
    assert checkpoint.steps(around.storage, around.paths.run) == [10, 20]


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(around: Around) -> None:
    wild = TRAIN.optimizer.model_copy(update={"peak_lr": 1e30, "warmup_steps": 0, "clip_norm": 1e30})
    with pytest.raises(NotLearning, match=r"is (nan|inf) at step \d+; no checkpoint of these weights was written"):
        run(make_training(TRAIN.model_copy(update={"optimizer": wild, "log_every": 100})), around)
    assert checkpoint.steps(around.storage, around.paths.run) == []


def test_a_run_that_learns_nothing_is_stopped_with_words(around: Around) -> None:
    idle = TRAIN.optimizer.model_copy(update={"peak_lr": 1e-12, "end_lr": 0.0})
    with pytest.raises(NotLearning, match=r"after 5 steps the loss .* is still that of predicting nothing"):
        run(make_training(TRAIN.model_copy(update={"optimizer": idle, "patience": 5})), around)


def test_a_dataset_of_another_convention_is_refused() -> None:
    with pytest.raises(DataError, match="state is 'joints_and_poses', the job wants 'joints'"):
        datasets.check_convention(CONVENTION, Convention(cameras=()), "dataset x")
