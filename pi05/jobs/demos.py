"""Make one dataset: `python -m pi05.jobs.demos job.json`.

Order of work: look whether the dataset is there, check renderer and planner, plan and replay until there are enough
demonstrations, write the dataset. Finished blocks stay in the run's work folder until the dataset is complete: as files
of this machine when one process works on a file:// storage, else as objects that all shards read. Shard 0 makes the
dataset; the others make blocks for it.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from pi05 import simulator
from pi05.config import DemosJob
from pi05.data import dataset as datasets
from pi05.data.demos import Collection, Shard, Team, Wanted, assist, collect
from pi05.data.pool import Planners
from pi05.data.recordings import Recordings
from pi05.data.writer import LEROBOT
from pi05.errors import DataError
from pi05.jobs.runtime import Context, main
from pi05.storage import FileStorage, RunPaths, Storage
from pi05.tasks import DEMO_SEEDS, find

_LOOK = 2.0
"""Seconds between two looks at whether another shard has made a block."""


def make_demos(job: DemosJob, context: Context) -> None:
    """Run the job; nothing is done when the dataset exists and its checksums agree."""
    if context.shard == 0:
        _make_dataset(job, context)
    else:
        _help(job, context)


def _make_dataset(job: DemosJob, context: Context) -> None:
    """Make the dataset, with what other shards have made for it."""
    if not context.storage.exists(job.dataset):
        work = _Work(job, context)
        collection = work.collect()
        with context.storage.stage(job.dataset) as folder:
            names = simulator.stored_names(work.task)
            datasets.write(folder, work.task, names, collection.read(), work.meta(collection))
        _clear(job, context)
    data = datasets.load(context.storage.open(job.dataset))
    datasets.check_convention(data.meta.convention, job.convention, f"dataset {job.dataset}")
    _report(data, context)


def _help(job: DemosJob, context: Context) -> None:
    """Make this shard's blocks for shard 0, unless the dataset is there already."""
    if not context.storage.exists(job.dataset):
        _Work(job, context).assist()
    _clear(job, context)


class _Work:
    """What a demos job has to do.

    Raises:
        ConfigError: The convention, the renderer, the planner or the seeds are not to be had.
        DataError: The source is not usable.
    """

    def __init__(self, job: DemosJob, context: Context) -> None:
        simulator.check(job.convention)
        self._job, self._context = job, context
        self.task = find(job.task)
        self._source = Recordings(Path(job.demos.source), self.task, job.convention) if job.demos.source else None
        if self._source:
            self._source.check()
        self._wanted = Wanted.of(self.task, job.demos, self._source)
        self._share = Shard(context.shard, context.shards, self._wanted)
        for message in _left_out(self._source) if self._source else ():
            context.events.emit("warning", message=message)

    def collect(self) -> Collection:
        """Return the demonstrations, with one progress event each."""

        def on_demo(collection: Collection) -> None:
            kept, tried = len(collection.demos), len(collection.attempts)
            self._context.events.emit(
                "progress", step=kept, total=self._wanted.count, unit="demos", metrics={"yield": kept / tried}
            )

        with self._pool() as pool:
            maker = pool if self._context.shards == 1 else Team(pool, self._share, self._at_work, _LOOK)
            return collect(self._wanted, maker, on_demo, self._context.check_stop)

    def assist(self) -> None:
        """Make the blocks of this shard, with one progress event each."""

        def on_block(made: int, expected: int) -> None:  # no step: how far the run is, shard 0 says
            self._context.events.emit("progress", message=f"made {made} of {expected} blocks")

        with self._pool() as pool:
            assist(self._share, pool, on_block, self._context.check_stop)

    def meta(self, collection: Collection) -> datasets.DatasetMeta:
        """Return where the dataset comes from."""
        convention = self._job.convention
        return datasets.DatasetMeta(
            task=self.task.name,
            convention=convention,
            renderer=simulator.renderer(convention.cameras),
            source=self._source.identity if self._source else "",
            seeds=collection.seeds,
            attempts=tuple(collection.attempts),
            inexact=collection.inexact,
            max_difference=collection.max_difference,
            versions={**simulator.versions(), "lerobot": LEROBOT},
        )

    def _pool(self) -> Planners:
        """Return what makes blocks in this process."""
        job, context = self._job, self._context
        alone = context.shards == 1 and isinstance(context.storage, FileStorage)
        shelf = None if alone else _Shelf(context.storage, f"{RunPaths(job.run).work}/blocks")
        folder = context.storage.scratch(context.paths.work) / "blocks"
        demos = job.demos
        return Planners(
            job.planner_python,
            self.task,
            job.convention,
            folder,
            demos.workers,
            shelf,
            self._source,
            demos.hold,
            demos.disturb,
        )

    def _at_work(self, shard: int) -> bool:
        """Return whether a shard is running."""
        return self._context.storage.leased(RunPaths(self._job.run, shard).lease)


def _left_out(source: Recordings) -> Iterator[str]:
    """Yield which episodes of recordings are not used."""
    if source.twice:
        yield f"{source.path} has {source.twice} episodes of a seed that it has already; one is used"
    if source.outside:
        yield (
            f"{source.path} has {source.outside} episodes whose seeds demonstrations may not use ({DEMO_SEEDS.stop} "
            "and above); they are left out"
        )


class _Shelf:
    """Blocks as objects of the storage, for all shards.

    Args:
        storage: Of the run.
        folder: Where the blocks lie.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def has(self, name: str) -> bool:
        """Return whether some shard has made a block."""
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


def _report(data: datasets.Dataset, context: Context) -> None:
    """Say what the dataset holds and what it cost."""
    meta = data.meta
    if meta.inexact:
        other = f"differed from the recording by up to {meta.max_difference:g}"
        if not meta.max_difference:
            other = "could not be compared with the recording, which has no states or has them as old files do"
        context.events.emit(
            "warning",
            message=f"{meta.inexact} of {len(meta.seeds)} replays succeeded but {other}; the dataset holds the replays",
        )
    metrics = {
        "demos": len(meta.seeds),
        "frames": len(data.states),
        "yield": meta.solver_yield,
        "seconds_per_demo": meta.solver_seconds,
        "replay_seconds_per_demo": meta.replay_seconds,
        "inexact": meta.inexact,
    }
    context.events.emit("result", metrics=metrics)


if __name__ == "__main__":
    main(DemosJob, make_demos)
