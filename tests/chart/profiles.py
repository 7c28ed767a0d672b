"""The releases that the tests look at, and Helm, which makes them."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import JsonValue

from pi05ctl.cluster.values import CHART, Values, chart_values
from pi05ctl.spec.render import Rendered, render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Cluster, Settings, Toleration, TrainPods

HELM = Path(sys.executable).parent / "helm"
VERSION, REVISION = "0.1.0", "0123abc"
SETTINGS = Settings(
    storage="gs://bucket/pi05",
    python="/opt/pi05/bin/python",
    planner_python="/opt/planner/bin/python",
    target="cluster",
)
QUEUED = Cluster(
    queue="pi05",
    queue_priority="urgent",
    priority_class_name="robots",
    image_pull_secrets=("registry",),
    node_selector={"team": "robots"},
    tolerations=(Toleration(key="spot", effect="NoSchedule"),),
    env={"XLA_FLAGS": "--xla_dump_to=/scratch"},
    train=TrainPods(nodes=2, deadline_seconds=86_400, node_selector={"gpu": "h100"}),
)


@dataclass(frozen=True)
class Profile:
    """A run and the cluster it goes to."""

    run: Rendered
    cluster: Cluster

    @property
    def values(self) -> Values:
        """The values of its release."""
        return chart_values(self.run, self.cluster, VERSION, REVISION)


def profile(kind: str, task: str, preset: str, cluster: Cluster | None = None, **overrides: JsonValue) -> Profile:
    """Return a run as `pi05ctl submit KIND TASK --preset PRESET --target cluster` would make it."""
    cluster = (cluster or Cluster()).model_copy(update={"storage": SETTINGS.storage})
    fields = {"kind": kind, "task": task, "preset": preset, "target": "cluster", "overrides": overrides}
    return Profile(render(RunSpec.model_validate(fields), replace(SETTINGS, cluster=cluster)), cluster)


EVERYTHING = QUEUED.model_copy(
    update={
        "labels": {"team": "robots"},
        "annotations": {"karpenter.sh/do-not-disrupt": "true"},
        "env": {"XLA_FLAGS": "--xla_dump_to=/scratch", "TOKEN": {"secretKeyRef": {"name": "tokens", "key": "hub"}}},
        "env_from": ({"secretRef": {"name": "proxy"}},),
        "volumes": ({"name": "data", "persistentVolumeClaim": {"claimName": "data"}},),
        "volume_mounts": ({"name": "data", "mountPath": "/data", "readOnly": True},),
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topology_spread_constraints": (
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"},
        ),
        "runtime_class_name": "nvidia",
        "scheduler_name": "volcano",
        "resources": {"rdma/hca": 1},
        "limits": {"cpu": "64", "ephemeral-storage": "400Gi"},
        "security_context": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
)
JOBSET = QUEUED.model_copy(update={"train": TrainPods(nodes=2, jobset=True)})

PROFILES = {
    "train_full": profile("train", "stackcube", "full"),
    "train_tiny": profile("train", "pushcube", "tiny"),
    "train_two_nodes_queued": profile("train", "stackcube", "full", QUEUED),
    "train_two_nodes_jobset": profile("train", "stackcube", "full", JOBSET),
    "train_everything": profile("train", "stackcube", "full", EVERYTHING),
    "demos": profile("demos", "pushcube", "tiny"),
    "eval_four_shards": profile("eval", "pushcube", "tiny"),
    "pipeline": profile("pipeline", "pushcube", "tiny"),
}


def helm(*arguments: str, values: str = "{}") -> subprocess.CompletedProcess[str]:
    """Run Helm with values on its stdin."""
    command = [str(HELM), *arguments, "--values", "-"]
    return subprocess.run(command, input=values, capture_output=True, text=True, check=False)


def template(shown: Profile, *options: str, values: str | None = None) -> str:
    """Return what Helm makes of a profile."""
    arguments = ("template", shown.run.run, str(CHART), "--namespace", "pi05", *options)
    done = helm(*arguments, values=values or shown.values.to_json())
    assert done.returncode == 0, done.stderr
    return done.stdout


def manifests(shown: Profile) -> dict[str, dict]:
    """Return a profile's objects by kind; none has two of one."""
    objects = list(yaml.safe_load_all(template(shown)))
    by_kind = {item["kind"]: item for item in objects}
    assert len(by_kind) == len(objects)
    return by_kind


def leaves(tree: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the paths of all values that are not tables with keys of their own."""
    found = []
    for key, value in tree.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)]
    return found


def changed(values: str, path: tuple[str, ...]) -> str:
    """Return values that differ in one place, valid or not."""
    tree = json.loads(values)
    table = tree
    for key in path[:-1]:
        table = table[key]
    old = table[path[-1]]
    if path == ("job",):
        new = old.replace("gs://bucket", "gs://other")
    else:
        new = {str: "changed", int: 77, dict: {"changed": "yes"}, list: [{"key": "changed"}]}[type(old)]
    assert new != old
    table[path[-1]] = new
    return json.dumps(tree)
