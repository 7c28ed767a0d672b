"""Fake nodes: Pods on them do what their annotations say. What a benchmark of thousands of Pods rests on."""

import json

import pytest

from tests.cluster.conftest import until
from tests.cluster.harness import kwok
from tests.cluster.jobs import job


@pytest.fixture(scope="module")
def fake(cluster):
    if not cluster.own:
        pytest.skip("kwok is of the harness's own cluster")
    kwok.up(nodes=2, log=["Step 1: loss=0.5", "Step 2: loss=0.25"])
    yield
    kwok.down()


@pytest.mark.usefixtures("fake")
def test_pods_on_fake_nodes_run_end_and_fail_as_they_are_told(cluster, namespace):
    told = {
        "runs": {},
        "ends": {"test.pi05.dev/after": "1s"},
        "fails": {
            "test.pi05.dev/after": "1s",
            "test.pi05.dev/exit-code": "137",
            "test.pi05.dev/reason": "OOMKilled",
            "test.pi05.dev/message": 'PI05 {"kind": "failed"}',
        },
    }
    there = {"nodeSelector": {kwok.LABEL: "fake"}, "tolerations": [kwok.TOLERATION]}
    jobs = [job(name, namespace, "nobody/pulls:this", "true", pods=2, gpus=4, **there) for name in told]
    for one, annotations in zip(jobs, told.values(), strict=True):
        one["spec"]["template"]["metadata"]["annotations"] = annotations
    cluster.apply(*jobs)

    def phases() -> dict[str, set[str]]:
        pods = cluster.get("pods", "--namespace", namespace)["items"]
        names = [pod["metadata"]["labels"]["name"] for pod in pods]
        return {name: {p["status"]["phase"] for p, n in zip(pods, names, strict=True) if n == name} for name in told}

    until("their ends", lambda: phases() == {"runs": {"Running"}, "ends": {"Succeeded"}, "fails": {"Failed"}})
    assert cluster.kubectl("--namespace", namespace, "logs", "job/runs").splitlines()[-1] == "Step 2: loss=0.25"
    failed = cluster.get("pods", "--namespace", namespace, "--selector", "name=fails")["items"][0]
    terminated = failed["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (137, "OOMKilled")
    assert json.loads(terminated["message"].removeprefix("PI05 ")) == {"kind": "failed"}
