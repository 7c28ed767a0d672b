"""What the pods of a run printed: from the API server while they exist, from storage when they are gone.

Log streams break, and an API server restarts: so nothing is streamed. A follower asks again for what came since the
last line it has, and drops the lines it has already.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pi05.errors import JobError
from pi05.events import parse
from pi05.storage import RunPaths, Storage
from pi05ctl.cluster.api import Kubernetes, Object
from pi05ctl.errors import Unreachable

_POLL = 1.0
_PART = re.compile(r"(\.\d{4})?\.txt$")
"""The end of a log's name: its part, and what it is."""


@dataclass
class _Read:
    """How far a pod's log was read.

    Attributes:
        position: Bytes that were yielded.
        last: Time of the last line, as Kubernetes writes it; empty before the first.
        same: Lines of that very time.
    """

    position: int = 0
    last: str = ""
    same: int = 0


class PodLogs:
    """The logs of one run, one a pod.

    Args:
        kubernetes: Has the logs of pods that exist.
        storage: Has `runs/<run>/logs/<pod>.txt` of all that lived long enough to upload it.
        run: The run.
    """

    def __init__(self, kubernetes: Kubernetes, storage: Storage, run: str) -> None:
        self._kubernetes, self._storage, self._run = kubernetes, storage, run
        self._folder = f"{RunPaths(run).root}/logs"
        self._read: dict[str, _Read] = {}

    def read(self) -> bytes:
        """Return all logs, the oldest pod first; several have a line with the pod's name above each."""
        logs = {pod: self._kubernetes.log(pod) for pod in self._pods()}
        kept = {pod: self._stored(pod) for pod in self._kept()}
        logs |= {pod: data for pod, data in kept.items() if len(data) > len(logs.get(pod, b""))}
        if len(logs) < 2:
            return b"".join(logs.values())
        in_order = sorted(logs.items(), key=lambda item: (_first_time(item[1]), item[0]))
        return b"".join(_heading(pod) + data for pod, data in in_order)

    def new(self) -> Iterator[bytes]:
        """Yield what was printed since the last call, by pods that exist and by pods that have gone in between."""
        pods = self._pods()
        several = len({*pods, *self._read, *self._kept()}) > 1
        for pod in [*(pod for pod in self._kept() if pod not in pods), *pods]:
            data = self._since(pod) if pod in pods else self._rest(pod)
            if data:
                yield (_heading(pod) if several else b"") + data

    def _pods(self) -> list[str]:
        """Return the names of the pods that exist, the oldest first."""

        def created(pod: Object) -> str:
            return str(pod["metadata"]["creationTimestamp"])

        return [pod["metadata"]["name"] for pod in sorted(self._kubernetes.pods(self._run), key=created)]

    def _kept(self) -> list[str]:
        """Return the names of the pods that have uploaded a log."""
        return list(self._parts())

    def _parts(self) -> dict[str, list[str]]:
        """Return the names of the parts of each pod's log, in their order."""
        try:
            names = self._storage.children(self._folder)
        except JobError:
            return {}
        parts: dict[str, list[str]] = {}
        for name in sorted(names, key=lambda name: name.removesuffix(".txt")):  # pod, pod.0001, pod.0002
            parts.setdefault(_PART.sub("", name), []).append(name)
        return parts

    def _stored(self, pod: str) -> bytes:
        keys = [f"{self._folder}/{name}" for name in self._parts().get(pod, ())]
        found = self._storage.read_all(keys)
        return b"".join(found[key] for key in keys if key in found)

    def _since(self, pod: str) -> bytes:
        """Return the lines that a pod printed since they were last read."""
        read = self._read.setdefault(pod, _Read())
        since = {"sinceTime": read.last} if read.last else {}
        answer = self._kubernetes.log(pod, timestamps="true", **since)
        known, lines = read.same, list[bytes]()
        for line in answer.splitlines(keepends=True):
            time, _, text = line.partition(b" ")
            stamp = time.decode(errors="replace")
            if stamp < read.last or (stamp == read.last and known > 0):
                known -= stamp == read.last
                continue
            read.same = read.same + 1 if stamp == read.last else 1
            read.last = stamp
            lines.append(text)
        data = b"".join(lines)
        read.position += len(data)
        return data

    def _rest(self, pod: str) -> bytes:
        """Return what a pod that is gone printed beyond what was read of it."""
        read = self._read.setdefault(pod, _Read())
        data = self._stored(pod)[read.position :]
        read.position += len(data)
        return data


def follow(logs: PodLogs, ended: Callable[[], bool], sleep: Callable[[float], None]) -> Iterator[bytes]:
    """Yield what a run prints until it has ended; an API server that does not answer is asked again."""
    over = False
    while True:
        try:
            yield from logs.new()
            if over:
                return
            over = ended()  # then one more look, for what came in between
        except Unreachable:
            pass
        if not over:
            sleep(_POLL)


def _heading(pod: str) -> bytes:
    return f"==> {pod} <==\n".encode()


def _first_time(data: bytes) -> float:
    """Return the time of the first event in a log."""
    for line in data.decode(errors="replace").splitlines():
        if (event := parse(line)) is not None:
            return event.time
    return float("inf")
