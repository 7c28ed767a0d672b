"""What is known of the operating-system process of a run, as process.json; later the same facts come from a pod.

Standard library only: the supervisor of every local job imports this.
"""

import json
import signal
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pi05.storage import RunPaths


@dataclass(frozen=True)
class Process:
    """One attempt to run a job.

    Attributes:
        attempt: 1 for the first start of the run, 2 after the first resume, ...
        submitted: When it was asked for, in seconds since 1970.
        waiting: Whether it waits for a free slot.
        pid: The job's process; None as long as there is none.
        identity: What tells this process from a later one with the same pid.
        started: When the job's process was started.
        ended: When it was gone.
        exit_code: What it exited with; a negative number is the signal that ended it.
        problem: Why it could not be started.
    """

    attempt: int
    submitted: float
    waiting: bool = False
    pid: int | None = None
    identity: str | None = None
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    problem: str | None = None

    def exists(self) -> bool:
        """Whether this very process is there (and not another one that was given its pid since)."""
        return self.pid is not None and self.identity is not None and identity(self.pid) == self.identity

    def to_json(self) -> bytes:
        """Return the content of process.json."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    def exit_words(self) -> str | None:
        """Return how it ended, for people: `exit code 3`, or `signal 9 (SIGKILL)`."""
        if self.exit_code is None:
            return None
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        number = -self.exit_code
        known = {entry.value: entry.name for entry in signal.Signals}
        return f"signal {number} ({known.get(number, 'unknown')})"


def from_json(data: bytes) -> Process:
    """Return the facts in process.json; fields of a newer version are ignored."""
    given: dict[str, Any] = json.loads(data)
    return Process(**{f.name: given[f.name] for f in fields(Process) if f.name in given})


def identity(pid: int) -> str | None:
    """Return what tells this process from any other that has, had or will have its pid; None when it is gone.

    The time it started, in clock ticks since this boot; a zombie counts as gone.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    state, start = stat[0], stat[19]
    return None if state in "ZX" else f"{boot} {start}"


def record_key(run: str) -> str:
    """Return where process.json lies."""
    return f"{RunPaths(run).root}/process.json"


def alive_key(run: str) -> str:
    """Return the lease that a run's supervisor holds from submission to the end of the job."""
    return f"{RunPaths(run).root}/supervisor"


def begun_key(run: str) -> str:
    """Return where a pipeline keeps which stages it has begun since somebody last asked for it."""
    return f"{RunPaths(run).root}/stages.json"


def cancel_key(run: str) -> str:
    """Return where a request to cancel is kept; it outlives the run, which then is not Failed but Cancelled."""
    return f"{RunPaths(run).root}/cancel.json"
