"""charts/pi05 through Helm itself: what a run becomes, and what is refused."""

import json
import os
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pi05 import disk
from pi05.errors import CompanyLost, LeftAlone
from pi05ctl.cluster.values import CHART
from pi05ctl.spec.settings import Cluster, Images, Toleration, TrainPods
from tests.chart.profiles import EVERYTHING, PROFILES, Profile, changed, helm, leaves, manifests, profile, template

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
MANUAL = (CHART / "values.yaml").read_text()

EXAMPLES = [CHART / "ci" / f"{kind}-values.yaml" for kind in ("demos", "train", "eval", "pipeline")]

every_profile = pytest.mark.parametrize("shown", PROFILES.values(), ids=PROFILES.keys())


def outer(shown: Profile) -> dict:
    """Return the object that runs: a Job or a JobSet."""
    made = manifests(shown)
    return made.get("JobSet") or made["Job"]


def job(shown: Profile) -> dict:
    """Return the Job, if need be that in the JobSet."""
    made = outer(shown)
    if made["kind"] == "Job":
        return made
    return made["spec"]["replicatedJobs"][0]["template"] | {"metadata": made["metadata"]}


def pod(shown: Profile) -> dict:
    return job(shown)["spec"]["template"]["spec"]


def container(shown: Profile) -> dict:
    return pod(shown)["containers"][0]


# ---- What is made ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROFILES)
def test_the_manifests_are_golden(name):
    path = GOLDEN / f"chart_{name}.yaml"
    made = template(PROFILES[name])
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(made)
    assert made == path.read_text(), f"UPDATE_GOLDEN=1 scripts/test chart rewrites {path.name}"


@every_profile
def test_the_manifests_are_the_same_bytes_every_time(shown):
    assert template(shown) == template(shown, "--kube-version", "1.31.0")


def test_templates_use_nothing_that_changes_by_itself():
    for path in (CHART / "templates").iterdir():
        found = re.findall(r"\b(now|rand\w+|lookup|uuidv4|genCA\w*|suspend:)", path.read_text())
        assert not found, f"{path.name}: {found}"


@every_profile
def test_helm_lints_it_strictly(shown):
    done = helm("lint", "--strict", str(CHART), values=shown.values.to_json())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 chart(s) linted, 0 chart(s) failed" in done.stdout


@every_profile
def test_the_pod_is_told_the_job_byte_for_byte(shown):
    assert manifests(shown)["ConfigMap"]["data"]["job.json"].encode() == shown.run.job_json


@every_profile
def test_job_and_pod_carry_our_labels(shown):
    made = job(shown)
    for labels in (made["metadata"]["labels"], made["spec"]["template"]["metadata"]["labels"]):
        assert labels["app.kubernetes.io/part-of"] == "pi05"
        assert labels["pi05.dev/run"] == made["metadata"]["name"] == shown.run.run
        assert labels["pi05.dev/task"] == shown.run.spec.task
        assert labels["pi05.dev/kind"] == shown.run.spec.kind


@every_profile
def test_evictions_do_not_count_and_hopeless_jobs_are_not_tried_again(shown):
    evicted, fail, *_ = job(shown)["spec"]["podFailurePolicy"]["rules"]
    jobset = outer(shown)["kind"] == "JobSet"
    assert evicted["action"] == ("FailJob" if jobset else "Ignore")
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert fail["action"] == ("FailIndex" if shown.run.spec.kind in ("demos", "eval") else "FailJob")
    assert fail["onExitCodes"] == {
        "containerName": container(shown)["name"],
        "operator": "In",
        "values": [64, 65, 66, 67],
    }
    assert job(shown)["spec"]["podReplacementPolicy"] == "Failed"
    assert pod(shown)["restartPolicy"] == "Never"


@every_profile
def test_gpus_and_memory_are_requested_as_they_are_limited(shown):
    resources = container(shown)["resources"]
    more = shown.values.resources.limits.items()  # not of GPUs and memory
    assert resources["limits"].items() - more <= resources["requests"].items()
    assert more <= resources["limits"].items()
    assert "memory" in resources["limits"]
    assert ("nvidia.com/gpu" in resources["limits"]) == (shown.run.spec.kind == "train")


