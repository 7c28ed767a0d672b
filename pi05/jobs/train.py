"""Train Pi0.5 on one dataset: `python -m pi05.jobs.train job.json`.

Order of work: look whether the last checkpoint is there, meet the other processes where there are any, check devices
and batch, verify the dataset and its convention, compute the statistics, find the state to start from (checkpoint, base
weights, random), train.
"""

import logging
from pathlib import Path

from pi05.config import TrainJob
from pi05.data import dataset as datasets
from pi05.data.batches import data_stats
from pi05.data.tokenizer import TINY, Tokenizer
from pi05.data.transforms import Recipe
from pi05.errors import TemporaryError
from pi05.jobs.runtime import Context, main
from pi05.model import tree
from pi05.storage import Storage
from pi05.tasks import find
from pi05.training import checkpoint, loop
from pi05.training.processes import Company, check_same
from pi05.training.sharding import make_mesh

log = logging.getLogger("pi05")


def train(job: TrainJob, context: Context) -> None:
    """Run the job; nothing is done when its last checkpoint exists."""
    if job.train.steps in checkpoint.steps(context.storage, job.run):
        context.storage.open(context.paths.checkpoint(job.train.steps))
        log.info("checkpoint %d is there already", job.train.steps)
        return

    def on_lost(message: str) -> None:
        log.error("%s", message)
        context.events.emit("failed", message=message, exit_code=TemporaryError.exit_code)

    with Company(context.process, context.processes, context.coordinator, on_lost).together():
        check_same(job.model_dump_json())
        _train(job, context)


def _train(job: TrainJob, context: Context) -> None:
    """Train from where it stopped to the last step."""
    mesh = make_mesh(job.train.fsdp_devices, job.train.batch_size)
    data = datasets.load(context.storage.open(job.dataset))
    datasets.check_convention(data.meta.convention, job.convention, f"dataset {job.dataset}")
    recipe = Recipe(
        model=job.model,
        convention=job.convention,
        stats=data_stats(data, job.convention, job.model.action_horizon),
        tokenizer=_tokenizer(job, context.storage),
        sentence=find(job.task).sentence,
    )
    log.info(
        "%s parameters, %d episodes, %d samples, devices %s",
        f"{tree.count(job.model):,}",
        len(data.starts) - 1,
        len(data.states),
        dict(mesh.shape),
    )
    run = loop.Training(job, data, recipe, mesh)
    run.fit(loop.start(run, context), context)


def _tokenizer(job: TrainJob, storage: Storage) -> Tokenizer:
    """Return the configured tokenizer, verified, or the small one that ships with the project."""
    if job.train.tokenizer is None:
        return Tokenizer.load(TINY)
    folder: Path = storage.open(f"weights/{job.train.tokenizer}")
    return Tokenizer.load(folder / f"{job.train.tokenizer}.model")


if __name__ == "__main__":
    main(TrainJob, train)
