"""pi05ctl doctor and gc on a real cluster: every piece that can be missing, provoked; pods that are removed."""

import json
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pi05ctl.doctor.cluster import RIGHTS
from pi05ctl.doctor.pods import KINDS
from tests.cluster import runs
from tests.cluster.conftest import Site, until, user
from tests.cluster.runs import ended, small, status, submit, until_state

PODS = [f"{kind} pod" for kind in KINDS]


@pytest.fixture(autouse=True)
def _settings(site):
    yield
    site.settings()
    assert leftovers(site) == []


def doctor(site: Site, *words: str, seconds: float = 600) -> tuple[int, dict[str, dict]]:
    """Return the exit code and the findings."""
    done = site.pi05ctl("doctor", "-o", "json", *words, seconds=seconds)
    assert done.stdout, done.stderr
    return done.returncode, {row["check"]: row for row in json.loads(done.stdout)}


def here(site: Site, *words: str) -> tuple[int, dict[str, dict]]:
    """Look without pods."""
    return doctor(site, "--no-pods", *words)


def missing(findings: dict[str, dict]) -> set[str]:
    return {name for name, row in findings.items() if row["state"] == "missing"}


def leftovers(site: Site) -> list[str]:
    """Return the names of what probes have left, once Kubernetes has had its time to delete it."""

    def names() -> list[str]:
        found = site.get("jobs,pods,configmaps,secrets")["items"]
        return [item["metadata"]["name"] for item in found if "probe-" in item["metadata"]["name"]]

    end = time.monotonic() + 60
    while (left := names()) and time.monotonic() < end:
        time.sleep(0.5)
    return left


# ---- Nothing is missing ----------------------------------------------------------------------------------------------
def test_nothing_is_missing_for_a_user_and_probes_are_no_runs(site, cluster):
    person = replace(site, cluster=user(cluster, "someone", "pi05-users"))
    looking = person.start("doctor", "--light", "-o", "json")
    until("a probe's pod", lambda: "probe-" in site.kubectl("get", "pods", "-o", "name"))
    shown = person.pi05ctl("status", "-o", "json")
    code, output = ended(looking, 600)
    findings = {row["check"]: row for row in json.loads(output)}
    assert (code, missing(findings)) == (0, set()), output
    assert (shown.returncode, shown.stdout) == (0, "[]\n")
    assert findings["nodes"]["state"] == "skipped"
    assert "not allowed to look" in findings["nodes"]["text"]
    assert findings["weights"]["state"] == "warning"
    for name in PODS:
        assert findings[name]["state"] == "ok"
        assert f"starts and reaches {site.storage}" in findings[name]["text"]
    assert "jax" in findings["train pod"]["text"]
    assert "mani_skill" in findings["eval pod"]["text"]
    assert "kubernetes" in findings["pipeline pod"]["text"]


def test_a_probe_of_training_has_its_gpus(site):
    code, findings = doctor(site)
    assert code == 0, findings
    # Another test's training may have them now: then that is said, and is nobody's fault.
    train = findings["train pod"]
    assert (train["state"], "8 x cpu" in train["text"]) == ("ok", True) or "Insufficient nvidia.com/gpu" in train[
        "text"
    ]


def test_looking_from_here_takes_seconds(site):
    start = time.monotonic()
    code, findings = here(site)
    print(f"doctor --no-pods: {time.monotonic() - start:.1f} s")
    assert code == 0
    assert {name for name, row in findings.items() if row["state"] == "ok"} >= {"helm", "rights", "bucket", "nodes"}


# ---- Something is ----------------------------------------------------------------------------------------------------
def test_a_wrong_context(site):
    site.settings(context="pi05-tset")
    code, findings = here(site)
    assert (code, missing(findings)) == (3, {"context"})
    assert "the kubeconfig has no context 'pi05-tset'" in findings["context"]["text"]
    assert findings["namespace"]["state"] == "blocked"


def test_no_kubeconfig(site, tmp_path):
    code, findings = here(replace(site, cluster=replace(site.cluster, kubeconfig=tmp_path / "none")))
    assert (code, missing(findings)) == (3, {"context"})
    assert "set KUBECONFIG" in findings["context"]["text"]


