"""Training that saves in a thread, beside one that waits for each save, and one that saves nothing, in one run.

A model of 60 million parameters on the CPU, a checkpoint to go on from (four arrays a parameter, 0.9 GB) every 100
steps. Intervals of the three kinds take turns in one training, so that all see the same machine. Stalled is the time
from a finished step until the next one may begin: the copy, here waited for, or the whole save.

    scripts/bench saving [ROUNDS [STEPS]]
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import jax
import numpy as np

from pi05.config import Convention, ModelConfig, OptimizerConfig, TrainConfig, TrainJob
from pi05.data.batches import Loader, Source, data_stats
from pi05.data.dataset import Dataset, DatasetMeta
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.events import EventWriter
from pi05.model import tree
from pi05.sharding import make_mesh
from pi05.simulator import state_names
from pi05.storage import FileStorage, RunPaths, Storage
from pi05.tasks import find
from pi05.training import loop, saving, snapshot
from pi05.training.checkpoint import Checkpoint

PRESET = Path(__file__).parents[1] / "pi05ctl/spec/presets/small.toml"
CONVENTION = Convention(cameras=(), state="joints_and_poses")
RUN = "train-pushcube-000000"
BATCH = 6
KINDS = ("in a thread", "waited for", "none")


@dataclass
class Around:
    """The process around the training."""

    storage: Storage
    paths: RunPaths = field(default_factory=lambda: RunPaths(RUN))
    events: EventWriter = field(default_factory=lambda: EventWriter(RUN, StringIO(), time.time))
    stopping: bool = False

    def stop(self) -> NoReturn:
        """Never called."""
        raise AssertionError

    def hung(self, message: str) -> NoReturn:
        """End a benchmark that stands still."""
        raise SystemExit(message)


class Clocked(saving.Saver):
    """Saves the kinds in turn and notes when each save began and ended."""

    marks: ClassVar[list[tuple[str, float, float]]] = []

    def save(self, what: Checkpoint, whole: bool, last: bool) -> None:
        """Save, wait for the save, or do nothing."""
        kind, begin = KINDS[len(self.marks) % len(KINDS)], time.perf_counter()
        if kind != "none" or last:
            super().save(what, whole, last)
        if kind == "waited for":
            self.wait()
        self.marks.append((kind, begin, time.perf_counter()))


def training(steps: int, every: int) -> loop.Training:
    """Return a training of preset small's sizes without cameras, on data drawn at random."""
    random, names = np.random.default_rng(0), state_names(find("pushcube"), CONVENTION)
    states = random.normal(size=(600, len(names))).astype(np.float32)
    meta = DatasetMeta(
        task="pushcube", convention=CONVENTION, renderer="none", seeds=tuple(range(10)), attempts=(), versions={}
    )
    data = Dataset(meta, states, states[:, :8].copy(), np.arange(0, 601, 60), names)
    model = ModelConfig.model_validate(tomllib.loads(PRESET.read_text())["model"])
    train = TrainConfig(
        steps=steps,
        batch_size=BATCH,
        optimizer=OptimizerConfig(warmup_steps=10),
        log_every=every,
        save_every=every,
        patience=0,
    )
    job = TrainJob(
        run=RUN,
        task="pushcube",
        storage="file:///unused",
        convention=CONVENTION,
        dataset="datasets/pushcube/0",
        model=model,
        train=train,
    )
    statistics_of_data = data_stats([data], CONVENTION, model.action_horizon)
    recipe = Recipe(model, CONVENTION, statistics_of_data, Tokenizer.load(TINY), find("pushcube").sentence)
    loader = Loader([Source(data, recipe.sentence)], recipe, BATCH, 0, 0.0)
    return loop.Training(job, loader, make_mesh(1, BATCH, jax.devices()[:1]))


def main() -> None:
    """Run the training and print what saving costs it."""
    rounds, every = (int(word) for word in (*sys.argv[1:], "3", "100")[:2])
    copied: Any = snapshot.copied
    snapshot.copied = lambda arrays: jax.block_until_ready(copied(arrays))
    saving.Saver = Clocked
    made = training((1 + rounds * len(KINDS)) * every, every)
    with tempfile.TemporaryDirectory() as folder:
        around = Around(FileStorage(Path(folder).as_uri()))
        made.fit(loop.start(made, around), around)
    report(tree.count(made.job.model), every)


def report(parameters: int, every: int) -> None:
    """Print each kind's intervals, and the shares of the wall time."""
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    stalls: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for (kind, begin, end), (_, following, _) in itertools.pairwise(Clocked.marks):
        seconds[kind].append(following - begin)
        stalls[kind].append(end - begin)
    share = {kind: sum(stalls[kind]) / sum(seconds[kind]) for kind in KINDS}
    for kind in KINDS:
        walls, stalled = (", ".join(f"{one:.2f}" for one in column[kind]) for column in (seconds, stalls))
        print(f"{kind}: {walls} s for {every} steps, stalled {stalled} s ({share[kind]:.2%})")
    calm = statistics.median(seconds["none"])
    longer = {kind: round(statistics.median(seconds[kind]) / calm - 1, 4) for kind in KINDS[:2]}
    figures = {
        "stalled_share": round(share["in a thread"], 4),
        "stalled_share_waiting": round(share["waited for"], 4),
        "longer": longer["in a thread"],
        "longer_waiting": longer["waited for"],
        "seconds_per_step": round(calm / every, 3),
        "parameters": parameters,
    }
    print(json.dumps({"name": "saving", "ratio": round(share["waited for"] / share["in a thread"], 1), **figures}))


if __name__ == "__main__":
    main()
