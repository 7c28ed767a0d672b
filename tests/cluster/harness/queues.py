"""Kueue and JobSet in the cluster, from their own manifests, as an admin would install them.

Different from that are: the images, made of programs that were built here; the certificates of their webhooks, which
are the harness's, because their own take a minute to arrive; and what they ask for, as the node has two cores.
"""

import base64
import functools
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from tests.cluster.harness import images, pki
from tests.cluster.harness.layout import KUBECONFIG, STATE
from tests.cluster.harness.processes import until

NAMES = ("jobset", "kueue")
_CONFIG = "controller_manager_config.yaml"
_FRAMEWORKS = ["batch/job", "jobset.x-k8s.io/jobset"]
_METRICS = "/etc/kueue/metrics/certs"
_RESOURCES = {"requests": {"cpu": "100m"}}
"""Of each; without any, a busy machine would let them wait for seconds."""
_SERVED = "visibility.kueue.x-k8s.io"
"""An API of Kueue's own that nothing of ours asks for, and that takes long to come and go."""

Object = dict[str, Any]


def install(programs: Path) -> None:
    """Install both and return when they work: first the programs, then the webhooks that need them."""
    installed = {name: _objects(name, programs) for name in NAMES}
    for objects in installed.values():
        _apply(programs, (one for one in objects if "Webhook" not in one["kind"]))
    for name in NAMES:
        words = ("rollout", "status", f"deployment/{name}-controller-manager", f"--namespace={name}-system")
        _kubectl(programs, *words, "--timeout=120s")
    for objects in installed.values():
        _apply(programs, (one for one in objects if "Webhook" in one["kind"]))
    until("JobSet and Kueue to answer", functools.partial(_answer, programs), 60)


def remove(programs: Path) -> None:
    """Remove both with all that was made through them, while they still can tidy up."""
    made = ("workloads", "localqueues", "clusterqueues", "cohorts", "resourceflavors", "workloadpriorityclasses")
    _kubectl(programs, "delete", "jobsets", "--all", "--all-namespaces", "--timeout=60s")
    for kind in made:
        scope = ["--all-namespaces"] if kind in ("workloads", "localqueues") else []
        _kubectl(programs, "delete", f"{kind}.kueue.x-k8s.io", "--all", *scope, "--timeout=60s")
    for name in NAMES:
        gone = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(reversed(_objects(name, programs)))})
        _kubectl(programs, "delete", "--ignore-not-found", "--timeout=60s", "-f", "-", given=gone)


def _answer(programs: Path) -> bool:
    """Whether a JobSet and a queue would be taken: their webhooks have been asked."""
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "probe"}}
    job = {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}}}
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"replicatedJobs": [{"name": "a", "template": job}]},
    }
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": [flavor, jobset]})
    return _call(programs, "create", "--dry-run=server", "-f", "-", given=given).returncode == 0


# ---- What is installed -----------------------------------------------------------------------------------------------
def _objects(name: str, programs: Path) -> list[Object]:
    """Return the objects of one of them, in the order of their manifests."""
    built = _kubectl(programs, "kustomize", str(programs / f"{name}-config/default"))
    objects = [one for one in yaml.safe_load_all(built) if _SERVED not in one["metadata"]["name"]]
    for one in objects:
        _adapt(one, name, programs)
    return objects


def _adapt(one: Object, name: str, programs: Path) -> None:
    """Change what the harness needs otherwise."""
    match one["kind"]:
        case "Deployment":
            _adapt_pod(one["spec"]["template"]["spec"], name, programs)
        case "ConfigMap":
            config = yaml.safe_load(one["data"][_CONFIG])
            config |= {"internalCertManagement": {"enable": False}, "leaderElection": {"leaderElect": False}}
            if name == "kueue":
                config["integrations"] = {"frameworks": _FRAMEWORKS}
            one["data"][_CONFIG] = yaml.safe_dump(config)
        case "Secret":
            one["data"] = _certificate(name)
        case "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration":
            for hook in one["webhooks"]:
                hook["clientConfig"]["caBundle"] = _base64(pki.CA)
        case "CustomResourceDefinition" if "conversion" in one["spec"]:
            one["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"] = _base64(pki.CA)


def _adapt_pod(spec: Object, name: str, programs: Path) -> None:
    [container] = spec["containers"]
    container |= {"image": _image(name, programs), "imagePullPolicy": "IfNotPresent", "resources": _RESOURCES}
    del container["livenessProbe"]  # on a busy machine its second passes, and what is restarted forgets the queues
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    if name == "kueue":  # which serves two more things, and would make these certificates itself
        container["volumeMounts"].append({"name": "cert", "mountPath": _METRICS, "readOnly": True})
        [cert] = [volume for volume in spec["volumes"] if volume["name"] == "cert"]
        [other] = [volume for volume in spec["volumes"] if volume["name"] == "visibility"]
        del other["emptyDir"]
        other["secret"] = cert["secret"]


def _image(name: str, programs: Path) -> str:
    """Return the image of a program, pushed."""
    return images.of_program(programs / name, "/manager")


def _certificate(name: str) -> dict[str, str]:
    """Return the content of the Secret with the key of a webhook."""
    host = f"{name}-webhook-service.{name}-system.svc"
    pki.issue(pki.authority(), f"{name}-webhook", host, names=[x509.DNSName(host)])
    pair = {"tls.crt": pki.FOLDER / f"{name}-webhook.crt", "tls.key": pki.FOLDER / f"{name}-webhook.key"}
    return {key: _base64(path) for key, path in pair.items()}


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


# ---- kubectl ---------------------------------------------------------------------------------------------------------
def _apply(programs: Path, objects: Iterable[Object]) -> None:
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    _kubectl(programs, "apply", "--server-side", "-f", "-", given=given)


def _kubectl(programs: Path, *words: str, given: str | None = None) -> str:
    done = _call(programs, *words, given=given)
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr}")
    return done.stdout


def _call(programs: Path, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    line = [str(programs / "kubectl"), "--kubeconfig", str(KUBECONFIG), *words]
    environment = {**os.environ, "KUBECACHEDIR": str(STATE / "kubecache")}
    return subprocess.run(line, input=given, env=environment, capture_output=True, text=True, check=False)
