"""The real trainer on 8 virtual CPU devices, a small model and a dataset drawn at random."""

import os

# Read when JAX starts. Compiling takes longer than these few steps, so it is told not to optimise.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
import pytest

from pi05.config import (
    FLOAT32,
    ComputeConfig,
    Convention,
    GemmaConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    TrainJob,
    VitConfig,
)
from pi05.data.batches import Loader, Source, data_stats
from pi05.data.dataset import Dataset, DatasetMeta
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.events import Event, EventWriter, parse
from pi05.jobs.runtime import Stopped
from pi05.sharding import make_mesh
from pi05.simulator import state_names
from pi05.storage import FileStorage, RunPaths
from pi05.tasks import find
from pi05.training.loop import Training

GEMMA = GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16)
MODEL = ModelConfig(
    vlm=GEMMA,
    expert=GEMMA,
    vit=VitConfig(width=16, depth=1, mlp_dim=32, num_heads=1),
    vocab_size=512,
    action_dim=8,
    action_horizon=4,
    max_token_len=64,
)
TRAIN = TrainConfig(
    steps=20,
    batch_size=8,
    optimizer=OptimizerConfig(peak_lr=1e-3, warmup_steps=3),
    fsdp_min_bytes=1024,  # as small as the model: every matrix is sharded
    log_every=1,
    save_every=10,
    keep_every=10,
    state_noise=0.02,
    ema_decay=0.9,
    patience=0,
)
CONVENTION = Convention(cameras=(), state="joints_and_poses")
NAMES = state_names(find("pushcube"), CONVENTION)


def make_dataset(episodes: int = 6, steps: int = 30) -> Dataset:
    random = np.random.default_rng(0)
    rows = episodes * steps
    meta = DatasetMeta(
        task="pushcube",
        convention=CONVENTION,
        renderer="none",
        seeds=tuple(range(episodes)),
        attempts=(),
        versions={},
    )
    states = random.normal(size=(rows, len(NAMES))).astype(np.float32)
    actions = states[:, :8] + random.normal(size=(rows, 8), scale=0.1).astype(np.float32)
    return Dataset(meta, states, actions, np.arange(0, rows + 1, steps), NAMES)


@dataclass
class Around:
    """The process around a training: storage, events, and a signal after a given step."""

    storage: FileStorage
    paths: RunPaths
    stop_after: int | None = None
    stream: io.StringIO = field(default_factory=io.StringIO)

    def __post_init__(self) -> None:
        self.events = EventWriter(self.paths.run, self.stream, clock=lambda: 0.0)

    @property
    def seen(self) -> list[Event]:
        return [event for line in self.stream.getvalue().splitlines() if (event := parse(line))]

    @property
    def told(self) -> list[tuple[int, dict[str, float]]]:
        """The metrics of each report of progress, by step."""
        return [(e.step, e.metrics) for e in self.seen if e.kind == "progress" and e.step and e.metrics]

    def metric(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.told if name in metrics]

    @property
    def losses(self) -> dict[int, float]:
        return {step: metrics["loss"] for step, metrics in self.told if "loss" in metrics}

    @property
    def stopping(self) -> bool:
        return self.stop_after is not None and max(self.losses, default=0) + 1 >= self.stop_after

    def stop(self) -> NoReturn:
        raise Stopped("asked to")

    def hung(self, message: str) -> NoReturn:
        raise AssertionError(message)


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let tests that compile the same step share it."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def around(tmp_path: Path) -> Around:
    return new_around(tmp_path)


def new_around(root: Path, stop_after: int | None = None, run: str = "train-pushcube-000000") -> Around:
    return Around(FileStorage(root.as_uri()), RunPaths(run), stop_after)


def make_training(
    train: TrainConfig = TRAIN,
    devices: int = 8,
    model: ModelConfig = MODEL,
    dataset: Dataset | None = None,
    compute: ComputeConfig = FLOAT32,
) -> Training:
    """Return a training on the first `devices` devices."""
    data = dataset or make_dataset()
    job = TrainJob(
        run="train-pushcube-000000",
        task="pushcube",
        storage="file:///unused",
        convention=CONVENTION,
        dataset="datasets/pushcube/0",
        model=model,
        compute=compute,
        train=train,
    )
    recipe = Recipe(
        model=model,
        convention=CONVENTION,
        stats=data_stats([data], CONVENTION, model.action_horizon),
        tokenizer=Tokenizer.load(TINY),
        sentence=find("pushcube").sentence,
    )
    loader = Loader([Source(data, recipe.sentence)], recipe, train.batch_size, train.seed, train.state_noise)
    return Training(job, loader, make_mesh(train.fsdp_devices, train.batch_size, jax.devices()[:devices]))
