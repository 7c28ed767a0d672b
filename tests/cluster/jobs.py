"""Jobs of a shell script, for tests of node and images. Their Pods pass Pod Security `restricted`."""

from typing import Any

RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def job(name: str, namespace: str, image: str, script: str, pods: int = 1, gpus: int = 0, **pod: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": image,
        "command": ["/bin/sh", "-c", script],
        "securityContext": RESTRICTED,
        "resources": {"limits": {"nvidia.com/gpu": gpus}} if gpus else {},
    }
    template = {
        "metadata": {"labels": {"name": name}},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container], **pod},
    }
    spec = {
        "completionMode": "Indexed",
        "completions": pods,
        "parallelism": pods,
        "backoffLimit": 0,
        "template": template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
