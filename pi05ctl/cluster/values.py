"""A run and the cluster's settings -> the values of its Helm release. As a program it writes their schema.

All that differs between two runs is in here and visible (`helm get values RUN`), job.json included; the chart adds only
what is the same for all. charts/pi05/values.yaml explains each value. No value is null, because Helm takes null for
"remove this key": no name is "", no limit is 0.
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
from pi05ctl.spec.settings import Cluster, DemosPods, EvalPods, Pods, Quantity, Toleration, TrainPods

SCHEMA = CHART / "values.schema.json"

_MEMORY_FRACTION = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(JAX_SHARE)}
"""Of a GPU's memory for JAX, whose own share is 0.75: nothing else runs there. A user's `env` outranks it."""

_LITTLE = {"cpu": "100m", "memory": "2Gi", "scratch": "1Gi", "shm": "64Mi"}
"""What a light probe asks for."""

_Name = Annotated[str, Field(min_length=1)]


class _Values(Section):
    """camelCase in YAML, as Helm's users expect."""

    model_config = ConfigDict(alias_generator=to_camel, validate_by_name=True)


class Run(_Values):
    """What is run, for labels and annotations."""

    kind: Kind | Literal["probe"]
    task: _Name
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    version: _Name
    revision: str


class Image(_Values):
    """What its pods run."""

    name: _Name
    pull_policy: Literal["Always", "IfNotPresent", "Never"]
    pull_secret: str


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


class Values(_Values):
    """Values of charts/pi05, which its values.yaml explains one by one."""

    run: Run
    job: _Name
    image: Image
    service_account: _Name
    queue: Queue
    priority_class: str
    pods: Positive
    resources: Resources
    node_selector: dict[str, str]
    tolerations: tuple[Toleration, ...]
    env: dict[str, str]
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
    once = {"pods": 1, "retries": 0, "grace_seconds": 5, "deadline_seconds": seconds, "ttl_seconds": seconds}
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
    count = _pods(asked)
    return Values(
        run=what,
        job=job.decode(),
        image=Image(name=_image(kind, cluster), pull_policy=cluster.pull_policy, pull_secret=cluster.pull_secret or ""),
        service_account=cluster.controller_account if kind == "pipeline" else cluster.service_account,
        queue=Queue(name=cluster.queue or "", priority=cluster.queue_priority or ""),
        priority_class=cluster.priority_class or "",
        pods=count,
        resources=Resources(
            cpu=asked.cpu,
            memory=asked.memory,
            scratch=asked.scratch,
            shm=asked.shm,
            gpus=Gpus(count=gpus, resource=cluster.gpu_resource),
        ),
        node_selector=cluster.node_selector | asked.node_selector,
        tolerations=cluster.tolerations,
        env=(_MEMORY_FRACTION if gpus else {}) | cluster.env,
        retries=_retries(asked),
        max_failed_shards=_max_failed(count),
        grace_seconds=asked.grace_seconds,
        deadline_seconds=asked.deadline_seconds,
        ttl_seconds=cluster.ttl_seconds,
    )


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


def _retries(asked: Pods) -> int:
    """Return how many failed pods of a run (train, pipeline) or a shard (demos, eval) are replaced.

    One accident on one of several nodes fails every process, and the first replacement perhaps once more.
    """
    if isinstance(asked, TrainPods) and asked.nodes > 1:
        return asked.retries * (asked.nodes + 1)
    return asked.retries


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
