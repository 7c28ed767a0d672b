"""What the service answers when it does not let us in, from a server that says only that."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pi05.errors import AccessError, Unreachable
from pi05.storage.remote import BucketStorage

MISSING = "Permission 'storage.objects.create' denied on resource (or it may not exist)."


class Server(ThreadingHTTPServer):
    """Answers everything with one status."""

    status, message = 403, MISSING


class Handler(BaseHTTPRequestHandler):
    """Reads a request and refuses it."""

    server: Server

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.dumps({"error": {"code": self.server.status, "message": self.server.message}}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{running.server_port}")
        yield running
        running.shutdown()
        thread.join()


def test_refused_credentials_are_named_with_the_remedy(server: Server) -> None:
    server.status, server.message = 401, "Invalid Credentials"
    with pytest.raises(AccessError, match=r"no usable credentials: .*; log in with: gcloud auth application-default"):
        BucketStorage("gs://bucket/x", patience=1).write("a", b"1")


@pytest.mark.usefixtures("server")
def test_missing_rights_are_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").touch()
    storage = BucketStorage("gs://bucket/x", patience=1)
    actions = [
        lambda: storage.write("a", b"1"),
        lambda: storage.read("a"),
        lambda: storage.children("a"),
        lambda: storage.publish(tmp_path / "a", "a"),
        lambda: storage.lease("runs/r/lease").__enter__(),
    ]
    for action in actions:
        with pytest.raises(AccessError) as caught:
            action()
        said = str(caught.value)
        assert "gs://bucket: not allowed to " in said
        assert MISSING in said
        assert "Required: roles/storage.objectUser" in said
        assert "gcloud auth application-default login" in said


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_that_cannot_now_is_worth_another_try(server: Server, status: int) -> None:
    server.status, server.message = status, "try later"
    with pytest.raises(Unreachable, match="could not write x/a for 1 s: try later; look whether the network"):
        BucketStorage("gs://bucket/x", patience=1).write("a", b"1")
