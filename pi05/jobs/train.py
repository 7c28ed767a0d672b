"""Train Pi0.5 on one dataset or more: `python -m pi05.jobs.train job.json`.

Order of work: look whether the last checkpoint is there, meet the other processes where there are any, check that the
GPUs are there that were asked for, fetch what earlier starts have compiled, check devices and batch, verify the
datasets and their conventions, decode their frames unless that was done before, compute the statistics, find the state
to start from (checkpoint, base weights, random), train.
"""

import contextlib
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pi05 import simulator, variables
from pi05.config import Share, TrainJob
from pi05.data import dataset as datasets
from pi05.data.batches import Loader, Source, data_stats
from pi05.data.frames import Frames, open_frames
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.errors import CompanyLost, DataError, TemporaryError
from pi05.jobs import compiled, gpus
from pi05.jobs.runtime import Context, main
from pi05.model import tree
from pi05.sharding import batch_sharding, make_mesh, own_rows
from pi05.storage import Storage
from pi05.tasks import find
from pi05.training import checkpoint, loop, memory
from pi05.training.company import Company
from pi05.training.processes import check_same, leads
from pi05.training.step import trainable_paths

log = logging.getLogger("pi05")

_FRAMES = "cache/frames"
"""Where decoded frames are kept, for all runs of a storage."""


def train(job: TrainJob, context: Context) -> None:
    """Run the job; nothing is done when its last checkpoint exists."""
    if job.train.steps in checkpoint.steps(context.storage, job.run):
        checkpoint.check(context.storage, job.run, job.train.steps)
        log.info("checkpoint %d is there already", job.train.steps)
        return
    with Company(context.process, context.processes, context.coordinator, _lost(context)).together():
        gpus.check(context.gpus)
        check_same(job.model_dump_json())
        with (
            compiled.kept(context.storage),
            assembled(job, context) as run,
            memory.advised(memory.for_training(job, run.mesh.size)),
        ):
            run.fit(loop.start(run, context), context)


def _lost(context: Context) -> Callable[[str], None]:
    """Return what says the last words of a process that has lost the others."""
    return partial(context.abandon, exit_code=CompanyLost.exit_code)


@contextlib.contextmanager
def assembled(job: TrainJob, context: Context) -> Iterator[loop.Training]:
    """Yield a training of the job's datasets on the devices there are, ready to start."""
    mesh = make_mesh(job.train.fsdp_devices, job.train.batch_size)
    data = [_dataset(job, share, context.storage) for share in job.shares]
    with contextlib.ExitStack() as opened:
        frames = [_frames(job, one, context, opened) for one in data]
        loader = _loader(job, context, data, frames, own_rows(batch_sharding(mesh), job.train.batch_size))
        log.info(
            "%s parameters, %s of them trained, %d episodes, %d samples of %s, devices %s",
            f"{tree.count(job.model):,}",
            f"{_trained(job):,}",
            sum(len(one.meta.seeds) for one in data),
            sum(len(one.states) for one in data),
            ", ".join(one.meta.task for one in data),
            dict(mesh.shape),
        )
        digests = {share.dataset: loop.manifest_digest(context.storage, share.dataset) for share in job.shares}
        yield loop.Training(job, loader, mesh, digests, variables.told(os.environ))


def _trained(job: TrainJob) -> int:
    """Return how many parameters change."""
    table = tree.leaves(job.model)
    return sum(math.prod(table[path].shape) for path in trainable_paths(job.model, job.train.freeze))


def _dataset(job: TrainJob, share: Share, storage: Storage) -> datasets.Dataset:
    """Return a verified dataset with the states that the policy is told; no image is read.

    Raises:
        DataError: It is of another task or convention.
    """
    data = datasets.load(storage.open(share.dataset))
    datasets.check_convention(data.meta.convention, job.convention, f"dataset {share.dataset}")
    if data.meta.task != share.task:
        raise DataError(f"dataset {share.dataset} is of task {data.meta.task}, {share.task} was to be learned from it")
    return datasets.with_states(data, simulator.state_names(find(share.task), job.convention))


def _frames(job: TrainJob, data: datasets.Dataset, context: Context, opened: contextlib.ExitStack) -> Frames | None:
    """Return the decoded images of a dataset, of the model's size; None when the policy does not see."""
    if not job.convention.cameras:
        return None
    assert data.folder is not None

    def say(done: int, total: int) -> None:
        if leads():
            context.events.emit("progress", step=done, total=total, unit="frames")

    frames = open_frames(
        data.folder,
        job.convention.cameras,
        (job.convention.image_size, job.model.image_size),
        context.storage.scratch(_FRAMES),
        say,
        partial(_check_stop, context),
    )
    return opened.enter_context(frames)


def _check_stop(context: Context) -> None:
    """Raise Stopped when a signal came; of several processes TemporaryError: the others do not stop here, too."""
    if context.stopping and context.processes > 1:
        raise TemporaryError("stopped by a signal while frames were decoded; the next start decodes them again")
    context.check_stop()


def _loader(
    job: TrainJob, context: Context, data: list[datasets.Dataset], frames: Sequence[Frames | None], rows: slice
) -> Loader:
    """Return what makes the batches; raise DataError when the datasets do not go together."""
    if len(renderers := {one.meta.renderer: one.meta.task for one in data}) > 1:
        found = " and of ".join(f"{task} are by {name}" for name, task in renderers.items())
        raise DataError(f"images of {found}; one renderer is required: make the demonstrations of one of them again")
    recipe = Recipe(
        model=job.model,
        convention=job.convention,
        stats=data_stats(data, job.convention, job.model.action_horizon, job.train.held_out),
        tokenizer=_tokenizer(job, context.storage),
        sentence=find(job.task).sentence,
    )
    sources = [
        Source(one, find(share.task).sentence, seen, share.weight)
        for one, share, seen in zip(data, job.shares, frames, strict=True)
    ]
    train = job.train
    return Loader(sources, recipe, train.batch_size, train.seed, train.state_noise, rows, train.held_out)


def _tokenizer(job: TrainJob, storage: Storage) -> Tokenizer:
    """Return the configured tokenizer, verified, or the small one that ships with the project."""
    if job.train.tokenizer is None:
        return Tokenizer.load(TINY)
    folder: Path = storage.open(f"weights/{job.train.tokenizer}")
    return Tokenizer.load(folder / f"{job.train.tokenizer}.model")


if __name__ == "__main__":
    main(TrainJob, train)
