"""RunSpec + Settings -> the run's name and its job.json, byte for byte; no disk, no clock, no network.

A run is named by its job.json, less what cannot change its result: where it is stored and runs (storage, target,
interpreters), how it is computed (compute, but for its dtype), how many processes share the work (demos.block,
demos.workers, train.fsdp_devices, eval.environments, eval.workers), what is only looked at (train.held_out_every,
train.profile) and the names that follow from the rest. So two spellings of one wish are one run, and submitting twice
is harmless.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from pi05.config import (
    AnyJob,
    DemosJob,
    EvalJob,
    Job,
    Natural,
    Section,
    Share,
    TrainJob,
    explain,
)
from pi05ctl.errors import UsageError
from pi05ctl.spec.changes import Change
from pi05ctl.spec.runspec import Options, RunSpec, resolve
from pi05ctl.spec.settings import Cluster, Settings

_NO_RESULT = {
    "demos": {"block", "workers", "dataset"},
    "compute": {"recompute", "layers", "attention", "microbatches", "xla_options"},
    "train": {"fsdp_devices", "save_state_every", "held_out_every", "profile"},
    "eval": {"environments", "workers"},
}
"""Values that change how a run is done and not what comes out."""
_LATER = {
    "demos": {"fewer": False, "hold": 0, "disturb": 0.0},
    "train": {"held_out": 0},
    "eval": {"until": None},
}
"""Values that came when runs had names already, as they are without them: then they are no part of a name."""
_NAMES = ("run", "storage", "planner_python")
"""What follows from the rest, or from where it runs."""
PLANNER_IN_IMAGE = "/opt/planner/bin/python"
"""Where images/sim has the planner's environment."""


class Local(Section):
    """How the local target runs the stages of a pipeline.

    Attributes:
        python: Interpreter of the jobs.
        jobs_at_once: Jobs that run at the same time; 0 is no limit.
    """

    python: str
    jobs_at_once: Natural


class PipelineJob(Job):
    """Run the stages one after the other; each is a run of its own with the job.json it would have anyway.

    `local` or `cluster` says how the target runs them. What the last one needs is made by those before it.
    """

    kind: Literal["pipeline"] = "pipeline"
    local: Local | None = None
    cluster: Cluster | None = None
    stages: Annotated[tuple[Annotated[AnyJob, Field(discriminator="kind")], ...], Field(min_length=1)]


@dataclass(frozen=True)
class Rendered:
    """A run ready to be submitted.

    Attributes:
        spec: What was asked for.
        job: What its process is told.
        digest: Of everything that can change the result, 64 hex digits; the run's name has the first 6.
        changes: What it went on with otherwise when it was resumed; `job` has it, name and digest have not.
    """

    spec: RunSpec
    job: AnyJob | PipelineJob
    digest: str
    changes: tuple[Change, ...] = ()

    @property
    def run(self) -> str:
        """The run's name."""
        return self.job.run

    @property
    def job_json(self) -> bytes:
        """The content of job.json."""
        return to_json(self.job)


def render(spec: RunSpec, settings: Settings) -> Rendered:
    """Return the run that a spec names.

    Raises:
        ConfigError: The task does not exist.
        UsageError: The preset does not exist or a value is impossible.
    """
    options = resolve(spec)
    if spec.kind == "demos" and options.demos.dataset:
        raise UsageError(f"demos.dataset={options.demos.dataset} is made already; train on it: {spec.command('train')}")
    make = {"demos": _demos, "train": _train, "eval": _eval, "pipeline": _pipeline}[spec.kind]
    try:
        return rendered(spec, make(spec, options, settings))
    except ValidationError as error:
        raise UsageError(explain(error)) from error


def stages(pipeline: Rendered) -> tuple[Rendered, ...]:
    """Return the runs of a pipeline in their order, as its job.json holds them; none for another kind."""
    if not isinstance(pipeline.job, PipelineJob):
        return ()
    return tuple(rendered(_stage(pipeline.spec, job), job) for job in pipeline.job.stages)


