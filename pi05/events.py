"""What a job says: one event a line on stdout, `PI05 {json}`, and the same line as the run's status.json.

An event stands alone, stays under 4 KiB (the size of a Kubernetes termination message) and keeps fields it does not
know, so that an old controller reads a new job. Prose for people goes to stderr through logging.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, ValidationError

PREFIX = "PI05 "
LIMIT = 4096
"""Bytes of a line, newline included."""
_CUT = " ..."
TERMINAL = frozenset({"failed", "finished"})


class Event(BaseModel):
    """One event.

    Attributes:
        v: Version of the form.
        run: Name of the run.
        kind: started, progress, checkpoint, result, warning, failed or finished; others are kept.
        time: Seconds since 1970 (UTC).
        step, total: Progress in `unit` (steps, demos or episodes).
        metrics: Numbers, such as loss or success_once.
        message: One sentence for people.
        exit_code: Of a `failed` event.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    v: int = 1
    run: str
    kind: str
    time: float
    step: int | None = None
    total: int | None = None
    unit: str | None = None
    metrics: dict[str, float] | None = None
    message: str | None = None
    exit_code: int | None = None

    def line(self) -> str:
        """Return `PI05 {...}` without a newline, the message shortened until the line fits LIMIT."""
        text = PREFIX + self.model_dump_json(exclude_none=True)
        excess = len(text.encode()) + 1 - LIMIT
        if excess <= 0:
            return text
        if self.message in (None, _CUT):
            raise ValueError(f"an event of {len(text)} bytes without a message to shorten; the limit is {LIMIT}")
        message = self.message.encode()
        keep = max(len(message) - excess - len(_CUT), 0)  # escapes may make it shorter than it had to be
        return self.model_copy(update={"message": message[:keep].decode(errors="ignore") + _CUT}).line()


def parse(line: str) -> Event | None:
    """Return the event of a log line, or None when the line is not an event."""
    if not line.startswith(PREFIX):
        return None
    try:
        return Event.model_validate_json(line[len(PREFIX) :])
    except ValidationError:
        return None


class EventWriter:
    """Writes events of one run to a stream and hands each to `keep` (status.json, the termination log).

    The last event outlives the log, so it repeats what was said last: progress, metrics and the checkpoint.

    Args:
        run: Name of the run.
        stream: Where the lines go.
        clock: Seconds since 1970.
        keep: Called with every event after it was written.
        extra: Fields that every event carries, such as `shard`.
    """

    def __init__(
        self,
        run: str,
        stream: TextIO,
        clock: Callable[[], float],
        keep: Callable[[Event], None] | None = None,
        extra: Mapping[str, int] | None = None,
    ) -> None:
        self._run, self._stream, self._clock, self._keep, self._extra = run, stream, clock, keep, extra or {}
        self._lock = threading.Lock()  # uploads in the background have something to say, too
        self._said: dict[str, Any] = {}

    def emit(self, kind: str, **fields: Any) -> Event:
        """Write one event and return it."""
        self._remember(kind, fields)
        if kind in TERMINAL:
            fields = self._said | fields
        event = Event(run=self._run, kind=kind, time=self._clock(), **self._extra, **fields)
        with self._lock:
            self._stream.write(event.line() + "\n")
            self._stream.flush()
            if self._keep is not None:
                self._keep(event)
        return event

    def _remember(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Keep what the last event repeats."""
        if kind == "progress":
            self._said |= {name: fields[name] for name in ("step", "total", "unit") if name in fields}
        if kind == "checkpoint":
            self._said["checkpoint"] = fields.get("step")
        if fields.get("metrics"):
            self._said["metrics"] = self._said.get("metrics", {}) | fields["metrics"]
