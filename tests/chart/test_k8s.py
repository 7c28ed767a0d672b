"""k8s/: what an admin applies once. It builds, and nobody gets more rights than the work needs."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
FOLDERS = ("base", "overlays/gke", "overlays/kueue", "overlays/local")

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which has kustomize in it, is not installed"
)


@cache
def build(folder: str) -> list[dict]:
    """Return the objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(folder: str, kind: str) -> dict[str, dict]:
    return {item["metadata"]["name"]: item for item in build(folder) if item["kind"] == kind}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_overlay_has_the_whole_base(folder):
    assert {(item["kind"], item["metadata"]["name"]) for item in build("base")} <= {
        (item["kind"], item["metadata"]["name"]) for item in build(folder)
    }
    assert all(item["metadata"].get("namespace") == "pi05" for item in build("base") if item["kind"] != "Namespace")


def test_all_overlays_are_tested():
    assert {str(path.parent.relative_to(K8S)) for path in K8S.rglob("kustomization.yaml")} == set(FOLDERS)


def test_the_namespace_admits_restricted_pods_only():
    labels = of_kind("base", "Namespace")["pi05"]["metadata"]["labels"]
    for mode in ("enforce", "warn", "audit"):
        assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"


def test_job_pods_have_no_rights_and_no_token():
    accounts = of_kind("base", "ServiceAccount")
    assert accounts["pi05-job"]["automountServiceAccountToken"] is False
    bound = [subject["name"] for item in of_kind("base", "RoleBinding").values() for subject in item["subjects"]]
    assert "pi05-job" not in bound


def rights(*roles: str) -> set[tuple[str, str, str]]:
    """Return (group, resource, verb) of roles."""
    found = of_kind("base", "Role")
    return {
        (group, resource, verb)
        for role in roles
        for rule in found[role]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_nobody_gets_more_than_the_work_needs():
    written = {(resource, verb) for _, resource, verb in rights("pi05-runs") if verb not in ("get", "list", "watch")}
    creates = {
        (resource, verb) for resource in ("jobs", "configmaps", "services") for verb in ("create", "patch", "delete")
    }
    assert written == creates | {
        ("secrets", "create"),
        ("secrets", "update"),
        ("secrets", "delete"),
        ("pods", "delete"),
    }
    assert {verb for _, _, verb in rights("pi05-user")} == {"get", "list", "watch"}
    assert not any("*" in right for right in rights("pi05-runs", "pi05-user"))
    assert not any(item["kind"].startswith("ClusterRole") for folder in FOLDERS for item in build(folder))


def test_who_has_which_role():
    bindings = of_kind("base", "RoleBinding").values()
    assert sorted(
        (item["subjects"][0]["kind"], item["subjects"][0]["name"], item["roleRef"]["name"]) for item in bindings
    ) == [
        ("Group", "pi05-users", "pi05-runs"),
        ("Group", "pi05-users", "pi05-user"),
        ("ServiceAccount", "pi05-controller", "pi05-runs"),
    ]


def test_pods_hear_each_other_and_reach_everything():
    policy = of_kind("base", "NetworkPolicy")["pi05-pods"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": {}}]}]


def test_google_accounts_hang_on_the_service_accounts():
    for name, account in of_kind("overlays/gke", "ServiceAccount").items():
        assert account["metadata"]["annotations"] == {
            "iam.gke.io/gcp-service-account": f"{name}@MY-PROJECT.iam.gserviceaccount.com"
        }


def test_the_queue_covers_all_that_pods_ask_for():
    asked = {"cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"}  # tests/golden/chart_*.yaml
    group = of_kind("overlays/kueue", "ClusterQueue")["pi05"]["spec"]["resourceGroups"][0]
    assert set(group["coveredResources"]) == asked
    assert {resource["name"] for resource in group["flavors"][0]["resources"]} == asked
