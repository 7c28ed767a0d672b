"""The training loop: from a job and a dataset to checkpoints, one step after the other.

Knows nothing of how the dataset was made or where the process runs.
"""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from pi05.config import TrainJob
from pi05.data import batches
from pi05.data.dataset import Dataset
from pi05.data.transforms import Recipe
from pi05.events import EventWriter
from pi05.model import tree, weights
from pi05.storage import RunPaths, Storage
from pi05.training import checkpoint, meter, processes, saving, sharding
from pi05.training.step import Batch, TrainState, make_step, new_state, state_sharding

log = logging.getLogger("pi05")

_PREFETCH = 2
"""Batches made ahead of the step that uses them."""
_NONE = -1
"""Step of a checkpoint where there is none."""


class Surroundings(Protocol):
    """What the loop needs of the process it runs in."""

    storage: Storage
    paths: RunPaths
    events: EventWriter

    @property
    def stopping(self) -> bool: ...

    def stop(self) -> NoReturn: ...


@dataclass(frozen=True)
class Training:
    """One run's parts, ready to step."""

    job: TrainJob
    dataset: Dataset
    recipe: Recipe
    mesh: Mesh

    def fit(self, state: TrainState, around: Surroundings) -> TrainState:
        """Train from `state` to the last step; save on schedule, at the end and when asked to stop."""
        train, first = self.job.train, int(state.step)
        step_function, metrics = (
            make_step(self.mesh, self.job.model, train),
            meter.Meter(train.patience, time.monotonic),
        )
        with (
            _Prefetch(self._batches(first)) as ahead,
            saving.saver(around, train.keep_every, train.steps) as saver,
        ):
            for done, batch in zip(range(first + 1, train.steps + 1), ahead, strict=False):
                if done == first + 1:
                    processes.compile_together(step_function, state, batch)
                state, values = step_function(state, batch)
                metrics.add(values)
                stops = processes.any_stops(around.stopping, done)
                due = done % train.save_every == 0 or done == train.steps or stops
                if due or done % train.log_every == 0 or done == first + 1:
                    self._report(done, metrics.read(done), around)
                if due:
                    checkpoint.save(saver.stage(done), state, self.recipe, self._meta(done))
                if stops:
                    around.stop()
        return state

    def _batches(self, first_step: int) -> Iterator[Batch]:
        """Return batches on the devices, endlessly."""
        train, place = self.job.train, sharding.batch_sharding(self.mesh)
        part = sharding.own_rows(place, train.batch_size)
        samples = batches.batches(
            self.dataset, self.recipe, train.batch_size, train.seed, train.state_noise, first_step, part
        )
        return (sharding.place_rows(Batch(s.observation, s.actions, s.real), place) for s in samples)

    def _report(self, step: int, values: meter.Metrics, around: Surroundings) -> None:
        if not processes.leads():
            return
        print(meter.line(step, values), flush=True)  # noqa: T201 - the line that people grep
        around.events.emit("progress", step=step, total=self.job.train.steps, unit="steps", metrics=values)

    def _meta(self, step: int) -> checkpoint.CheckpointMeta:
        return checkpoint.CheckpointMeta(
            run=self.job.run,
            task=self.job.task,
            sentence=self.recipe.sentence,
            step=step,
            dataset=self.job.dataset,
            convention=self.job.convention,
            renderer=self.dataset.meta.renderer,
            demo_seeds=self.dataset.meta.seeds,
            model=self.job.model,
            train=self.job.train,
        )


def start(training: Training, around: Surroundings) -> TrainState:
    """Return the state to train from: the newest checkpoint of the run, else base weights, else random ones."""
    storage, job, mesh = around.storage, training.job, training.mesh
    newest = processes.choice_of_first(max(checkpoint.steps(storage, around.paths.run), default=_NONE))
    if newest != _NONE:
        folder = storage.open(around.paths.checkpoint(newest))
        log.info("resuming from checkpoint %d", newest)
        return checkpoint.restore(folder, mesh, job.model, job.train)
    place = state_sharding(mesh, job.model, job.train)
    if job.train.weights:
        folder = storage.open(f"weights/{job.train.weights}")
        params = weights.read(folder / "params", job.model, place.params)
    else:
        params = {
            path: sharding.place_whole(array, place.params[path]) for path, array in random_params(training).items()
        }
    return jax.jit(lambda params: new_state(params, job.model, job.train), out_shardings=place)(params)


def random_params(training: Training) -> dict[str, np.ndarray]:
    """Return random weights, with number embeddings as configured."""
    train = training.job.train
    params = tree.initial(training.job.model, train.seed)
    if train.number_embedding == "fourier":
        numbers = training.recipe.tokenizer.number_tokens
        params = tree.embed_numbers(params, numbers, train.number_frequencies)
    return params


class _Prefetch:
    """Runs an iterator a few items ahead in a thread; an error there is raised here."""

    def __init__(self, source: Iterator[Batch]) -> None:
        self._source = source
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(_PREFETCH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self._thread.start()
        return self._drain()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(timeout=0.05)

    def _fill(self) -> None:
        try:
            for item in self._source:
                self._ready.put(item)
                if self._stop.is_set():
                    return
        except BaseException as error:  # handed over, not swallowed
            self._ready.put(error)

    def _drain(self) -> Iterator[Batch]:
        for _ in itertools.count():
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
