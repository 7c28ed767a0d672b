"""The images of images/, pulled by a real node and run as the chart runs them: without root, on a read-only disk."""

import json
import os
import urllib.request
from typing import Any

import pytest

from tests.cluster.jobs import job

WRITABLE = {"name": "tmp", "emptyDir": {}}


def in_image(namespace: str, name: str, image: str, script: str) -> dict[str, Any]:
    made = job(name, namespace, image, script, volumes=[WRITABLE])
    container = made["spec"]["template"]["spec"]["containers"][0]
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    container["env"] = [{"name": "XLA_FLAGS", "value": "--xla_force_host_platform_device_count=8"}]
    return made


def test_train_has_jax_and_the_code(run, namespace, built):
    script = "python -c 'import jax, pi05.training.loop; print(jax.device_count())' && id -u && ! touch /opt/x 2>&1"
    said = run(in_image(namespace, "train", built["train"], script))
    assert said.splitlines() == ["8", "10001", "touch: cannot touch '/opt/x': Read-only file system"]


def test_sim_has_the_simulator_and_the_planner(run, namespace, built):
    script = """python - <<'PYTHON'
import importlib.util
from pi05 import simulator
from pi05.data import pool
pool.check_planner("/opt/planner/bin/python")
print(sorted(simulator.versions()), importlib.util.find_spec("pi05.jobs.evaluate") is not None)
PYTHON"""
    assert run(in_image(namespace, "sim", built["sim"], script)) == "['mani_skill', 'sapien'] True\n"


def test_ctl_has_the_controller_helm_and_the_chart(run, namespace, built):
    script = "helm version --short && python -m pi05ctl render train pushcube --preset tiny --target cluster"
    helm, *manifests = run(in_image(namespace, "ctl", built["ctl"], script)).splitlines()
    assert helm.startswith("v3.")
    assert "kind: Job" in manifests


@pytest.mark.parametrize("name", ["train", "sim", "ctl"])
def test_an_image_says_what_it_is_and_not_where_it_was_made(cluster, built, name):
    if not cluster.own:
        pytest.skip("it reads the harness's registry")
    config = read_config(built[name])
    labels = config["config"]["Labels"]
    assert config["config"]["User"] == "10001:10001"
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40
    secrets = [value for name, value in os.environ.items() if "INDEX" in name or name in ("SSL_CERT_FILE", "PIP_CERT")]
    assert not [secret for secret in secrets if secret in json.dumps(config)]


def read_config(image: str) -> dict[str, Any]:
    """Return what the registry knows of an image: user, labels, environment, every step of its build."""
    host, _, rest = image.partition("/")
    name, _, tag = rest.partition(":")
    manifest = fetch(f"http://{host}/v2/{name}/manifests/{tag}")
    return fetch(f"http://{host}/v2/{name}/blobs/{manifest['config']['digest']}")


def fetch(url: str) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        return json.load(answer)
