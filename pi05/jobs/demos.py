"""Make one dataset: `python -m pi05.jobs.demos job.json`.

Order of work: look whether the dataset is there, check the planner's environment, plan and replay until there are
enough demonstrations, write the dataset. Planned blocks stay in the run's work folder until the dataset is complete:
as files of this machine when one process works on a file:// storage, else as objects that all shards read. Shard 0
makes the dataset; the others plan for it.
"""

import contextlib
import shutil
from importlib.metadata import version

from pi05 import simulator
from pi05.config import DemosJob
from pi05.data import dataset as datasets
from pi05.data.demos import Collection, PlannerPool, Share, Team, assist, collect
from pi05.errors import DataError
from pi05.jobs.runtime import Context, main
from pi05.storage import FileStorage, RunPaths, Storage
from pi05.tasks import Task, find

_LOOK = 2.0
"""Seconds between two looks at whether another shard has planned a block."""


def make_demos(job: DemosJob, context: Context) -> None:
    """Run the job; nothing is done when the dataset exists and its checksums agree."""
    if context.shard == 0:
        _make_dataset(job, context)
    else:
        _help(job, context)


def _make_dataset(job: DemosJob, context: Context) -> None:
    """Make the dataset, with what other shards have planned for it."""
    task = find(job.task)
    if not context.storage.exists(job.dataset):
        simulator.check(job.convention)
        collection = _collect(job, context, task)
        with context.storage.stage(job.dataset) as folder:
            meta = _meta(job, collection)
            datasets.write(folder, task, simulator.state_names(task, job.convention), collection.demos, meta)
        _clear(job, context)
    data = datasets.load(context.storage.open(job.dataset))
    datasets.check_convention(data.meta.convention, job.convention, f"dataset {job.dataset}")
    _report(data, context)


def _help(job: DemosJob, context: Context) -> None:
    """Plan this shard's blocks for shard 0, unless the dataset is there already."""
    task = find(job.task)

    def on_block(planned: int, expected: int) -> None:  # no step: how far the run is, shard 0 says
        context.events.emit("progress", message=f"planned {planned} of {expected} blocks")

    if not context.storage.exists(job.dataset):
        with _planners(job, context, task) as pool:
            assist(task, job.demos, pool, _share(job, context), on_block, context.check_stop)
    _clear(job, context)


def _collect(job: DemosJob, context: Context, task: Task) -> Collection:
    """Plan and replay, with one progress event a demonstration."""

    def on_demo(collection: Collection) -> None:
        kept, tried = len(collection.demos), len(collection.attempts)
        context.events.emit(
            "progress", step=kept, total=job.demos.count or task.demos, unit="demos", metrics={"yield": kept / tried}
        )

    with _planners(job, context, task) as pool:
        planner = pool if context.shards == 1 else _team(job, context, pool)
        return collect(task, job.convention, job.demos, planner, on_demo, context.check_stop)


def _planners(job: DemosJob, context: Context, task: Task) -> PlannerPool:
    """Return the planners of this process."""
    storage = context.storage
    alone = context.shards == 1 and isinstance(storage, FileStorage)
    shelf = None if alone else _Shelf(storage, f"{RunPaths(job.run).work}/blocks")
    folder = storage.scratch(context.paths.work) / "blocks"
    return PlannerPool(job.planner_python, task, job.convention.robot, folder, job.demos.workers, shelf)


def _team(job: DemosJob, context: Context, pool: PlannerPool) -> Team:
    """Return the planners of all shards."""

    def at_work(shard: int) -> bool:
        return context.storage.leased(RunPaths(job.run, shard).lease)

    return Team(pool, _share(job, context), at_work, _LOOK)


def _share(job: DemosJob, context: Context) -> Share:
    """Return which blocks are this process's."""
    return Share(context.shard, context.shards, job.demos.first_seed, job.demos.block)


class _Shelf:
    """Blocks as objects of the storage, for all shards.

    Args:
        storage: Of the run.
        folder: Where the blocks lie.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def has(self, name: str) -> bool:
        """Return whether some shard has planned a block."""
        return self._storage.exists(self._key(name))

    def get(self, name: str) -> bytes | None:
        """Return a block, or None."""
        try:
            return self._storage.read(self._key(name)) if self.has(name) else None
        except DataError:  # cleared by another shard in this moment
            return None

    def put(self, name: str, content: bytes) -> None:
        """Keep a block; one of the same seeds is the same block, or a damaged one."""
        self._storage.write(self._key(name), content)

    def _key(self, name: str) -> str:
        return f"{self._folder}/{name}.zip"


def _clear(job: DemosJob, context: Context) -> None:
    """Remove this process's files, and all shards' blocks once the dataset exists, however late this one ends."""
    shutil.rmtree(context.storage.scratch(context.paths.work), ignore_errors=True)
    if context.storage.exists(job.dataset):
        with contextlib.suppress(OSError):  # another shard does it, too, in this moment
            context.storage.delete(RunPaths(job.run).work)


def _meta(job: DemosJob, collection: Collection) -> datasets.DatasetMeta:
    """Return where the dataset comes from."""
    return datasets.DatasetMeta(
        task=job.task,
        convention=job.convention,
        renderer=simulator.RENDERER,
        seeds=tuple(demo.seed for demo in collection.demos),
        attempts=tuple(collection.attempts),
        inexact=collection.inexact,
        max_difference=collection.max_difference,
        versions={**simulator.versions(), "lerobot": version("lerobot")},
    )


def _report(data: datasets.Dataset, context: Context) -> None:
    """Say what the dataset holds and what it cost."""
    meta = data.meta
    if meta.inexact:
        context.events.emit(
            "warning",
            message=f"{meta.inexact} of {len(meta.seeds)} replays succeeded but differed from the plan by up to "
            f"{meta.max_difference:g}; the dataset holds the replays",
        )
    metrics = {
        "demos": len(meta.seeds),
        "frames": len(data.states),
        "yield": meta.solver_yield,
        "seconds_per_demo": meta.solver_seconds,
        "inexact": meta.inexact,
    }
    context.events.emit("result", metrics=metrics)


if __name__ == "__main__":
    main(DemosJob, make_demos)