def around(spec: RunSpec) -> RunSpec | None:
    """Return the pipeline that ends with a run and makes what it needs first; None for one that no stage makes more of.

    An evaluation's is the pipeline of its task, under the same name; where demonstrations are evaluated, nothing is
    trained for it.
    """
    if spec.kind not in ("train", "eval") or spec.train_run is not None:
        return None
    goal = "train" if spec.kind == "train" else "eval" if resolve(spec).eval.policy == "oracle" else None
    return spec.model_copy(update={"kind": "pipeline", "goal": goal})


def refreshed(run: Rendered, settings: Settings) -> Rendered:
    """Return a stored run with what the settings of today say of how it runs; its values, and so its name, stay."""
    if isinstance(run.job, PipelineJob):
        below = tuple(refreshed(stage, settings).job for stage in stages(run))
        return replace(run, job=run.job.model_copy(update={**_how(run.spec, settings), "stages": below}))
    if isinstance(run.job, DemosJob):
        return replace(run, job=run.job.model_copy(update={"planner_python": _planner(run.spec, settings)}))
    return run


def rendered(spec: RunSpec, job: AnyJob | PipelineJob) -> Rendered:
    """Return the run that a stored run.json and job.json describe."""
    return Rendered(spec, job, digest(job, spec.again))


def moved(job: AnyJob | PipelineJob, storage: str) -> AnyJob | PipelineJob:
    """Return a job that finds its storage where it is now; a folder of runs may be moved."""
    update: dict[str, Any] = {"storage": storage}
    if isinstance(job, PipelineJob):
        update["stages"] = tuple(moved(stage, storage) for stage in job.stages)
    return job.model_copy(update=update)


def to_json(model: BaseModel) -> bytes:
    """Return a model as people read it: one value a line, in the order of its definition.

    In ASCII: YAML takes some other characters, such as U+2028, for the end of a line.
    """
    return json.dumps(model.model_dump(mode="json"), indent=1).encode() + b"\n"


def digest(job: AnyJob | PipelineJob, again: int = 0) -> str:
    """Return 64 hex digits over what can change the job's result."""
    return digest_of(job.model_dump(mode="json"), again)


def named(told: Mapping[str, Any], again: int = 0) -> str:
    """Return the name that a job has by its content, given what job.json says."""
    return _name(str(told["kind"]), str(told["task"]), digest_of(told, again))


