"""Make one dataset: `python -m pi05.jobs.demos job.json`.

Order of work: look whether the dataset is there, check the planner's environment, plan and replay until there are
enough demonstrations, write the dataset. Planned blocks stay in the run's work folder until the dataset is complete.
"""

from importlib.metadata import version

from pi05 import simulator
from pi05.config import DemosJob
from pi05.data import dataset as datasets
from pi05.data.demos import Collection, PlannerPool, collect
from pi05.jobs.runtime import Context, main
from pi05.tasks import Task, find


def make_demos(job: DemosJob, context: Context) -> None:
    """Run the job; nothing is done when the dataset exists and its checksums agree."""
    task = find(job.task)
    if not context.storage.exists(job.dataset):
        simulator.check(job.convention)
        collection = _collect(job, context, task)
        with context.storage.stage(job.dataset) as folder:
            meta = _meta(job, collection)
            datasets.write(folder, task, simulator.state_names(task, job.convention), collection.demos, meta)
        context.storage.delete(context.paths.work)
    data = datasets.load(context.storage.open(job.dataset))
    datasets.check_convention(data.meta.convention, job.convention, f"dataset {job.dataset}")
    _report(data, context)


def _collect(job: DemosJob, context: Context, task: Task) -> Collection:
    """Plan and replay, with one progress event a demonstration."""

    def on_demo(collection: Collection) -> None:
        kept, tried = len(collection.demos), len(collection.attempts)
        context.events.emit(
            "progress", step=kept, total=job.demos.count or task.demos, unit="demos", metrics={"yield": kept / tried}
        )

    folder = context.storage.scratch(context.paths.work) / "blocks"
    with PlannerPool(job.planner_python, task, job.convention.robot, folder, job.demos.workers) as planner:
        return collect(task, job.convention, job.demos, planner, on_demo, context.check_stop)


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
