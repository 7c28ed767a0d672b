"""What a job reads and what it makes: is the one there before it is started, and the other after it said it is done?

A missing dataset is refused here in a second instead of in a process that has loaded a simulator first.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pi05.config import DemosJob, EvalJob, TrainConfig, TrainJob
from pi05.errors import DataError
from pi05.storage import RunPaths, Storage
from pi05ctl.spec.render import PipelineJob, Rendered, stages
from pi05ctl.stored import evaluations
from pi05ctl.stored.artefacts import push_command


def missing(run: Rendered, storage: Storage) -> str | None:
    """Return all that the run needs and does not find, with the remedies; None when all is there.

    A stage of a pipeline finds what the stages before it will make.
    """
    made: dict[str, object] = {}
    problems: dict[str, None] = {}  # each once, in order
    for stage in stages(run) or (run,):
        problems |= dict.fromkeys(_problems(stage, storage, made))
        made[_made_by(stage)] = stage.job
    return "; ".join(problems) or None


def absent(run: Rendered, storage: Storage) -> str | None:
    """Return the first thing that a run reads, is not there and another run would make; None when all is there."""
    job = run.job
    datasets = [share.dataset for share in job.shares] if isinstance(job, TrainJob) else []
    datasets += [job.dataset] if isinstance(job, EvalJob) else []
    for key in datasets:
        if not storage.exists(key):
            return key
    if isinstance(job, EvalJob) and job.eval.policy != "oracle":
        checkpoints = RunPaths(job.train_run).checkpoints
        return None if storage.children(checkpoints) else checkpoints
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
    return _last_made(job, storage)


def _last_made(job: PipelineJob, storage: Storage) -> bool:
    """Return whether what a pipeline is for is there: its last stage may have gone on with other settings since."""
    last = job.stages[-1]
    if isinstance(last, TrainJob):
        return max(storage.numbered(RunPaths(last.run).checkpoints), default=0) >= last.train.steps
    return not isinstance(last, EvalJob) or _evaluated(last, storage)


def _evaluated(job: EvalJob, storage: Storage) -> bool:
    """Return whether every episode of an evaluation is there."""
    try:
        return evaluations.read(storage, job.run).complete
    except DataError:
        return False


def _made_by(run: Rendered) -> str:
    """Return the name under which other jobs read what a run makes."""
    return run.job.dataset if isinstance(run.job, DemosJob) else run.run


def _problems(run: Rendered, storage: Storage, made: Mapping[str, object]) -> Iterator[str]:
    """Yield what one run needs and neither finds nor is `made` before it."""
    job = run.job
    if isinstance(job, DemosJob):
        yield from _missing_planner(run, job, storage)
    elif isinstance(job, TrainJob):
        for share in job.shares:
            yield from _missing_dataset(run, share.task, share.dataset, storage, made)
        yield from _missing_weights(run, job, storage)
    elif isinstance(job, EvalJob):
        lacking = [*_missing_dataset(run, run.spec.task, job.dataset, storage, made)]
        if not lacking and job.eval.policy != "oracle":
            lacking += _missing_checkpoint(run, job, storage, made)
        yield from lacking


def _missing_planner(run: Rendered, job: DemosJob, storage: Storage) -> Iterator[str]:
    """Look for the planner on this machine; in a cluster it is part of the image, and recordings need none."""
    if (
        run.spec.target != "local"
        or job.demos.source
        or Path(job.planner_python).exists()
        or storage.exists(job.dataset)
    ):
        return
    yield (
        f"the planner's interpreter {job.planner_python} does not exist; scripts/quickstart sets it up, "
        "and planner_python in pi05.toml names another one"
    )


def _missing_dataset(run: Rendered, task: str, key: str, storage: Storage, made: Mapping[str, object]) -> Iterator[str]:
    if key not in made and not storage.exists(key):
        if run.spec.overrides.get("demos.dataset") == key.rpartition("/")[2]:
            there = ", ".join(storage.artefacts(f"datasets/{task}")) or "none"
            yield (
                f"there is no dataset {key} (demos.dataset) in {storage.url}; of {task} there are: {there}. Import it: "
                f"pi05ctl datasets import FOLDER --task {task}"
            )
            return
        spec = run.spec.model_copy(update={"task": task})
        yield f"there is no dataset {key} yet; make it: {spec.command('demos')}"


def _missing_weights(run: Rendered, job: TrainJob, storage: Storage) -> Iterator[str]:
    """Look for what nobody can make but who has published it."""
    names = [name for name in (job.train.weights, job.train.tokenizer) if name]
    lacking = [name for name in names if not storage.exists(f"weights/{name}")]
    if lacking:
        what = " and no ".join(f"weights/{name}" for name in lacking)
        remedy = "; then ".join(f"{push_command(name)} --target {run.spec.target}" for name in lacking)
        yield f"{storage.url} has no {what}; put them there: {remedy}; or use --preset tiny, which needs none"


def _missing_checkpoint(run: Rendered, job: EvalJob, storage: Storage, made: Mapping[str, object]) -> Iterator[str]:
    step, there = job.eval.step, storage.children(RunPaths(job.train_run).checkpoints)
    training = made.get(job.train_run)
    if isinstance(training, TrainJob):
        if step is not None and str(step) not in there and not _keeps(training.train, step):
            yield (
                f"{job.train_run} will have no checkpoint of step {step}: it keeps the last, {training.train.steps}, "
                f"and multiples of train.keep_every={training.train.keep_every}"
            )
    elif not there:
        yield f"{job.train_run} has no checkpoint to evaluate; train it: {run.spec.command('train')}"
    elif step is not None and str(step) not in there:
        yield f"{job.train_run} has no checkpoint of step {step}; it has {', '.join(sorted(there, key=len))}"


def _keeps(train: TrainConfig, step: int) -> bool:
    """Return whether a training that is over has a checkpoint of a step."""
    return step == train.steps or (0 < step < train.steps and not (step % train.save_every or step % train.keep_every))
