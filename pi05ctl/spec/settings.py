"""Where runs live and what runs them: pi05.toml, found from the working directory upward, and the environment.

    target = "local"                                # the default of --target
    storage = "pi05-data"                           # a folder beside this file, or file:///absolute/path
    python = ".venv/bin/python"                     # runs the jobs
    planner_python = ".venv-planner/bin/python"     # plans demonstrations (numpy < 2)
    cuda_python = ".venv-cuda/bin/python"           # compiles for GPUs (pi05ctl plan)
    jobs_at_once = 1                                # of the local target; the others are Queued

    [cluster]                                       # of the cluster target: see Cluster for all of it
    storage = "gs://my-bucket/pi05"                 # or s3://...; credentials never stand here
    images = { train = "...", sim = "...", ctl = "..." }
    queue = "pi05"

    [cluster.train]                                 # a kind of pod: see TrainPods, DemosPods, EvalPods, PipelinePods
    nodes = 2

All of it has defaults. The only variable that counts is PI05_STORAGE, and a command that obeys it says so.
"""

import codecs
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, JsonValue, ValidationError, field_validator

from pi05 import chips
from pi05.config import Natural, Positive, Section, explain
from pi05.errors import ConfigError
from pi05.storage import expanded
from pi05ctl.errors import UsageError, unknown

FILE = "pi05.toml"
VARIABLE = "PI05_STORAGE"
_PLANNER = ".venv-planner/bin/python"
_CUDA = ".venv-cuda/bin/python"
_STORAGE = "gs://your-bucket/pi05"
REGISTRY = "your-registry"
"""Of images that nobody has named yet."""

DnsLabel = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|[MGTP]|[KMGTP]i)?$")]
"""An amount as Kubernetes writes it: `500m`, `4`, `16Gi`."""


class Toleration(Section):
    """A taint of nodes that pods may run on; the fields are Kubernetes'. Without an effect: every effect."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


Table = dict[str, JsonValue]
"""An object of Kubernetes' API as its reference has it, in camelCase; the API server judges it."""


def _no_limits() -> dict[Literal["cpu", "ephemeral-storage"], Quantity]:
    return {}


_OURS = ("HOME", "TMPDIR", "POD", "INDEX", "SCRATCH_BYTES")
"""Variables that the chart sets itself."""


