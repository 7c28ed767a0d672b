"""k8s/ through kustomize, which kubectl has in it; what a site must say of itself is what the examples say."""

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import yaml

K8S = Path(__file__).parents[2] / "k8s"
FOLDERS = ("base", *(f"overlays/{name}" for name in ("eks", "eks-kueue", "gke", "gke-kueue", "kueue", "local")))
AVAILABLE = shutil.which("kubectl") is not None
MISSING = "kubectl, which has kustomize in it, is not installed (https://kubernetes.io/docs/tasks/tools)"


@cache
def build(folder: str) -> list[dict]:
    """Return the objects of a kustomization."""
    with tempfile.TemporaryDirectory() as copy:
        edited = Path(copy, "k8s")
        shutil.copytree(K8S, edited)
        for example in edited.rglob("site.env.example"):
            example.rename(example.with_suffix(""))
        done = called(edited / folder)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def called(folder: Path) -> subprocess.CompletedProcess[str]:
    """Call kubectl on a kustomization."""
    return subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
