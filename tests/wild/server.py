"""A server that answers as a test says: faults that no real API server or bucket can be made to have."""

import contextlib
import json
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Answer = tuple[int, Any]
"""Status and body: a table is sent as JSON, text as HTML, bytes as plain text."""
_KINDS = {str: "text/html", bytes: "text/plain"}


@contextlib.contextmanager
def serving(answer: Callable[[str, str, dict[str, str]], Answer]) -> Generator[str]:
    """Yield the address of a server; `answer` is given the method, the path with its query, and the headers."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, body = answer(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
            kind = _KINDS.get(type(body), "application/json")
            content = (
                body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
            )
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        for _method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"):
            vars()[f"do_{_method}"] = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def cluster(**objects: list[Any]) -> Callable[[str, str, dict[str, str]], Answer]:
    """Return what answers as an API server that has some jobs, pods and events."""

    def answer(method: str, path: str, headers: dict[str, str]) -> Answer:
        del headers
        name = urlsplit(path).path.rpartition("/")[2]
        if name == "version":
            return 200, {"gitVersion": "v1.34.1", "major": "1", "minor": "34"}
        if method == "POST":
            return 201, {"status": {"allowed": True}}
        if name == "log":
            return 200, b""
        if name in ("jobs", "pods", "events"):
            return 200, {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": objects.get(name, [])}
        return 404, {"kind": "Status", "apiVersion": "v1", "message": "not found", "code": 404}

    return answer