def test_a_cluster_that_does_not_answer(site, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    content = json.loads(Path(site.cluster.kubeconfig).read_text())
    content["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    (tmp_path / "config").write_text(json.dumps(content))
    start = time.monotonic()
    code, findings = here(replace(site, cluster=replace(site.cluster, kubeconfig=tmp_path / "config")))
    assert (code, missing(findings)) == (3, {"api server"})
    assert "refused" in findings["api server"]["text"]
    assert findings["bucket"]["state"] == "ok"
    assert time.monotonic() - start < 20


def test_no_namespace(site):
    site.settings(namespace="nowhere")
    code, findings = doctor(site)
    assert (code, missing(findings)) == (3, {"namespace"})
    assert findings["namespace"]["text"] == "there is no namespace nowhere"
    assert "kubectl apply -k" in findings["namespace"]["remedy"]
    assert {findings[name]["state"] for name in PODS} == {"blocked"}


def test_no_rights(site, cluster):
    stranger = replace(site, cluster=user(cluster, "stranger", "strangers"))
    code, findings = doctor(stranger)
    assert (code, missing(findings)) == (3, {"rights"})
    assert f"{len(RIGHTS)} of {len(RIGHTS)} rights" in findings["rights"]["text"]
    assert findings["namespace"]["state"] == findings["quota"]["state"] == "skipped"
    assert {findings[name]["state"] for name in PODS} == {"blocked"}


def test_some_rights(site, cluster):
    """A user whom somebody gave the right to look, and no more."""
    words = ["rolebinding", "looks", "--role=pi05-user", "--group=lookers"]
    site.kubectl("create", *words)
    site.kubectl("create", "role", "half", "--verb=get,list", "--resource=jobs,pods,events,configmaps,secrets")
    site.kubectl("create", "rolebinding", "half", "--role=half", "--group=lookers")
    code, findings = here(replace(site, cluster=user(cluster, "looker", "lookers")))
    assert (code, missing(findings)) == (3, {"rights"})
    assert "watch create patch delete jobs;" in findings["rights"]["text"]
    assert "watch delete pods; get pods/log;" in findings["rights"]["text"]
    assert findings["namespace"]["state"] == findings["accounts"]["state"] == "ok"


def test_a_namespace_that_is_not_strict(site):
    label = "pod-security.kubernetes.io/enforce"
    site.cluster.kubectl("label", "namespace", site.namespace, f"{label}-", "--overwrite")
    try:
        code, findings = here(site)
    finally:
        site.cluster.kubectl("label", "namespace", site.namespace, f"{label}=restricted")
    assert (code, findings["namespace"]["state"]) == (0, "warning")


def test_no_bucket(site):
    site.settings(storage="gs://pi05-nowhere/x")
    code, findings = here(site)
    assert (code, missing(findings)) == (3, {"bucket"})
    assert "there is no such bucket" in findings["bucket"]["text"]
    assert findings["weights"]["state"] == "blocked"


def test_no_queue_and_a_quota_that_is_too_small(site):
    site.settings(queue="team")
    site.kubectl("create", "quota", "small", "--hard=requests.nvidia.com/gpu=4")
    try:
        code, findings = here(site)
    finally:
        site.kubectl("delete", "quota", "small")
    assert (code, missing(findings)) == (3, {"queue", "quota"})
    assert "this cluster has no Kueue" in findings["queue"]["text"]
    assert "small allows requests.nvidia.com/gpu 4, it asks for 8" in findings["quota"]["text"]


def test_too_few_gpus_and_images_that_are_not_there(site):
    name = site.images["ctl"].rpartition(":")[0]
    site.settings(train={"gpus": 16}, images=site.images | {"ctl": f"{name}:nowhere", "sim": f"{name}:Not a name"})
    code, findings = doctor(site)
    assert code == 3
    assert missing(findings) == {"nodes", *PODS}
    assert "0 of 1 nodes have 16 nvidia.com/gpu" in findings["nodes"]["text"]
    assert "Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu" in findings["train pod"]["text"]
    assert "[cluster.train]" in findings["train pod"]["remedy"]
    assert "InvalidImageName" in findings["eval pod"]["text"]
    assert f"{name}:nowhere: ImagePullBackOff" in findings["pipeline pod"]["text"]
    assert "[cluster.images]" in findings["pipeline pod"]["remedy"]


def test_what_only_a_pod_can_find(site):
    """The bucket cannot be reached from there, the image of eval is another one, and the pipeline has no rights."""
    wrong = {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:1"} if site.cluster.emulator else {}
    site.settings(images=site.images | {"sim": site.images["ctl"]}, env=wrong)
    binding = "rolebinding/pi05-controller"
    kept = json.dumps(site.get(binding))
    site.kubectl("delete", binding)
    try:
        code, findings = doctor(site, "--light")
    finally:
        saved = json.loads(kept)
        saved["metadata"] = {key: saved["metadata"][key] for key in ("name", "namespace", "labels")}
        site.cluster.apply(saved)
    assert (code, missing(findings)) == (3, set(PODS))
    for name in PODS:
        assert (
            not wrong or f"{site.storage.removesuffix('/' + site.namespace)}: could not write" in findings[name]["text"]
        )
    assert "JAX does not start" in findings["eval pod"]["text"]
    assert "the motion planner is not in the image: /opt/planner/bin/python" in findings["eval pod"]["text"]
    assert "service account may not get jobs, list jobs, watch jobs, create jobs" in findings["pipeline pod"]["text"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_doctor_removes_its_pods(site, number):
    looking = site.start("doctor")
    until("a probe", lambda: "probe-" in site.kubectl("get", "jobs", "-o", "name"))
    looking.send_signal(number)
    code, output = ended(looking, 120)
    assert code == 130, output
    assert "Traceback" not in output
    assert leftovers(site) == []


def test_a_doctor_that_ran_out_of_time_removes_its_pods(site):
    code, findings = doctor(site, "--timeout", "1", "--light")
    assert code == 3
    assert any("not done after 1 s" in findings[name]["text"] for name in PODS)
    assert leftovers(site) == []


# ---- gc --------------------------------------------------------------------------------------------------------------
def test_what_ended_runs_left_is_removed_and_nothing_else(site, monkeypatch, tmp_path):
    runs.settings(site)
    runs.put_dataset(site, monkeypatch, tmp_path / "dataset", train__steps=4, train__save_every=2)
    few = small(train__steps=4, train__save_every=2, train__keep_every=2)
    done = submit(site, "train", "pushcube", *few)
    until_state(site, done, "Done")
    runs.settings(site, devices=3)
    failed = submit(site, "train", "pushcube", *few, "--set", "train.seed=1")
    before = until_state(site, failed, "Failed")
    runs.settings(site)
    alive = submit(site, "train", "pushcube", *small(train__steps=100_000, train__save_every=100_000))
    until_state(site, alive, "Running")
    bucket = runs.storage(site, monkeypatch)
    kept = {key: bucket.children(f"runs/{done}/{key}") for key in ("checkpoints", "logs")}
    bucket.write(f"runs/{done}/checkpoints/3/params/x", b"half")
    site.kubectl("delete", "secret", "-l", f"name={failed},owner=helm")  # a Job that Helm has lost
    try:
        dry = site.pi05ctl("gc", "--older-than", "0s", "--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert site.pi05ctl("gc", "--older-than", "0s").returncode == 2  # nobody can be asked
        assert {item["metadata"]["name"] for item in site.get("jobs")["items"]} == {done, failed, alive}
        week = json.loads(site.pi05ctl("gc", "-o", "json", "-y").stdout)
        assert week["leftovers"] == []
        assert sum(" ended " in line for line in week["left"]) == 2
        collected = site.pi05ctl("gc", "--older-than", "0s", "-y")
        assert collected.returncode == 0, collected.stderr
        assert f"removed: {done}  Done" in collected.stdout
        assert f"runs/{done}/checkpoints/3 (never completed)" in collected.stdout
        assert f"stays: {alive} is Running" in collected.stderr
        until("Jobs to go", lambda: [j["metadata"]["name"] for j in site.get("jobs")["items"]] == [alive])
        assert failed not in str(site.get("configmaps"))
        assert {key: bucket.children(f"runs/{done}/{key}") for key in ("checkpoints", "logs")} == kept
        assert (status(site, done)["state"], status(site, failed)["state"]) == ("Done", "Failed")
        assert before["why"] in status(site, failed)["why"]
        assert status(site, alive)["state"] == "Running"
        assert site.pi05ctl("gc", "--older-than", "0s", "-y").stdout == ""
    finally:
        site.pi05ctl("cancel", alive, "--now")