class PodFields(Section):
    """What pods get in Kubernetes' own words, beside what the chart gives them.

    In `[cluster]` it holds for all pods, in `[cluster.KIND]` for those of a kind: tables are merged, the kind's keys
    outranking; lists are joined; of single values the kind's counts. What is inside a table or list is Kubernetes' own:
    `affinity = { nodeAffinity = { ... } }`.

    Attributes:
        labels, annotations: More of them, of Jobs and pods: for policies, Karpenter, Kueue's topologies.
        env: More environment; every run shows it. A secret is named instead of told, and never read by pi05ctl:
            `TOKEN = { secretKeyRef = { name = "SECRET", key = "KEY" } }` (Kubernetes' EnvVarSource).
        env_from: ConfigMaps and Secrets whose keys become variables (EnvFromSource).
        volumes, volume_mounts: More of them: `{ name, persistentVolumeClaim = { claimName } }`, `{ name, mountPath }`.
        node_selector: Labels that nodes must have.
        tolerations: Taints they may have, beside the GPUs' own.
        affinity, topology_spread_constraints: Which nodes, and how spread over them.
        image_pull_secrets: Names of the Secrets that open private registries.
        service_account: Who its pods are, for the bucket; without rights in Kubernetes.
        priority_class_name: Kubernetes' PriorityClass, who may evict whom.
        runtime_class_name: How containers are run; some clusters give GPUs to `nvidia` only.
        scheduler_name: Another scheduler than Kubernetes' own.
        resources: More of what nodes have, by name: `{ "rdma/hca" = 1 }`. Request and limit.
        limits: Of what pods else only request, where a quota or a LimitRange asks for it: `{ cpu = "32",
            "ephemeral-storage" = "300Gi" }`, not below `cpu` and `scratch`. (More CPU is throttled, more disk evicted.)
        security_context: Of the pod, in place of ours (user and group 10001): where the cluster chooses the user
            (OpenShift), `{ runAsNonRoot = true, seccompProfile = { type = "RuntimeDefault" } }`.
    """

    labels: dict[str, str] = Field(default_factory=dict[str, str])
    annotations: dict[str, str] = Field(default_factory=dict[str, str])
    env: dict[str, str | Table] = Field(default_factory=dict[str, str | Table])
    env_from: tuple[Table, ...] = ()
    volumes: tuple[Table, ...] = ()
    volume_mounts: tuple[Table, ...] = ()
    node_selector: dict[str, str] = Field(default_factory=dict[str, str])
    tolerations: tuple[Toleration, ...] = ()
    affinity: Table = Field(default_factory=dict[str, JsonValue])
    topology_spread_constraints: tuple[Table, ...] = ()
    image_pull_secrets: tuple[DnsLabel, ...] = ()
    service_account: DnsLabel | None = None
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    scheduler_name: str | None = None
    resources: dict[str, Natural] = Field(default_factory=dict[str, Natural])
    limits: dict[Literal["cpu", "ephemeral-storage"], Quantity] = Field(default_factory=_no_limits)
    security_context: Table = Field(default_factory=dict[str, JsonValue])

    @field_validator("env", mode="before")
    @classmethod
    def _strings_or_sources(cls, env: Any) -> Any:
        for name, value in cast("dict[str, Any]", env).items() if isinstance(env, dict) else ():
            if not isinstance(value, str | dict):
                secret = f"{name} = {{ secretKeyRef = {{ name, key }} }}"
                raise ValueError(f"{name} is {value!r}; use a string, or the name of a secret: {secret}")
        return cast("Any", env)

    @field_validator("env")
    @classmethod
    def _not_ours(cls, env: dict[str, str | Table]) -> dict[str, str | Table]:
        for name in env:
            if name in _OURS:
                raise ValueError(f"{name} is set by the chart, as are {', '.join(_OURS)}; use another name")
        return env

    @field_validator("labels", "annotations")
    @classmethod
    def _no_names_of_ours(cls, given: dict[str, str]) -> dict[str, str]:
        for name in given:
            if name.startswith(("pi05.dev/", "app.kubernetes.io/")):
                raise ValueError(f"{name} is given by the chart; use a name of your own")
        return given


class Pods(PodFields):
    """What every kind of pod asks for.

    Attributes:
        cpu: Cores; a request, and without `limits` no limit, so that idle ones are used.
        memory: Request and limit; more is OOMKilled. /dev/shm is a part of it.
        scratch: Disk of the node: temporary files, and what is downloaded or not yet uploaded.
        shm: Size of /dev/shm.
        retries: How often Kubernetes tries again: a run, or a shard of demos and eval. Evictions do not count.
        grace_seconds: From SIGTERM to SIGKILL: time to save. (Google's spot nodes grant 15 s, whatever is asked.)
        deadline_seconds: The run is ended after this long; 0 is never.
    """

    cpu: Quantity
    memory: Quantity
    scratch: Quantity
    shm: Quantity = "64Mi"
    retries: Natural = 3
    grace_seconds: Positive = 60
    deadline_seconds: Natural = 0


class DemosPods(Pods):
    """Pods that make demonstrations, `shards` a run."""

    shards: Positive = 4
    cpu: Quantity = "8"
    memory: Quantity = "16Gi"
    scratch: Quantity = "20Gi"
    retries: Natural = 2


