"""A member of pi05-users can do all that pi05ctl does, and nothing else; pods of jobs can do nothing."""

import json
from dataclasses import replace

import pytest

from pi05ctl.doctor.cluster import RIGHTS
from tests.cluster import runs
from tests.cluster.conftest import user
from tests.cluster.runs import small, status, submit, until_step

LONG = small(train__steps=100_000, train__save_every=100_000)
NOTHING_ELSE = (
    ("list", "nodes"),
    ("get", "secrets", "--namespace=kube-system"),
    ("list", "pods", "--namespace=default"),
    ("create", "pods"),
    ("create", "pods/exec"),
    ("create", "serviceaccounts/token"),
    ("create", "rolebindings"),
    ("delete", "namespaces"),
    ("update", "resourcequotas"),
)


@pytest.fixture(scope="module")
def site(site, tmp_path_factory):
    runs.settings(site)
    with pytest.MonkeyPatch.context() as patch:
        runs.put_dataset(site, patch, tmp_path_factory.mktemp("data") / "dataset")
    return site


@pytest.fixture(scope="module")
def person(site, cluster):
    return replace(site, cluster=user(cluster, "someone", "pi05-users"))


def test_a_user_submits_watches_cancels_and_collects(person):
    run = submit(person, "train", "pushcube", *LONG)
    until_step(person, run, 1)
    assert "Step 1: loss=" in person.pi05ctl("logs", run).stdout
    assert person.pi05ctl("cancel", run, "--now").returncode == 0
    assert status(person, run)["state"] == "Cancelled"
    collected = person.pi05ctl("gc", "-y", "--older-than", "0s")
    assert collected.returncode == 0, collected.stderr


@pytest.mark.parametrize("words", NOTHING_ELSE, ids=" ".join)
def test_and_nothing_else(person, words):
    assert person.kubectl("auth", "can-i", *words, check=False).strip() == "no"


def test_somebody_else_is_told_what_is_missing(site, cluster):
    stranger = replace(site, cluster=user(cluster, "stranger", "others"))
    for command in (["status"], ["submit", "train", "pushcube", *LONG]):
        done = stranger.pi05ctl(*command)
        assert done.returncode == 3
        assert done.stderr.count("\n") == 1
        assert "forbidden" in done.stderr
        assert "binds you to the role pi05-user" in done.stderr


def test_pods_of_jobs_can_do_nothing(site):
    account = f"system:serviceaccount:{site.namespace}:pi05-job"
    for verb, what in (("get", "pods"), ("list", "secrets"), ("create", "jobs"), ("get", "configmaps")):
        assert site.kubectl("auth", "can-i", verb, what, "--as", account, check=False).strip() == "no"


@pytest.mark.parametrize("right", RIGHTS, ids=[" ".join(right) for right in RIGHTS])
def test_a_pipelines_pod_may_do_what_pi05ctl_does_in_it(site, right):
    """Asked of the API server itself: kubectl auth can-i knows no resources of a Kueue that is not installed."""
    verb, group, resource = right
    name, _, part = resource.partition("/")
    asked = {"namespace": site.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{site.namespace}:pi05-controller",
            "resourceAttributes": {key: value for key, value in asked.items() if value},
        },
    }
    words = ("create", "-f", "-", "-o", "jsonpath={.status.allowed}")
    assert site.cluster.kubectl(*words, given=json.dumps(review)) == "true"
