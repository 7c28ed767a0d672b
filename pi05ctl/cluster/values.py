"""A run and the cluster's settings -> the values of its Helm release. As a program it writes their schema.

All that differs between two runs is in here and visible (`helm get values RUN`), job.json included; the chart adds only
what is the same for all. charts/pi05/values.yaml explains each value; without a run they are empty, and lint. No value
is null, because Helm takes null for "remove this key": no name is "", no limit is 0.
"""

import hashlib
import json
import sys
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from pi05.chips import JAX_SHARE
from pi05.config import Natural, Positive, ProbeJob, Section, TrainJob
from pi05ctl.cluster.helm import CHART
from pi05ctl.errors import UsageError
from pi05ctl.spec.render import Rendered, to_json
from pi05ctl.spec.runspec import Kind
from pi05ctl.spec.settings import (
    Cluster,
    DemosPods,
    EvalPods,
    PodFields,
    Pods,
    Quantity,
    Table,
    Toleration,
    TrainPods,
)

SCHEMA = CHART / "values.schema.json"

_ON_GPUS = {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_MEM_FRACTION": str(JAX_SHARE)}
"""JAX computes on GPUs or not at all, and has most of their memory (its own share is 0.75), as nothing else runs
there. A user's `env` outranks both."""

_LITTLE = {"cpu": "100m", "memory": "2Gi", "scratch": "1Gi", "shm": "64Mi"}
"""What a light probe asks for."""

_Name = Annotated[str, Field(min_length=1)]


class _Values(Section):
    """camelCase in YAML, as Helm's users expect."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class Run(_Values):
    """What is run, for labels and annotations."""

    kind: Kind | Literal["probe", ""]
    task: str
    digest: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    version: str
    revision: str


class Image(_Values):
    """What its pods run."""

    name: str
    pull_policy: Literal["Always", "IfNotPresent", "Never"]


class Queue(_Values):
    """Its place in Kueue's queue."""

    name: str
    priority: str


class Gpus(_Values):
    """GPUs of one pod."""

    count: Natural
    resource: _Name


class Resources(_Values):
    """What one pod asks for."""

    cpu: Quantity
    memory: Quantity
    scratch: Quantity
    shm: Quantity
    gpus: Gpus
    others: dict[str, Natural]
    limits: dict[str, Quantity]


class Pod(_Values):
    """Of a PodSpec of Kubernetes, and of its metadata, what settings decide."""

    labels: dict[str, str]
    annotations: dict[str, str]
    service_account_name: _Name
    image_pull_secrets: tuple[Table, ...]
    priority_class_name: str
    runtime_class_name: str
    scheduler_name: str
    node_selector: dict[str, str]
    tolerations: tuple[Toleration, ...]
    affinity: Table
    topology_spread_constraints: tuple[Table, ...]
    security_context: Table
    volumes: tuple[Table, ...]


class Container(_Values):
    """Of a Container of Kubernetes, what settings decide."""

    env: dict[str, str | Table]
    env_from: tuple[Table, ...]
    volume_mounts: tuple[Table, ...]


class Values(_Values):
    """Values of charts/pi05, which its values.yaml explains one by one."""

    run: Run
    job: str
    image: Image
    queue: Queue
    pods: Positive
    gang: Literal["job", "jobset"]
    resources: Resources
    pod: Pod
    container: Container
    retries: Natural
    max_failed_shards: Natural
    grace_seconds: Positive
    deadline_seconds: Natural
    ttl_seconds: Natural

    def to_json(self) -> str:
        """Return them as Helm reads them (JSON is YAML)."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1) + "\n"


def chart_values(run: Rendered, cluster: Cluster, version: str, revision: str) -> Values:
    """Return the values of a run's release.

    Args:
        run: What to run; its job.json is taken as it is.
        cluster: Settings of the cluster it goes to.
        version: Of this project.
        revision: Of its source, as git names it; "" when there is none.

    Raises:
        UsageError: A training's batch or parameters cannot be divided among the devices of its pods.
    """
    what = Run(kind=run.spec.kind, task=run.spec.task, digest=run.digest, version=version, revision=revision)
    return _values(run.spec.kind, what, run.job_json, gpus_of(run, cluster.train), cluster)


def probe_values(probe: ProbeJob, cluster: Cluster, version: str, revision: str, light: bool, seconds: int) -> Values:
    """Return the values of a probe's release: those of the runs whose pods it tries out, for one pod, tried once.

    Args:
        probe: What to look at.
        cluster: Settings of the cluster.
        version, revision: As of a run.
        light: Ask for little and no GPU, so that it starts in a cluster that is busy.
        seconds: How long it may take, and then how long Kubernetes remembers it.
    """
    content = to_json(probe)
    what = Run(
        kind="probe",
        task=probe.pods,
        digest=hashlib.sha256(content).hexdigest(),
        version=version,
        revision=revision,
    )
    gpus = cluster.train.gpus if probe.pods == "train" else 0
    real = _values(probe.pods, what, content, gpus, cluster)
    once = {
        "pods": 1,
        "gang": "job",
        "retries": 0,
        "grace_seconds": 5,
        "deadline_seconds": seconds,
        "ttl_seconds": seconds,
    }
    little = {"resources": real.resources.model_copy(update=_LITTLE | {"gpus": Gpus(count=0, resource="none")})}
    return real.model_copy(update=once | (little if light else {}))


def gpus_of(run: Rendered, train: TrainPods) -> int:
    """Return the GPUs of one pod; raise UsageError when the work cannot be divided among all of them."""
    if not isinstance(run.job, TrainJob):
        return 0
    fsdp, batch = run.job.train.fsdp_devices, run.job.train.batch_size
    gpus = fsdp if fsdp and train.nodes == 1 else train.gpus
    total = train.nodes * gpus
    if total and (batch % total or (fsdp and total % fsdp)):
        raise UsageError(
            f"train.batch_size {batch} and train.fsdp_devices {fsdp or total} do not fit {train.nodes} nodes of {gpus} "
            f"GPUs: the first must be a multiple of {total}, the second divide it; change them or [cluster.train]"
        )
    return gpus


def _values(kind: Kind, what: Run, job: bytes, gpus: int, cluster: Cluster) -> Values:
    """Return the values of a release whose pods are those of runs of a kind."""
    asked: Pods = getattr(cluster, kind)
    fields = cluster.fields_of(kind)
    count = _pods(asked)
    return Values(
        run=what,
        job=job.decode(),
        image=Image(name=_image(kind, cluster), pull_policy=cluster.pull_policy),
        queue=Queue(name=cluster.queue or "", priority=cluster.queue_priority or ""),
        pods=count,
        gang="jobset" if count > 1 and kind == "train" and cluster.train.jobset else "job",
        resources=Resources(
            cpu=asked.cpu,
            memory=asked.memory,
            scratch=asked.scratch,
            shm=asked.shm,
            gpus=Gpus(count=gpus, resource=cluster.gpu_resource),
            others=fields.resources,
            limits={**fields.limits},
        ),
        pod=_pod(fields, account(kind, cluster)),
        container=Container(
            env=(_ON_GPUS if gpus else {}) | fields.env,
            env_from=fields.env_from,
            volume_mounts=fields.volume_mounts,
        ),
        retries=asked.retries,
        max_failed_shards=_max_failed(count),
        grace_seconds=asked.grace_seconds,
        deadline_seconds=asked.deadline_seconds,
        ttl_seconds=cluster.ttl_seconds,
    )


def _pod(fields: PodFields, account: str) -> Pod:
    """Return what a pod gets in Kubernetes' own words."""
    return Pod(
        labels=fields.labels,
        annotations=fields.annotations,
        service_account_name=account,
        image_pull_secrets=tuple({"name": name} for name in fields.image_pull_secrets),
        priority_class_name=fields.priority_class_name or "",
        runtime_class_name=fields.runtime_class_name or "",
        scheduler_name=fields.scheduler_name or "",
        node_selector=fields.node_selector,
        tolerations=fields.tolerations,
        affinity=fields.affinity,
        topology_spread_constraints=fields.topology_spread_constraints,
        security_context=fields.security_context,
        volumes=fields.volumes,
    )


def account(kind: Kind, cluster: Cluster) -> str:
    """Return who a pod is: only a pipeline's has rights in Kubernetes."""
    if kind == "pipeline":
        return cluster.pipeline.service_account or cluster.controller_account
    return cluster.fields_of(kind).service_account or "default"


def schema() -> str:
    """Return values.schema.json."""
    made = cast("dict[str, Any]", _untitled(Values.model_json_schema(by_alias=True)))
    made["properties"]["global"] = {"type": "object"}  # Helm adds it to the values of every chart
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#"} | made, indent=2) + "\n"


def _image(kind: Kind, cluster: Cluster) -> str:
    """Return the image of a kind: the simulator's for demos and eval."""
    images = cluster.images
    return {"demos": images.sim, "train": images.train, "eval": images.sim, "pipeline": images.ctl}[kind]


def _pods(asked: Pods) -> int:
    """Return how many pods share a run."""
    if isinstance(asked, TrainPods):
        return asked.nodes
    return asked.shards if isinstance(asked, DemosPods | EvalPods) else 1


def _max_failed(shards: int) -> int:
    """Return how many shards may fail before the others are stopped: one is bad luck, more than a quarter is not.

    Shards that finish keep their results, so that a resumed run has only the failed ones to do.
    """
    return max(1, shards // 4)


def _untitled(schema: object) -> object:
    """Return a schema without pydantic's titles, which only repeat the names."""
    if isinstance(schema, dict):
        items = cast("dict[str, object]", schema).items()
        return {key: _untitled(value) for key, value in items if not (key == "title" and isinstance(value, str))}
    if isinstance(schema, list):
        return [_untitled(item) for item in cast("list[object]", schema)]
    return schema


if __name__ == "__main__":
    SCHEMA.write_text(schema())
    sys.stderr.write(f"wrote {SCHEMA}\n")