class TrainPods(Pods):
    """Pods that train: `nodes` a run, one pod each, with `gpus` (train.fsdp_devices counts when a preset names it).

    Attributes:
        chip: What those GPUs are, so that submit refuses what cannot fit; None: what `node_selector` says, if anything.
        jobset: Several nodes are a JobSet (jobset.sigs.k8s.io, which the cluster must have): when one pod fails, all
            are replaced at once. Without it they are one Indexed Job, whose processes notice that one is gone.
    """

    nodes: Positive = 1
    gpus: Natural = 8
    chip: str | None = None
    jobset: bool = False
    cpu: Quantity = "32"
    memory: Quantity = "256Gi"
    scratch: Quantity = "300Gi"
    shm: Quantity = "16Gi"
    grace_seconds: Positive = 600

    @field_validator("chip")
    @classmethod
    def _chip_exists(cls, chip: str | None) -> str | None:
        if chip is not None:
            try:
                chips.find(chip)
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return chip


class EvalPods(Pods):
    """Pods that evaluate, on the CPU, `shards` a run.

    The defaults hold preset full in bfloat16: some 20 GB for the policy (its weights 8 GB, and what XLA's CPU backend
    makes float32 of 11 GB), 1.3 GB for each of 8 simulators; on disk the 13.4 GB of `params`.
    """

    shards: Positive = 4
    cpu: Quantity = "8"
    memory: Quantity = "40Gi"
    scratch: Quantity = "40Gi"
    retries: Natural = 2


class PipelinePods(Pods):
    """The pod that runs a pipeline: it submits the stages and waits."""

    cpu: Quantity = "250m"
    memory: Quantity = "512Mi"
    scratch: Quantity = "1Gi"


class Images(Section):
    """Container images, `repository:tag` or `repository@sha256:...`; images/ has what they are made from."""

    train: str = f"{REGISTRY}/pi05-train:0.1.0"
    sim: str = f"{REGISTRY}/pi05-sim:0.1.0"
    ctl: str = f"{REGISTRY}/pi05-ctl:0.1.0"


class Cluster(PodFields):
    """The cluster target: where in which cluster runs go, and what their pods ask for.

    Attributes:
        context: Of kubeconfig; None is the current one.
        namespace: Where runs live; k8s/ makes it.
        storage: Root of all artefacts, which pods must reach.
        images: What pods run.
        pull_policy: When a node fetches an image.
        queue: Kueue's LocalQueue; None: Kubernetes starts what fits, without order.
        queue_priority: Kueue's WorkloadPriorityClass, the order in the queue.
        gpu_resource: What nodes call a GPU.
        controller_account: Of a pipeline's pod, which submits runs.
        ttl_seconds: Kubernetes forgets an ended Job after this long (0 would be at once); what it wrote stays.
    """

    context: str | None = None
    namespace: DnsLabel = "pi05"
    storage: str = _STORAGE
    images: Images = Images()
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    queue: DnsLabel | None = None
    queue_priority: str | None = None
    gpu_resource: str = "nvidia.com/gpu"
    service_account: DnsLabel | None = "pi05-job"
    controller_account: DnsLabel = "pi05-controller"
    ttl_seconds: Positive = 7 * 24 * 3600
    demos: DemosPods = DemosPods()
    train: TrainPods = TrainPods()
    eval: EvalPods = EvalPods()
    pipeline: PipelinePods = PipelinePods()

    def fields_of(self, kind: str) -> PodFields:
        """Return what pods of a kind get in Kubernetes' words: that of all pods and that of the kind, together."""
        own: Pods = getattr(self, kind)
        return PodFields(
            **{name: _together(getattr(self, name), getattr(own, name)) for name in PodFields.model_fields}
        )

    @property
    def unset(self) -> list[str]:
        """Return the settings that still are placeholders: enough to render, nothing to submit."""
        images = [f"cluster.images.{name}" for name, image in self.images if image.startswith(f"{REGISTRY}/")]
        return ["cluster.storage"] * (self.storage == _STORAGE) + images


def _together(ours: Any, own: Any) -> Any:
    """Return a setting of all pods and of a kind as one."""
    if isinstance(ours, dict):
        return cast("dict[str, Any]", ours | own)
    return ours + own if isinstance(ours, tuple) else own or ours


