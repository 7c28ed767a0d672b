"""What a job reads and what it makes: is the one there before it is started, and the other after it said it is done?

A missing dataset is refused here in a second instead of in a process that has loaded a simulator first.
"""

from collections.abc import Sequence
from pathlib import Path

from pi05.config import DemosJob, EvalJob, Share, TrainJob
from pi05.errors import DataError
from pi05.storage import RunPaths, Storage
from pi05ctl.spec.render import PipelineJob, Rendered
from pi05ctl.stored import evaluations


def missing(run: Rendered, storage: Storage) -> str | None:
    """Return what the run needs and does not find, with the remedy; None when all is there."""
    job, spec = run.job, run.spec
    if isinstance(job, PipelineJob):
        demos, train, _ = job.stages
        others = _missing_datasets(run, train.others, storage)
        return others or _missing_weights(train, storage) or _missing_planner(run, demos, storage)
    if isinstance(job, DemosJob):
        return _missing_planner(run, job, storage)
    if isinstance(job, TrainJob):
        return _missing_datasets(run, job.shares, storage) or _missing_weights(job, storage)
    if not storage.exists(job.dataset):
        return f"there is no dataset {job.dataset} yet; make it: {spec.command('demos')}"
    if job.eval.policy != "oracle":
        return _missing_checkpoint(run, job, storage)
    return None


def made(run: Rendered, storage: Storage) -> bool:
    """Return whether what the run makes is in storage (it may have been deleted since)."""
    job = run.job
    if isinstance(job, DemosJob):
        return storage.exists(job.dataset)
    if isinstance(job, TrainJob):
        return storage.exists(RunPaths(job.run).checkpoint(job.train.steps))
    if isinstance(job, EvalJob):
        return _evaluated(job, storage)
    return True


def _evaluated(job: EvalJob, storage: Storage) -> bool:
    """Return whether every episode of an evaluation is there."""
    try:
        return evaluations.read(storage, job.run).complete
    except DataError:
        return False


def _missing_planner(run: Rendered, job: DemosJob, storage: Storage) -> str | None:
    """Look for the planner on this machine; in a cluster it is part of the image."""
    if run.spec.target != "local" or Path(job.planner_python).exists() or storage.exists(job.dataset):
        return None
    return (
        f"the planner's interpreter {job.planner_python} does not exist; scripts/quickstart sets it up, "
        "and planner_python in pi05.toml names another one"
    )


def _missing_datasets(run: Rendered, shares: Sequence[Share], storage: Storage) -> str | None:
    """Return the first dataset that is not there, and how to make it."""
    for share in shares:
        if not storage.exists(share.dataset):
            spec = run.spec.model_copy(update={"task": share.task})
            return f"there is no dataset {share.dataset} yet; make it: {spec.command('demos')}"
    return None


def _missing_weights(job: TrainJob, storage: Storage) -> str | None:
    names = [name for name in (job.train.weights, job.train.tokenizer) if name]
    absent = [f"weights/{name}" for name in names if not storage.exists(f"weights/{name}")]
    if not absent:
        return None
    return (
        f"{storage.url} has no {' and no '.join(absent)}; put them there (pi05ctl weights push --help), or "
        "use --preset tiny, which needs none"
    )


def _missing_checkpoint(run: Rendered, job: EvalJob, storage: Storage) -> str | None:
    paths = RunPaths(job.train_run)
    steps = storage.children(paths.checkpoints)
    if not steps:
        train = run.spec.command("train")
        return f"{job.train_run} has no checkpoint to evaluate; train it: {train}"
    if job.eval.step is not None and str(job.eval.step) not in steps:
        there = ", ".join(sorted(steps, key=len))
        return f"{job.train_run} has no checkpoint of step {job.eval.step}; it has {there}"
    return None
