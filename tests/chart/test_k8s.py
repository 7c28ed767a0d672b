"""k8s/: what an admin applies once. It builds, and nobody gets more rights than the work needs."""

import shutil

import pytest

from pi05ctl.doctor.cluster import PLACEHOLDER, RIGHTS
from tests.chart import kustomize
from tests.chart.kustomize import FOLDERS, build
from tests.chart.profiles import PROFILES, manifests

pytestmark = pytest.mark.skipif(not kustomize.AVAILABLE, reason=kustomize.MISSING)


def of_kind(folder: str, kind: str) -> dict[str, dict]:
    return {item["metadata"]["name"]: item for item in build(folder) if item["kind"] == kind}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_overlay_has_the_whole_base(folder):
    base, whole = ({(item["kind"], item["metadata"]["name"]) for item in build(name)} for name in ("base", folder))
    assert base <= whole


def test_everything_is_in_our_namespace():
    assert all(item["metadata"].get("namespace") == "pi05" for item in build("base") if item["kind"] != "Namespace")


def test_all_overlays_are_tested():
    found = {str(path.parent.relative_to(kustomize.K8S)) for path in kustomize.K8S.rglob("kustomization.yaml")}
    assert {name for name in found if not name.startswith("components/")} == set(FOLDERS)


def test_what_a_site_has_not_said_of_itself_is_not_applied(tmp_path):
    shutil.copytree(kustomize.K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("site.env"))
    for name in ("gke", "gke-kueue", "eks", "eks-kueue"):
        done = kustomize.called(tmp_path / "k8s/overlays" / name)
        assert done.returncode != 0
        assert "site.env" in done.stderr


def test_an_example_that_nobody_edited_is_not_left_out_of_sight():
    """`pi05ctl doctor` looks for what is still in capital letters."""
    account = of_kind("overlays/gke", "ServiceAccount")["pi05-job"]
    assert PLACEHOLDER in account["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]


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


LOOK = {"get", "list", "watch"}


def test_doctor_asks_for_every_right_of_the_role():
    assert {(group, resource, verb) for verb, group, resource in RIGHTS} == rights("pi05-runs")


def test_a_pipelines_pod_has_the_role_of_people_who_submit():
    bound = of_kind("base", "RoleBinding")["pi05-controller"]
    assert bound["roleRef"]["name"] == "pi05-runs"
    assert [subject["name"] for subject in bound["subjects"]] == ["pi05-controller"]


def test_nobody_gets_more_than_the_work_needs():
    changes = {(resource, verb) for _, resource, verb in rights("pi05-runs") if verb not in LOOK}
    of_a_run = {
        (what, verb) for what in ("jobs", "jobsets", "configmaps", "services") for verb in ("create", "patch", "delete")
    }
    of_helm = {("secrets", verb) for verb in ("create", "update", "delete")}
    assert changes == of_a_run | of_helm | {("pods", "delete")}
    assert {verb for _, _, verb in rights("pi05-user")} == LOOK
    assert not any("*" in right for right in rights("pi05-runs", "pi05-user"))
    assert not any(item["kind"].startswith("ClusterRole") for folder in FOLDERS for item in build(folder))


def test_who_has_which_role():
    bindings = of_kind("base", "RoleBinding").values()
    assert {(item["subjects"][0]["name"], item["roleRef"]["name"]) for item in bindings} == {
        ("pi05-users", "pi05-runs"),
        ("pi05-users", "pi05-user"),
        ("pi05-controller", "pi05-runs"),
    }
    assert all(len(item["subjects"]) == 1 for item in bindings)


def test_pods_hear_each_other_and_reach_everything():
    policy = of_kind("base", "NetworkPolicy")["pi05-pods"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": {}}]}]


def test_google_accounts_hang_on_the_service_accounts():
    for name, account in of_kind("overlays/gke", "ServiceAccount").items():
        assert account["metadata"]["annotations"] == {
            "iam.gke.io/gcp-service-account": f"{name}@MY-PROJECT.iam.gserviceaccount.com"
        }


def test_roles_of_aws_hang_on_the_service_accounts():
    for name, account in of_kind("overlays/eks", "ServiceAccount").items():
        assert account["metadata"]["annotations"] == {
            "eks.amazonaws.com/role-arn": f"arn:aws:iam::MY-ACCOUNT:role/{name}"
        }


@pytest.mark.parametrize("cloud", ["gke", "eks"])
def test_a_queue_takes_the_place_of_the_quota(cloud):
    assert of_kind(f"overlays/{cloud}", "ResourceQuota")
    assert not of_kind(f"overlays/{cloud}-kueue", "ResourceQuota")
    assert of_kind(f"overlays/{cloud}-kueue", "ServiceAccount") == of_kind(f"overlays/{cloud}", "ServiceAccount")


@pytest.mark.parametrize("folder", ["overlays/kueue", "overlays/gke-kueue", "overlays/eks-kueue"])
def test_the_queue_covers_all_that_pods_ask_for(folder):
    ordinary = [shown for name, shown in PROFILES.items() if name not in ("train_everything", "train_two_nodes_jobset")]
    pods = [manifests(shown)["Job"]["spec"]["template"]["spec"] for shown in ordinary]
    asked = {resource for pod in pods for resource in pod["containers"][0]["resources"]["requests"]}
    group = of_kind(folder, "ClusterQueue")["pi05"]["spec"]["resourceGroups"][0]
    assert set(group["coveredResources"]) == asked
    assert {resource["name"] for resource in group["flavors"][0]["resources"]} == asked