def digest_of(told: Mapping[str, Any], again: int = 0) -> str:
    """Return the digest of what job.json says; of an earlier version's, too, which lacks what came later."""
    if told["kind"] == "pipeline":
        content: dict[str, Any] = {"stages": [stage["run"] for stage in told["stages"]]}
    else:
        content = decisive(told)
    for section, names in _LATER.items():
        for name, without in names.items():
            if content.get(section, {}).get(name, ...) == without:
                del content[section][name]
    if told["kind"] == "demos":
        del content["dataset"]  # it is named by this digest
    content["again"] = again
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def decisive(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a job can change its result, given what job.json says; no pipeline's."""
    content = {key: value for key, value in told.items() if key not in _NAMES}
    for section, names in _NO_RESULT.items():
        if section in content:
            content[section] = {key: value for key, value in content[section].items() if key not in names}
    return content


def _name(kind: str, task: str, digest: str) -> str:
    """Return the run's name; the longest has 32 characters, and a Helm release may have 40."""
    return f"{kind}-{task}-{digest[:6]}"


def _common(spec: RunSpec, options: Options, settings: Settings) -> dict[str, Any]:
    """Return the fields that every job has; the run's name follows from the others and comes last."""
    storage = settings.cluster.storage if _in_cluster(spec) else settings.storage
    return {"run": "", "task": spec.task, "storage": storage, "convention": options.convention}


def _in_cluster(spec: RunSpec) -> bool:
    return spec.target == "cluster"


def _planner(spec: RunSpec, settings: Settings) -> str:
    return PLANNER_IN_IMAGE if _in_cluster(spec) else settings.planner_python


def _demos(spec: RunSpec, options: Options, settings: Settings) -> DemosJob:
    job = DemosJob(
        **_common(spec, options, settings),
        dataset="",
        demos=options.demos.model_copy(update={"dataset": ""}),
        planner_python=_planner(spec, settings),
    )
    key = digest(job, spec.again)
    names = {"run": _name("demos", spec.task, key), "dataset": f"datasets/{spec.task}/{key[:12]}"}
    return job.model_copy(update=names)


def _dataset(spec: RunSpec, options: Options, settings: Settings) -> str:
    """Return the key of the dataset of a spec's task: the imported one, else that which its demos job makes."""
    if options.demos.dataset:
        return f"datasets/{spec.task}/{options.demos.dataset}"
    return _demos(spec.sibling("demos"), options, settings).dataset


def _train(spec: RunSpec, options: Options, settings: Settings) -> TrainJob:
    job = TrainJob(
        **_common(spec, options, settings),
        dataset=_dataset(spec, options, settings),
        others=tuple(
            Share(task=task, dataset=_demos_of(task, spec, settings).dataset, weight=weight)
            for task, weight in options.train.weights_of_others.items()
        ),
        model=options.model,
        compute=options.compute,
        train=options.train,
    )
    return job.model_copy(update={"run": _name("train", spec.task, digest(job, spec.again))})


def _demos_of(task: str, spec: RunSpec, settings: Settings) -> DemosJob:
    """Return the demonstrations that the same preset and overrides name for another task."""
    other = spec.sibling("demos").model_copy(update={"task": task})
    return _demos(other, resolve(other), settings)


def _eval(spec: RunSpec, options: Options, settings: Settings) -> EvalJob:
    job = EvalJob(
        **_common(spec, options, settings),
        dataset=_dataset(spec, options, settings),
        train_run=spec.train_run or _train(spec.sibling("train"), options, settings).run,
        compute=options.compute,
        eval=options.eval,
    )
    return job.model_copy(update={"run": _name("eval", spec.task, digest(job, spec.again))})


def _pipeline(spec: RunSpec, options: Options, settings: Settings) -> PipelineJob:
    below = _stages(spec, options, settings)
    job = PipelineJob(**_common(spec, options, settings), **_how(spec, settings), stages=below)
    return job.model_copy(update={"run": _name("pipeline", spec.task, digest(job, spec.again))})


def _stages(spec: RunSpec, options: Options, settings: Settings) -> tuple[AnyJob, ...]:
    """Return the jobs of a pipeline: demonstrations of every task that is trained on, training, evaluation.

    An imported dataset is there, or whoever trains on it says what is missing.
    """
    demos = [] if options.demos.dataset else [_demos(spec.sibling("demos"), options, settings)]
    if spec.goal == "eval":
        return *demos, _eval(spec.sibling("eval"), options, settings)
    others = [_demos_of(task, spec, settings) for task in options.train.weights_of_others]
    train = _train(spec.sibling("train", again=spec.again), options, settings)
    if spec.goal == "train":
        return *demos, *others, train
    return *demos, *others, train, _eval(spec.sibling("eval", train_run=train.run), options, settings)


def _stage(spec: RunSpec, job: AnyJob) -> RunSpec:
    """Return the spec of a pipeline's stage; only its training is another one when the pipeline is run again."""
    again = spec.again if isinstance(job, TrainJob) else 0
    of = job.train_run if isinstance(job, EvalJob) else None
    return spec.sibling(job.kind, again, of).model_copy(update={"task": job.task})


def _how(spec: RunSpec, settings: Settings) -> dict[str, Any]:
    """Return how the target runs the stages of a pipeline."""
    if _in_cluster(spec):
        return {"local": None, "cluster": settings.cluster}
    return {"local": Local(python=settings.python, jobs_at_once=settings.jobs_at_once), "cluster": None}
