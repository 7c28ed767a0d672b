"""What a service answers when it does not let us in, from a server that says only that; and who gives credentials."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.auth import _exponential_backoff as backoff
from google.auth.compute_engine import _metadata as metadata

from pi05.errors import AccessError, ConfigError, TemporaryError, Unreachable
from pi05.storage.remote import BucketStorage

MISSING = "Permission 'storage.objects.create' denied on resource (or it may not exist)."
IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/"


class Server(ThreadingHTTPServer):
    """Answers everything with one status, in the words of Google's service or of Amazon's."""

    scheme, status, code, message = "gs", 403, "AccessDenied", MISSING
    written, keeps = False, "X-Nothing"
    """Whether it has answered with 200, and the condition that it then does not ignore."""
    token = 200
    """What whoever asks for an identity is answered with."""

    @property
    def body(self) -> bytes:
        if self.scheme == "gs":
            return json.dumps({"error": {"code": self.status, "message": self.message}}).encode()
        return f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>".encode()

    def open(self) -> BucketStorage:
        return BucketStorage(f"{self.scheme}://bucket/x", patience=1)


class Handler(BaseHTTPRequestHandler):
    """Reads a request and refuses it."""

    server: Server

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Metadata-Flavor"):
            return self.identity()
        status = self.server.status
        if status == 200 and self.server.written and self.headers.get(self.server.keeps):
            status = 412
        self.server.written |= status == 200
        self.answer(status, self.server.body if status != 200 else b"", "ETag", '"1"')

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815

    def identity(self) -> None:
        """Be the metadata server of a machine of Google's, which knows who it is, or has trouble."""
        status = self.server.token if self.path.startswith(IDENTITY) else 200
        said = b"googleapis.com" if "universe" in self.path else b"a-project"
        self.answer(status, said, "Metadata-Flavor", "Google")

    def answer(self, status: int, body: bytes, header: str, value: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if body[:1] == b"{" else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture(params=["gs", "s3"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.scheme = request.param
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, "/dev/null")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield running
        running.shutdown()
        thread.join()


only_s3 = pytest.mark.parametrize("server", ["s3"], indirect=True)
only_gs = pytest.mark.parametrize("server", ["gs"], indirect=True)


def test_refused_credentials_are_named_with_the_remedy(server: Server) -> None:
    server.status, server.code, server.message = 401, "InvalidAccessKeyId", "Invalid Credentials"
    remedy = {"gs": "gcloud auth application-default", "s3": "aws sso login"}[server.scheme]
    with pytest.raises(AccessError, match=f"credentials.*; log in with: {remedy}"):
        server.open().write("a", b"1")


def test_missing_rights_are_named_with_the_remedy(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").touch()
    storage = server.open()
    actions = [
        lambda: storage.write("a", b"1"),
        lambda: storage.read("a"),
        lambda: storage.children("a"),
        lambda: storage.publish(tmp_path / "a", "a"),
        lambda: storage.lease("runs/r/lease").__enter__(),
    ]
    needed, login = {
        "gs": ("Required: roles/storage.objectUser", "gcloud auth application-default login"),
        "s3": ("Required: s3:GetObject, s3:PutObject, s3:DeleteObject", "aws sso login"),
    }[server.scheme]
    for action in actions:
        with pytest.raises(AccessError) as caught:
            action()
        said = str(caught.value)
        assert f"{server.scheme}://bucket: not allowed to " in said
        assert needed in said
        assert login in said
    with pytest.raises(AccessError, match=r"Permission 'storage.objects.create' denied"):
        storage.write("a", b"1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_that_cannot_now_is_worth_another_try(server: Server, status: int) -> None:
    server.status, server.code, server.message = status, "SlowDown", "try later"
    with pytest.raises(Unreachable, match="could not write x/a for 1 s: try later; look whether the network"):
        server.open().write("a", b"1")


@only_s3
@pytest.mark.parametrize(("keeps", "ignores"), [("X-Nothing", "If-None-Match"), ("If-None-Match", "If-Match")])
def test_a_store_that_ignores_conditions_is_refused_before_two_pods_write_one_run(
    server: Server, keeps: str, ignores: str
) -> None:
    server.status, server.keeps = 200, keeps
    with pytest.raises(ConfigError, match=f"ignores {ignores}, so nothing keeps two pods from writing one run"):
        server.open().write("runs/r/run.json", b"1", absent=True)


@only_s3
def test_a_store_that_cannot_do_something_is_not_asked_again(server: Server) -> None:
    server.status, server.code, server.message = 501, "NotImplemented", "A header implies what is not implemented"
    with pytest.raises(ConfigError, match=r"this store does not do that: A header .*; use one with conditional writes"):
        server.open().write("runs/r/run.json", b"1", absent=True)


@only_s3
def test_a_bucket_of_another_region_is_told_with_the_variable(server: Server) -> None:
    server.status, server.code, server.message = 400, "AuthorizationHeaderMalformed", "the region is wrong"
    with pytest.raises(ConfigError, match="the region is wrong; set AWS_REGION to the bucket's own region"):
        server.open().read("a")


@only_s3
def test_an_endpoint_that_is_none_is_told_with_the_variable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio.example")
    with pytest.raises(ConfigError, match=r"Invalid endpoint: minio.example; look at AWS_ENDPOINT_URL"):
        server.open().read("a")


@only_s3
def test_an_endpoint_that_is_away_is_worth_another_try(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unreachable, match="could not read x/a for 1 s: Could not connect to the endpoint URL"):
        server.open().read("a")


# ---- Credentials ----------------------------------------------------------------------------------------------------


def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


@only_s3
def test_a_person_without_credentials_is_told_how_to_log_in(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)
    with pytest.raises(AccessError, match="no usable credentials: Unable to locate credentials; log in with: aws sso"):
        server.open().read("a")


@only_s3
def test_a_pod_without_credentials_tries_again_and_names_the_overlay(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(TemporaryError, match=r"identity server may be away for a moment.* k8s/overlays/eks$"):
        server.open().read("a")


@only_s3
def test_a_profile_that_does_not_exist_is_named(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    without_keys(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "robots")
    with pytest.raises(AccessError, match=r"The config profile \(robots\) could not be found; log in with"):
        server.open().read("a")


@pytest.fixture
def on_google(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """A pod on a machine of Google's, whose metadata server is ours."""
    here = f"127.0.0.1:{server.server_port}"
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GCE_METADATA_IP", here)
    monkeypatch.setattr(metadata, "_GCE_METADATA_HOST", here)
    monkeypatch.setattr(backoff, "time", SimpleNamespace(sleep=lambda _: None))
    return server


@only_gs
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_metadata_server_that_is_away_does_not_end_a_run_for_good(on_google: Server, status: int) -> None:
    on_google.token = status
    with pytest.raises(Unreachable, match="the identity server does not answer now: ") as caught:
        on_google.open().read("a")
    assert caught.value.exit_code == 75
    assert "gcloud auth" not in str(caught.value)


@only_gs
def test_an_identity_that_is_refused_to_a_pod_is_told_with_the_overlay(on_google: Server) -> None:
    on_google.token = 403
    with pytest.raises(AccessError, match=r"no usable credentials: .* as in k8s/overlays/gke$") as caught:
        on_google.open().read("a")
    assert "gcloud auth" not in str(caught.value)


@only_gs
def test_a_pod_that_finds_no_identity_server_at_all_tries_again(
    on_google: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")
    monkeypatch.setattr(metadata, "_GCE_METADATA_HOST", "127.0.0.1:1")
    with pytest.raises(TemporaryError, match=r"identity server may be away for a moment.* k8s/overlays/gke$"):
        on_google.open().read("a")
