"""What steps were like -> an event, a line for people, a file for each one that changed nothing, or the end of a run.

Of several processes the first speaks of steps; each speaks of what is wrong with its own GPUs.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import jax

from pi05 import chips, nvml
from pi05.config import TrainJob
from pi05.data.batches import Loader
from pi05.errors import Unreachable
from pi05.model import flops
from pi05.training import memory, processes
from pi05.training.meter import Meter, Skipped, Work, line
from pi05.training.step import trainable_paths
from pi05.training.surroundings import Surroundings, warn


class Reports:
    """Tells how one training goes.

    Args:
        job: What was asked for.
        loader: Knows of which rows a step was made.
        devices: That it trains on.
        around: Where it is told.

    Attributes:
        meter: Collects what steps say.
    """

    def __init__(self, job: TrainJob, loader: Loader, devices: Sequence[Any], around: Surroundings) -> None:
        self._job, self._loader, self._around = job, loader, around
        self.meter = Meter(_work(job, loader, devices), job.train.patience, time.monotonic)
        self._own = [device for device in devices if device.process_index == jax.process_index()]
        self._gpus = nvml.Watch(nvml.driver())

    def tell(self, step: int, held_out: Callable[[], float] | None = None) -> None:
        """Say what the steps since the last call were like, and what `held_out` returns.

        Raises:
            NotLearning: The run cannot succeed.
        """
        metrics, skipped = self.meter.read()
        for one in skipped if processes.leads() else ():
            self._write_down(one)
        self.meter.check(step, metrics)
        if held_out is not None:
            with self.meter.pause("held_out_seconds"):
                metrics["loss_held_out"] = held_out()
        seen, troubles = self._gpus.look()
        for trouble in troubles:
            self._around.events.emit("warning", message=trouble)
        if not processes.leads():
            return
        metrics |= memory.in_use(self._own) | nvml.metrics(seen)
        print(line(step, metrics), flush=True)  # noqa: T201 - the line that people grep
        told = {"gpus": [gpu.short() for gpu in seen]} if seen else {}
        total = self._job.train.steps
        self._around.events.emit("progress", step=step, total=total, unit="steps", metrics=metrics, **told)

    def _write_down(self, skipped: Skipped) -> None:
        """Leave in storage which rows of which dataset a step was made of that changed nothing."""
        key = self._around.paths.skipped(skipped.step)
        batch = self._loader.taken(skipped.step - 1)  # the first step takes batch 0
        rows = {share.dataset: rows.tolist() for share, rows in zip(self._job.shares, batch, strict=True)}
        values = {name: value if name == "step" else str(value) for name, value in asdict(skipped).items()}
        words = f"step {skipped.step} changed nothing: loss {skipped.loss}, grad_norm {skipped.grad_norm}"
        try:
            self._around.storage.write(key, json.dumps({**values, "rows": rows}).encode())
            words += f"; its rows are in {key}"
        except Unreachable as error:
            words += f"; its rows could not be written: {error}"
        warn(self._around.events, words)


def _work(job: TrainJob, loader: Loader, devices: Sequence[Any]) -> Work:
    """Return what one step of all devices is."""
    train, cameras = job.train, len(job.convention.cameras)
    trained = trainable_paths(job.model, train.freeze)
    prompt = loader.recipe.prompt_length
    count = flops.of_step(job.model, cameras, prompt, train.batch_size, train.draws_per_sample, trained)
    peak = chips.peak_of(devices[0].device_kind)
    return Work(train.batch_size, count, peak and peak * len(devices))
