"""The cluster itself: what the other tests rest on is really there."""

from tests.cluster.conftest import until
from tests.cluster.jobs import job


def test_a_pod_that_asks_for_8_gpus_runs_and_its_log_can_be_read(cluster, namespace, run):
    said = run(
        job(
            "gpus",
            namespace,
            cluster.image("base"),
            "echo I am $(id -u); touch /x 2>/dev/null || echo read-only",
            gpus=8,
        )
    )
    assert said.splitlines() == ["I am 10001", "read-only"]


def test_a_ninth_gpu_is_not_there(cluster, namespace):
    cluster.apply(job("ninth", namespace, cluster.image("base"), "true", gpus=9))
    words = ("events", "--namespace", namespace, "--field-selector", "reason=FailedScheduling")
    said = until("the scheduler's word", lambda: cluster.get(*words)["items"])
    assert "Insufficient nvidia.com/gpu" in said[0]["message"]
    cluster.kubectl("delete", "job", "ninth", "--namespace", namespace)


def test_pod_security_refuses_a_pod_that_runs_as_root(cluster, namespace):
    root = job("root", namespace, cluster.image("base"), "true")
    root["spec"]["template"]["spec"]["containers"][0].pop("securityContext")
    cluster.apply(root)
    words = ("events", "--namespace", namespace, "--field-selector", "involvedObject.name=root,reason=FailedCreate")
    said = until("the Job controller's word", lambda: cluster.get(*words)["items"])
    assert 'violates PodSecurity "restricted' in said[0]["message"]
    assert "runAsNonRoot != true" in said[0]["message"]


def test_pods_of_a_job_find_each_other_by_name(cluster, namespace, run):
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "peers", "namespace": namespace},
        "spec": {"clusterIP": "None", "selector": {"name": "meet"}, "publishNotReadyAddresses": True},
    }
    script = "for other in 0 1; do until getent hosts meet-$other.peers; do sleep 0.2; done; done"
    said = run(job("meet", namespace, cluster.image("base"), script, pods=2, subdomain="peers"), service)
    names = sorted(line.split()[1] for line in said.splitlines())
    assert names == [f"meet-{n}.peers.{namespace}.svc.cluster.local" for n in (0, 0, 1, 1)]


def test_an_image_that_is_not_there_cannot_be_pulled(cluster, namespace):
    image = f"{cluster.image('base').partition('/')[0]}/nobody:nothing"
    cluster.apply(job("missing", namespace, image, "true"))

    def waiting() -> str:
        pods = cluster.get("pods", "--namespace", namespace, "--selector", "name=missing")["items"]
        states = [status["state"] for pod in pods for status in pod["status"].get("containerStatuses", ())]
        return next((state["waiting"]["reason"] for state in states if "waiting" in state), "")

    until("the pull to fail", lambda: waiting() in ("ErrImagePull", "ImagePullBackOff"))
    cluster.kubectl("delete", "job", "missing", "--namespace", namespace)
