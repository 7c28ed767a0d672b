"""The training loop: from a job and a dataset to checkpoints, one step after the other.

Knows nothing of how the dataset was made or where the process runs.
"""

import hashlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from pi05 import sharding
from pi05.config import ModelConfig, Share, TrainJob
from pi05.data.batches import Loader, Source
from pi05.errors import ConfigError, Unreachable
from pi05.model import tree, weights
from pi05.storage import PARAMS, Storage
from pi05.storage.artefact import MANIFEST
from pi05.training import checkpoint, processes, saving
from pi05.training.held_out import HeldOut
from pi05.training.meter import Meter
from pi05.training.profile import Profile
from pi05.training.reports import Reports
from pi05.training.step import Batch, TrainState, make_step, new_state, placed_state, state_sharding
from pi05.training.surroundings import Surroundings
from pi05.training.watchdog import Computed, Watchdog

log = logging.getLogger("pi05")

_PREFETCH = 2
"""Batches made ahead of the step that uses them."""
_NONE = -1
"""Step of a checkpoint where there is none."""


@dataclass(frozen=True)
class Training:
    """One run's parts, ready to step.

    Attributes:
        job: What was asked for.
        loader: Makes the batches.
        mesh: Devices.
        digests: Of each dataset's manifest, by its key in storage, where it shall not change.
        variables: Of the environment, that its numbers may depend on.
    """

    job: TrainJob
    loader: Loader
    mesh: Mesh
    digests: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def fit(self, state: TrainState, around: Surroundings) -> TrainState:
        """Train from `state` to the last step; save on schedule, at the end and when asked to stop."""
        train, first = self.job.train, int(state.step)
        step_function = make_step(self.mesh, self.job.model, train, self.job.compute)
        reports = Reports(self.job, self.loader, self.mesh.devices.flatten().tolist(), around)
        held_out = HeldOut(self.job, self.loader, self.mesh)
        with (
            _Prefetch(self._batches(first)) as ahead,
            saving.saver(around, train, partial(self._check_datasets, around)) as saver,
            Watchdog(around.hung) as watchdog,
            Profile(train.profile, around).recording() as profile,
        ):
            for done in range(first + 1, train.steps + 1):
                batch = _next(ahead, watchdog, reports.meter)
                if done == first + 1:
                    with reports.meter.pause("compile_seconds"):
                        processes.compile_together(step_function, state, batch)
                profile.before(done)
                with watchdog.giving():
                    state, values = step_function(state, batch)
                reports.meter.add(done, values)
                watchdog.given(cast(Computed, values["loss"]))
                profile.after(done, values, reports.meter)
                stops = processes.any_stops(around.stopping, done)
                last = stops or done == train.steps
                due = last or checkpoint.is_due(done, train)
                looks = held_out.due(done)
                if looks or due or done % train.log_every == 0 or done == first + 1:
                    reports.tell(done, partial(held_out.look, state) if looks else None)
                saver.check()
                if due:
                    with reports.meter.pause("save_seconds"):
                        made = checkpoint.of(state, self.loader.recipe, self.meta(done))
                        saver.save(made, last or checkpoint.state_is_due(done, train), last)
                if stops:
                    around.stop()
        return state

    def _batches(self, first_step: int) -> Iterator[Batch]:
        """Return batches on the devices, endlessly."""
        place = sharding.batch_sharding(self.mesh)
        made = self.loader.batches(first_step)
        return (sharding.place_rows(Batch(s.observation, s.actions, s.real), place) for s in made)

    def _check_datasets(self, around: Surroundings) -> None:
        """Raise DataError when a dataset is not the one that training began with.

        A bucket that does not answer is no reason to end: who resumes compares again. Of several processes one looks.
        Called in a thread, while training goes on.
        """
        if not processes.leads():
            return
        for dataset, digest in self.digests.items():
            try:
                now = manifest_digest(around.storage, dataset)
            except (Unreachable, ConfigError) as error:
                around.events.emit("warning", message=f"whether dataset {dataset} is unchanged is not known: {error}")
            else:
                checkpoint.check_digest(dataset, digest, now, "this training began")

    def meta(self, step: int) -> checkpoint.CheckpointMeta:
        """Return what a checkpoint of a step says of itself."""
        own = self.loader.sources[0]
        return checkpoint.CheckpointMeta(
            run=self.job.run,
            task=self.job.task,
            sentence=own.sentence,
            step=step,
            dataset=self.job.dataset,
            convention=self.job.convention,
            renderer=own.dataset.meta.renderer,
            goal_visible=all(source.dataset.meta.goal_visible for source in self.loader.sources),
            demo_seeds=own.dataset.meta.seeds,
            model=self.job.model,
            compute=self.job.compute,
            train=self.job.train,
            sources=tuple(map(self._trained_on, self.loader.sources, self.job.shares)),
            variables=dict(self.variables),
        )

    def _trained_on(self, source: Source, share: Share) -> checkpoint.TrainedOn:
        return checkpoint.TrainedOn(
            task=share.task,
            sentence=source.sentence,
            dataset=share.dataset,
            digest=self.digests.get(share.dataset, ""),
            weight=share.weight,
            seeds=source.dataset.meta.seeds,
        )


