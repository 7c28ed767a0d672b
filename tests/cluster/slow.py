"""An API server that is slow and forgetful: a proxy before the real one, for what one on the same machine never shows.

Changes are passed on late. Lists that allow any age (`resourceVersion=0`) are answered as they were at first, as by one
of several API servers whose watch has fallen behind; all else is passed on as it is.
"""

import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.cluster.harness import pki
from tests.cluster.harness.layout import SERVER, STATE

_CHANGES = ("POST", "PUT", "PATCH", "DELETE")


class Slow(ThreadingHTTPServer):
    """The proxy.

    Attributes:
        late: Seconds that a change waits before it is passed on.
        stale: Whether lists that may be old are those of before.
        kubeconfig: With which it is used.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.late, self.stale = 0.0, False
        self.first: dict[str, tuple[int, bytes, str]] = {}
        self.kubeconfig = _kubeconfig(self.server_port)
        context = ssl.create_default_context(cafile=str(pki.CA))
        context.load_cert_chain(pki.FOLDER / "admin.crt", pki.FOLDER / "admin.key")
        handlers = (urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({}))
        self.opener = urllib.request.build_opener(*handlers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Slow

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.command in _CHANGES and "selfsubject" not in self.path:
            time.sleep(self.server.late)
        old = self.command == "GET" and "resourceVersion=0" in self.path
        found = self.server.first.get(self.path) if old and self.server.stale else None
        if found is None:
            found = self._ask(body)
        if old:
            self.server.first.setdefault(self.path, found)
        code, content, kind = found
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _ask(self, body: bytes) -> tuple[int, bytes, str]:
        passed = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
        request = urllib.request.Request(SERVER + self.path, body or None, passed, method=self.command)
        try:
            with self.server.opener.open(request, timeout=60) as answer:
                return answer.status, answer.read(), answer.headers["Content-Type"]
        except urllib.error.HTTPError as error:
            return error.code, error.read(), error.headers["Content-Type"] or "application/json"


for _method in ("GET", *_CHANGES):
    setattr(_Handler, f"do_{_method}", _Handler.answer)


@contextmanager
def slow() -> Iterator[Slow]:
    """Yield the proxy, which passes everything on until it is told otherwise."""
    server = Slow()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _kubeconfig(port: int) -> Path:
    path = STATE / "slow.kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "pi05-test", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "admin", "user": {}}],
        "contexts": [{"name": "pi05-test", "context": {"cluster": "pi05-test", "user": "admin"}}],
        "current-context": "pi05-test",
    }
    path.write_text(json.dumps(content))
    return path