@every_profile
def test_only_a_pipeline_has_a_token(shown):
    pipeline = shown.run.spec.kind == "pipeline"
    assert pod(shown)["automountServiceAccountToken"] is pipeline
    assert pod(shown)["serviceAccountName"] == ("pi05-controller" if pipeline else "pi05-job")


RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@every_profile
def test_pods_keep_the_rules_of_pod_security_restricted(shown):
    spec = pod(shown)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
    kinds = {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert [item["securityContext"] for item in spec["containers"]] == [RESTRICTED]
    assert all("hostPort" not in port for item in spec["containers"] for port in item.get("ports", []))


@every_profile
def test_whatever_is_writable_has_a_size(shown):
    sizes = {
        volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod(shown)["volumes"] if "emptyDir" in volume
    }
    mounts = {
        mount["mountPath"]: mount["name"] for mount in container(shown)["volumeMounts"] if "readOnly" not in mount
    }
    assert {path: sizes[name] for path, name in mounts.items()} == {
        "/tmp": "1Gi",
        "/scratch": shown.values.resources.scratch,
        "/dev/shm": shown.values.resources.shm,
    }


def test_a_training_on_one_node_is_one_pod_with_eight_gpus():
    made = job(PROFILES["train_tiny"])["spec"]
    assert (made["completions"], made["parallelism"], made["backoffLimit"]) == (1, 1, 3)
    assert container(PROFILES["train_tiny"])["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert "Service" not in manifests(PROFILES["train_tiny"])
    assert container(PROFILES["train_tiny"])["args"] == ["/etc/pi05/job.json", "--attempt=$(POD)", "--gpus=8"]


def test_the_pods_of_a_training_find_their_coordinator():
    made = manifests(PROFILES["train_two_nodes_queued"])
    service, spec = made["Service"], made["Job"]["spec"]
    run = made["Job"]["metadata"]["name"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()
    assert service["spec"]["clusterIP"] == "None"
    arguments = spec["template"]["spec"]["containers"][0]["args"]
    port = service["spec"]["ports"][0]["port"]
    assert arguments[3:] == ["--process=$(INDEX)", "--processes=2", f"--coordinator={run}-0.{run}:{port}"]


def test_the_pods_of_a_jobset_start_and_end_together():
    made = manifests(PROFILES["train_two_nodes_jobset"])
    spec, run = made["JobSet"]["spec"], made["JobSet"]["metadata"]["name"]
    assert made.keys() == {"ConfigMap", "JobSet"}
    assert made["JobSet"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "pi05"
    assert (spec["failurePolicy"]["maxRestarts"], [one["replicas"] for one in spec["replicatedJobs"]]) == (3, [1])
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert (job["backoffLimit"], job["completions"], job["parallelism"]) == (0, 2, 2)
    arguments = job["template"]["spec"]["containers"][0]["args"]
    assert arguments[-1] == f"--coordinator={run}-train-0-0.{spec['network']['subdomain']}:8476"
    assert spec["network"]["subdomain"] == run


def test_one_lost_process_costs_one_failure_however_many_there_are():
    rules = job(PROFILES["train_two_nodes_queued"])["spec"]["podFailurePolicy"]["rules"]
    assert rules[2]["action"] == "Ignore"
    assert rules[2]["onExitCodes"]["values"] == [69] == [CompanyLost.exit_code] == [LeftAlone.exit_code]
    assert job(PROFILES["train_two_nodes_queued"])["spec"]["backoffLimit"] == 3


@pytest.mark.parametrize("name", ["demos", "eval_four_shards"])
def test_shards_fail_and_are_retried_alone(name):
    made = job(PROFILES[name])["spec"]
    assert (made["completionMode"], made["completions"], made["parallelism"]) == ("Indexed", 4, 4)
    assert (made["backoffLimitPerIndex"], made["maxFailedIndexes"]) == (2, 1)
    assert "backoffLimit" not in made
    assert container(PROFILES[name])["args"][2:] == ["--shard=$(INDEX)", "--shards=4"]


def test_a_queued_job_is_labelled_for_kueue():
    labels = job(PROFILES["train_two_nodes_queued"])["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "pi05"
    assert labels["kueue.x-k8s.io/priority-class"] == "urgent"


def test_settings_of_the_cluster_reach_the_pod():
    spec = pod(PROFILES["train_two_nodes_queued"])
    assert spec["nodeSelector"] == {"team": "robots", "gpu": "h100"}
    assert [toleration["key"] for toleration in spec["tolerations"]] == ["nvidia.com/gpu", "spot"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert {"name": "XLA_FLAGS", "value": "--xla_dump_to=/scratch"} in spec["containers"][0]["env"]


def test_what_an_admin_asks_for_reaches_the_pod_in_kubernetes_own_words():
    made = job(PROFILES["train_everything"])
    template, asked = made["spec"]["template"], EVERYTHING
    spec, main = template["spec"], template["spec"]["containers"][0]
    for metadata in (made["metadata"], template["metadata"]):
        assert asked.labels.items() <= metadata["labels"].items()
        assert asked.annotations.items() <= metadata["annotations"].items()
    assert {"name": "TOKEN", "valueFrom": asked.env["TOKEN"]} in main["env"]
    assert main["envFrom"] == list(asked.env_from)
    assert spec["volumes"][-1:] == list(asked.volumes)
    assert main["volumeMounts"][-1:] == list(asked.volume_mounts)
    assert spec["affinity"] == asked.affinity
    assert spec["topologySpreadConstraints"] == list(asked.topology_spread_constraints)
    assert (spec["runtimeClassName"], spec["schedulerName"], spec["priorityClassName"]) == (
        "nvidia",
        "volcano",
        "robots",
    )
    assert main["resources"]["limits"]["rdma/hca"] == main["resources"]["requests"]["rdma/hca"] == 1
    assert spec["securityContext"] == asked.security_context


def test_a_kind_adds_to_what_all_pods_get_and_outranks_it():
    own = TrainPods(
        env={"A": "2", "B": "2"},
        tolerations=(Toleration(key="gpu-team"),),
        priority_class_name="high",
        service_account="trainer",
    )
    all_pods = Cluster(env={"A": "1"}, tolerations=(Toleration(key="spot"),), priority_class_name="low", train=own)
    spec, others = (pod(profile(kind, "pushcube", "tiny", all_pods)) for kind in ("train", "eval"))
    given = {one["name"]: one.get("value") for one in spec["containers"][0]["env"]}
    assert (given["A"], given["B"]) == ("2", "2")
    assert [one["key"] for one in spec["tolerations"]] == ["nvidia.com/gpu", "spot", "gpu-team"]
    assert [one["key"] for one in others["tolerations"]] == ["spot"]
    assert (spec["priorityClassName"], others["priorityClassName"]) == ("high", "low")
    assert (spec["serviceAccountName"], others["serviceAccountName"]) == ("trainer", "pi05-job")


def test_pods_with_gpus_compute_on_them_or_not_at_all():
    cuda = {"name": "JAX_PLATFORMS", "value": "cuda"}
    assert cuda in container(PROFILES["train_tiny"])["env"]
    assert cuda not in container(PROFILES["eval_four_shards"])["env"]


@every_profile
def test_a_pod_knows_how_much_disk_it_may_fill(shown):
    known = next(one for one in container(shown)["env"] if one["name"] == disk.LIMIT)["valueFrom"]["resourceFieldRef"]
    assert known == {"containerName": container(shown)["name"], "resource": "requests.ephemeral-storage"}
    assert container(shown)["resources"]["requests"]["ephemeral-storage"] == shown.values.resources.scratch


# ---- The manual ------------------------------------------------------------------------------------------------------
def test_the_manual_holds_every_value_and_no_other():
    tree = PROFILES["demos"].values.model_dump(mode="json", by_alias=True)
    assert leaves(yaml.safe_load(MANUAL)) == leaves(tree)


def test_the_manual_explains_every_value():
    pairs = pairwise(MANUAL.splitlines())
    alone = [line for before, line in pairs if re.match(r"\s*\w+: \S", line) and not before.lstrip().startswith("#")]
    assert not alone


@pytest.mark.parametrize("path", leaves(yaml.safe_load(MANUAL)), ids=".".join)
def test_every_value_changes_something(path):
    for shown in PROFILES.values():
        values = shown.values.to_json()
        if template(shown, "--skip-schema-validation", values=changed(values, path)) != template(shown):
            return
    pytest.fail(f"no template uses {'.'.join(path)}")


def test_the_chart_is_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert all(image.endswith(f":{version}") for image in Images().model_dump().values())


# ---- What is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("imgae", "x", "Additional property imgae is not allowed"),
        ("resources.gpu", 8, "Additional property gpu is not allowed"),
        ("run.kind", "trian", "run.kind must be one of the following"),
        ("pods", 0, "pods: Must be greater than"),
        ("pods", "two", "pods: Invalid type. Expected: integer, given: string"),
        ("resources.memory", "12GB", "resources.memory: Does not match pattern"),
        ("pod.tolerations", [{"kye": "x"}], "Additional property kye is not allowed"),
        ("container.env", {"A": 1}, "container.env.A: Must validate at least one schema (anyOf)"),
        ("queue", None, "queue is required"),
    ],
)
def test_the_schema_refuses_what_means_nothing(path, value, message):
    tree = json.loads(PROFILES["train_full"].values.to_json())
    *tables, key = path.split(".")
    table = tree
    for name in tables:
        table = table[name]
    table[key] = value
    done = helm("template", PROFILES["train_full"].run.run, str(CHART), values=json.dumps(tree))
    assert done.returncode != 0
    assert message in done.stderr


def test_without_values_nothing_is_made():
    done = helm("template", "x", str(CHART))
    assert done.returncode != 0
    assert "no run was given: a release is one run, whose values pi05ctl makes (pi05ctl submit)" in done.stderr
    assert helm("lint", "--strict", str(CHART)).returncode == 0


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_chart_has_values_of_each_kind_to_try(path):
    """The convention of chart-testing."""
    name = path.name.removesuffix("-values.yaml")
    shown = PROFILES[{"train": "train_full", "eval": "eval_four_shards"}.get(name, name)]
    made = yaml.safe_dump(json.loads(shown.values.to_json()), sort_keys=False, width=120)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(f"# helm install {shown.run.run} charts/pi05 --values charts/pi05/ci/{path.name}\n{made}")
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(made)
    done = helm("lint", "--strict", str(CHART), values=path.read_text())
    assert done.returncode == 0, done.stdout
    install = path.read_text().splitlines()[0].split()
    done = helm("template", install[3], str(CHART), values=path.read_text())
    assert done.returncode == 0, done.stderr


def test_a_release_of_another_name_is_refused():
    shown = PROFILES["demos"]
    done = helm("template", "mine", str(CHART), values=shown.values.to_json())
    assert done.returncode != 0
    assert f"the release is named mine and the run in values.job {shown.run.run}; both must be the same" in done.stderr


def test_an_old_kubernetes_is_refused():
    shown = PROFILES["demos"]
    done = helm("template", shown.run.run, str(CHART), "--kube-version", "1.30.9", values=shown.values.to_json())
    assert done.returncode != 0
    assert "chart requires kubeVersion: >=1.31.0-0 which is incompatible with Kubernetes v1.30.9" in done.stderr


def test_a_google_version_is_taken():
    assert template(PROFILES["demos"], "--kube-version", "v1.31.1-gke.1678000")


def test_odd_but_legal_names_stay_strings():
    cluster = profile("demos", "pushcube", "tiny").cluster.model_copy(update={"queue": "007", "service_account": "1e3"})
    shown = profile("demos", "pushcube", "tiny", cluster)
    assert job(shown)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "007"
    assert pod(shown)["serviceAccountName"] == "1e3"
