"""The release with which `pi05ctl doctor` looks at a cluster from inside: a real run's pod, told to look around."""

import copy
import json
import os
from pathlib import Path

import pytest
import yaml

from pi05.config import ProbeJob
from pi05ctl.cluster.values import CHART, Values, probe_values
from pi05ctl.spec.settings import Cluster
from tests.chart import schemas
from tests.chart.profiles import QUEUED, REVISION, VERSION, helm, manifests, profile

GOLDEN = Path(__file__).parents[2] / "tests/golden/chart_probe.yaml"
KINDS = ("train", "eval", "pipeline")
every_kind = pytest.mark.parametrize("kind", KINDS)


def values(kind: str, cluster: Cluster = QUEUED, light: bool = False) -> Values:
    job = ProbeJob(run=f"probe-{kind}-0123ab", pods=kind, storage="gs://bucket/pi05", gpus=8 * (kind == "train"))
    return probe_values(job, cluster, VERSION, REVISION, light, seconds=300)


def template(kind: str, cluster: Cluster = QUEUED, light: bool = False) -> str:
    name = f"probe-{kind}-0123ab"
    shown = values(kind, cluster, light).to_json()
    done = helm("template", name, str(CHART), "--namespace", "pi05", values=shown)
    assert done.returncode == 0, done.stderr
    return done.stdout


def job(kind: str, cluster: Cluster = QUEUED, light: bool = False) -> dict:
    return next(item for item in yaml.safe_load_all(template(kind, cluster, light)) if item["kind"] == "Job")


def test_the_manifests_are_golden():
    made = template("pipeline")
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text(), "UPDATE_GOLDEN=1 scripts/test chart rewrites it"


@every_kind
def test_its_pod_is_that_of_a_run_but_for_what_it_does(kind):
    """So what holds for a probe, holds for runs."""
    cluster = QUEUED.model_copy(update={"train": Cluster().train})
    run = manifests(profile(kind, "pushcube", "tiny", cluster))["Job"]
    probe = job(kind, cluster)
    pods = [copy.deepcopy(item["spec"]["template"]) for item in (run, probe)]
    for pod in pods:
        del pod["spec"]["containers"][0]["args"], pod["spec"]["terminationGracePeriodSeconds"]
        del pod["spec"]["volumes"][0], pod["metadata"]["annotations"]["pi05.dev/digest"]
        del pod["metadata"]["labels"]
    assert pods[0]["spec"]["containers"][0].pop("command")[:2] == pods[1]["spec"]["containers"][0].pop("command")[:2]
    assert pods[0] == pods[1]
    assert run["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "pi05"
    assert probe["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "pi05"


@every_kind
def test_it_is_tried_once_and_ends_by_itself(kind):
    spec = job(kind)["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (1, 1, 0)
    assert spec["activeDeadlineSeconds"] == spec["ttlSecondsAfterFinished"] == 300


@every_kind
def test_a_light_one_asks_for_little(kind):
    container = job(kind, light=True)["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["requests"] == {"cpu": "100m", "memory": "2Gi", "ephemeral-storage": "1Gi"}


def test_it_is_told_what_to_look_at():
    told = json.loads(values("train").job)
    assert told == ProbeJob.model_validate(told).model_dump(mode="json")
    assert (told["kind"], told["gpus"]) == ("probe", 8)


def test_it_is_known_from_a_run():
    labels = job("train")["spec"]["template"]["metadata"]["labels"]
    assert (labels["pi05.dev/kind"], labels["pi05.dev/task"]) == ("probe", "train")


@pytest.mark.parametrize("version", schemas.VERSIONS)
@every_kind
def test_it_is_valid(version, kind):
    try:
        schemas.folder(version)
    except schemas.Unavailable as error:
        pytest.skip(f"Kubernetes' API schemas: {error}")
    for manifest in yaml.safe_load_all(template(kind)):
        assert schemas.complaints(version, manifest) == []
