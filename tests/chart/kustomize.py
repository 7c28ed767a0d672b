"""k8s/ through kustomize, which kubectl has in it."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import yaml

K8S = Path(__file__).parents[2] / "k8s"
FOLDERS = ("base", "overlays/eks", "overlays/gke", "overlays/kueue", "overlays/local")
AVAILABLE = shutil.which("kubectl") is not None
MISSING = "kubectl, which has kustomize in it, is not installed (https://kubernetes.io/docs/tasks/tools)"


@cache
def build(folder: str) -> list[dict]:
    """Return the objects of a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))
