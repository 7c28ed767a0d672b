"""The API schemas of real Kubernetes versions, offline: fetched once as Go modules, kept in ~/.cache/pi05.

A module's zip is 30 MB and its schemas a few; the zip goes to a temporary folder. Validation is strict, as
`kubectl --validate=strict` is: a field that the API does not know is an error, not ignored.
"""

import json
import os
import shutil
import subprocess
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator

VERSIONS = ("v1.31.14", "v1.32.13", "v1.33.13", "v1.34.4", "v1.35.4", "v1.36.3", "v1.37.2")
"""From the chart's minimum to the newest there is, the last patch of each that is known."""

_FILES = {
    "v1": "api__v1_openapi.json",
    "batch/v1": "apis__batch__v1_openapi.json",
    "networking.k8s.io/v1": "apis__networking.k8s.io__v1_openapi.json",
    "rbac.authorization.k8s.io/v1": "apis__rbac.authorization.k8s.io__v1_openapi.json",
}
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pi05/kubernetes-schemas"


class Unavailable(Exception):
    """Why there are no schemas here: no Go, or nothing to fetch from."""


def complaints(version: str, manifest: dict) -> list[str]:
    """Return what the API server of a version would say against a manifest: `spec.pods: ... was unexpected`."""
    document = _document(version, manifest["apiVersion"])
    found = []
    for error in _validator(document, manifest).iter_errors(manifest):
        where = ".".join(str(part) for part in error.absolute_path)
        found.append(f"{manifest['kind']} {where}: {error.message}")
    return found


def _validator(document: dict, manifest: dict) -> Draft202012Validator:
    """Return the validator of a manifest's kind."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    wanted = {"group": group, "kind": manifest["kind"], "version": version}
    for name, schema in document["components"]["schemas"].items():
        if wanted in schema.get("x-kubernetes-group-version-kind", []):
            return Draft202012Validator(document | {"$ref": f"#/components/schemas/{name}"})
    raise LookupError(f"Kubernetes has no {manifest['kind']} in {manifest['apiVersion']}")


@cache
def _document(version: str, api: str) -> dict:
    """Return the OpenAPI document of an API group, made strict about names."""
    document = json.loads((folder(version) / _FILES[api]).read_text())
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return document


@cache
def folder(version: str) -> Path:
    """Return the folder with a version's schemas, fetched when it is not there yet; raise Unavailable without."""
    there = _CACHE / version
    if not there.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as temporary:
            whole = _unpack(_fetch(version, Path(temporary)), version, Path(temporary) / "schemas")
            _move(whole, there)
    return there


def _fetch(version: str, temporary: Path) -> Path:
    """Return the zip of the module k8s.io/kubernetes, fetched with Go (which verifies its checksum)."""
    if shutil.which("go") is None:
        raise Unavailable("Go is not installed; it fetches the schemas of Kubernetes (https://go.dev/dl)")
    environment = os.environ | {"GOMODCACHE": str(temporary / "modules"), "GOFLAGS": "-modcacherw -mod=mod"}
    command = ["go", "mod", "download", "-json", f"k8s.io/kubernetes@{version}"]
    done = subprocess.run(command, cwd=temporary, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"Go could not fetch k8s.io/kubernetes {version}: {done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Zip"])


def _unpack(module: Path, version: str, target: Path) -> Path:
    """Copy the schemas out of a module's zip."""
    target.mkdir()
    with zipfile.ZipFile(module) as archive:
        for name in _FILES.values():
            content = archive.read(f"k8s.io/kubernetes@{version}/api/openapi-spec/v3/{name}")
            (target / name).write_bytes(content)
    return target


def _move(whole: Path, there: Path) -> None:
    """Put a whole folder in its place; another process may have been faster."""
    try:
        whole.rename(there)
    except OSError:
        if not there.exists():
            raise