def start(training: Training, around: Surroundings) -> TrainState:
    """Return the state to train from: the newest checkpoint of the run, else base weights, else random ones."""
    storage, job, mesh = around.storage, training.job, training.mesh
    newest = processes.choice_of_first(max(checkpoint.resumable(storage, around.paths.run), default=_NONE))
    if newest != _NONE:
        with checkpoint.borrowed(storage, around.paths.run, newest) as folder:
            log.info("resuming from checkpoint %d", newest)
            checkpoint.check_datasets(folder, training.digests)
            checkpoint.check_variables(folder, training.variables)
            state = checkpoint.restore(folder, mesh, job.model, job.train, job.compute)
            processes.wait_for_all()  # they may share a disk, and so the copy that is removed now
            return state
    target = placed_state(mesh, job.model, job.train, job.compute).params
    params: Mapping[str, jax.Array] = {}
    if job.train.weights:
        params = _base_params(storage.open(f"weights/{job.train.weights}", (PARAMS,)) / PARAMS, job.model, target)
    drawn = {
        path: sharding.place_whole(array.astype(target[path].dtype), target[path].sharding)
        for path, array in random_params(training, target.keys() - params.keys()).items()
    }
    place = state_sharding(mesh, job.model, job.train, job.compute)
    begin = partial(new_state, model=job.model, train=job.train, compute=job.compute)
    return jax.jit(begin, out_shardings=place, donate_argnums=0)({**params, **drawn})


def _base_params(folder: Path, model: ModelConfig, target: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Read base weights; factors of LoRA are read only if there are any, and else are drawn like those of a new model.

    Raises:
        DataError: The weights do not fit the model; factors of another rank do not either.
    """
    found = weights.ranks(folder)
    if found == (0, 0) and found != (wanted := (model.vlm.lora_rank, model.expert.lora_rank)):
        log.info("the base weights have no factors of LoRA: those of rank %d and %d are drawn", *wanted)
        model = tree.without_factors(model)
    return weights.read(folder, model, target)


def random_params(training: Training, paths: Set[str]) -> dict[str, np.ndarray]:
    """Return random weights of some paths, with number embeddings as configured."""
    train = training.job.train
    params = tree.initial(training.job.model, train.seed, paths)
    if train.number_embedding == "fourier" and tree.EMBEDDING in paths:
        numbers = training.loader.recipe.tokenizer.number_tokens
        params = tree.embed_numbers(params, numbers, train.number_frequencies)
    return params


def manifest_digest(storage: Storage, key: str) -> str:
    """Return 64 hex digits that change with any byte of an artefact."""
    return hashlib.sha256(storage.read(f"{key}/{MANIFEST}")).hexdigest()


def _next(ahead: Iterator[Batch], watchdog: Watchdog, meter: Meter) -> Batch:
    """Return the next batch; the wait for it counts when the devices have nothing else to do."""
    begin = time.monotonic()
    batch = next(ahead)
    if watchdog.idle:
        meter.waited(time.monotonic() - begin)
    return batch


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
