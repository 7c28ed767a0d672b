"""What Helm and kustomize make is valid for every Kubernetes from 1.31 on: by its own schemas, unknown fields refused.

What an API server checks beyond its schemas (legal combinations, Pod Security) is for tests/cluster.
"""

import copy

import pytest
import yaml

from pi05ctl.cluster.values import CHART
from tests.chart import kustomize, schemas
from tests.chart.kustomize import FOLDERS, build
from tests.chart.profiles import PROFILES, manifests

every_version = pytest.mark.parametrize("version", schemas.VERSIONS)


@pytest.fixture
def complaints(version):
    """The schema check of a version; the test is skipped, with the reason, where its schemas cannot be had."""
    try:
        schemas.folder(version)
    except schemas.Unavailable as error:
        pytest.skip(f"Kubernetes' API schemas: {error}")
    return lambda manifest: schemas.complaints(version, manifest)


@every_version
@pytest.mark.parametrize("name", PROFILES)
def test_a_release_is_valid(complaints, name):
    """Of a JobSet the Job in it: its own schema is that of a real one, in tests/cluster."""
    for manifest in manifests(PROFILES[name]).values():
        if manifest["kind"] == "JobSet":
            manifest = {"apiVersion": "batch/v1", "kind": "Job", **manifest["spec"]["replicatedJobs"][0]["template"]}
        assert complaints(manifest) == []


@every_version
@pytest.mark.skipif(not kustomize.AVAILABLE, reason=kustomize.MISSING)
@pytest.mark.parametrize("folder", FOLDERS)
def test_what_outlives_a_run_is_valid(complaints, folder):
    """Except Kueue's objects, whose schemas are not Kubernetes' own."""
    for manifest in build(folder):
        if not manifest["apiVersion"].startswith("kueue."):
            assert complaints(manifest) == []


@every_version
def test_an_unknown_field_and_a_wrong_type_are_found(complaints):
    job = copy.deepcopy(manifests(PROFILES["train_full"])["Job"])
    job["spec"]["template"]["spec"]["restartPolice"] = "Never"
    job["spec"]["backoffLimit"] = "three"
    found = "\n".join(complaints(job))
    assert "Job spec.template.spec: Additional properties are not allowed ('restartPolice' was unexpected)" in found
    assert "Job spec.backoffLimit: 'three' is not of type 'integer'" in found


def test_the_oldest_version_checked_is_the_charts_minimum():
    minimum = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    assert minimum == ">=1.31.0-0"
    assert schemas.VERSIONS[0].startswith("v1.31.")