class _File(Section):
    """What pi05.toml may say."""

    target: str = "local"
    storage: str | None = None
    python: str | None = None
    planner_python: str | None = None
    cuda_python: str | None = None
    jobs_at_once: Positive = 1
    cluster: Cluster = Cluster()


@dataclass(frozen=True)
class Settings:
    """Where runs live and what runs them.

    Attributes:
        storage: Root of all artefacts, as a URL.
        python: Interpreter of the jobs.
        planner_python: Interpreter of the planner's environment.
        cuda_python: Interpreter of an environment with JAX's CUDA plugin; None where there is none.
        target: Where runs go unless a command says otherwise.
        jobs_at_once: Jobs that the local target runs at the same time.
        cluster: The cluster target.
        origin: Where the storage comes from when it is not the default, for people.
    """

    storage: str
    python: str
    planner_python: str
    cuda_python: str | None = None
    target: str = "local"
    jobs_at_once: int = 1
    cluster: Cluster = field(default_factory=Cluster)
    origin: str | None = None


def load(folder: Path, environ: Mapping[str, str], python: Path) -> Settings:
    """Return the settings that hold in `folder` for a pi05ctl run by the interpreter `python`."""
    found = next((path for path in _upward(folder) if path.is_file()), None)
    base = found.parent if found else folder
    file = _read(found) if found else _File()
    storage, origin = file.storage, FILE if file.storage else None
    if environ.get(VARIABLE):
        storage, origin = environ[VARIABLE], VARIABLE
    return Settings(
        storage=_url(storage or "pi05-data", base),
        python=str(base / expanded(Path(file.python))) if file.python else str(python),
        planner_python=_beside(file.planner_python, _PLANNER, base, python)[0],
        cuda_python=_cuda(file.cuda_python, base, python),
        target=file.target,
        jobs_at_once=file.jobs_at_once,
        cluster=file.cluster,
        origin=origin,
    )


def _upward(folder: Path) -> list[Path]:
    """Return where pi05.toml may lie, nearest first."""
    return [parent / FILE for parent in (folder, *folder.parents)]


def _read(path: Path) -> _File:
    """Return what pi05.toml says; raise UsageError when it is not TOML or has a key nobody reads."""
    try:
        table: dict[str, Any] = tomllib.loads(_text(path.read_bytes()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML in UTF-8: {error}") from error
    try:
        _check_names(table, _File)
        return _File.model_validate_json(json.dumps(table, default=str), strict=True)  # JSON: arrays may be tuples
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}") from error


def _text(content: bytes) -> str:
    """Return what a file says: UTF-8, or what its first bytes tell (Notepad marks UTF-8, PowerShell writes UTF-16)."""
    return content.decode("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")


def _check_names(table: dict[str, Any], section: type[Section], prefix: str = "") -> None:
    """Raise UsageError, with the nearest name, for the first key that nobody reads."""
    for key, value in table.items():
        if key not in section.model_fields:
            raise unknown("key", prefix + key, [prefix + name for name in section.model_fields])
        inner = section.model_fields[key].annotation
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, Section):
            _check_names(cast("dict[str, Any]", value), inner, f"{prefix}{key}.")


def _url(storage: str, base: Path) -> str:
    """Return a URL as it is, and a path as a file:// URL, relative to `base`."""
    if "://" in storage or storage.startswith(("file:", "gs:", "s3:")):  # one that is half a URL is refused as such
        return storage
    return (base / expanded(Path(storage))).resolve().as_uri()


def _cuda(given: str | None, base: Path, python: Path) -> str | None:
    """Return the interpreter that compiles for GPUs: the given one, or one that is there."""
    place = _beside(given, _CUDA, base, python)[0]
    return place if given or Path(place).exists() else None


def _beside(given: str | None, name: str, base: Path, python: Path) -> list[str]:
    """Return where an interpreter may be, what is there first: as given, beside pi05.toml, beside our environment."""
    places = [base / expanded(Path(given))] if given else [base / name, python.parent.parent.parent / name]
    return [str(path) for path in sorted(places, key=lambda path: not path.exists())]
