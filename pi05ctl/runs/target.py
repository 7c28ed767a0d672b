"""What every target can do with runs. Two exist: this machine (local) and a Kubernetes cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from pi05.storage import Storage
from pi05ctl.runs.status import Snapshot
from pi05ctl.spec.render import Rendered

Outcome = Literal["started", "resumed", "running", "done"]


@dataclass(frozen=True)
class Submission:
    """What became of a submission.

    Attributes:
        run: The run's name.
        outcome: started anew, resumed after an end without success, found running, or found done.
    """

    run: str
    outcome: Outcome


class Target(Protocol):
    """Where runs run.

    Attributes:
        name: local or cluster.
        storage: Where runs live.
        poll: Seconds between two looks at a run that somebody waits for.
    """

    @property
    def name(self) -> str: ...

    @property
    def storage(self) -> Storage: ...

    @property
    def poll(self) -> float: ...

    def runs(self) -> list[str]:
        """Return the names of all runs."""
        ...

    def submit(self, run: Rendered, parent: str | None = None) -> Submission:
        """Start a run unless it is running or done, and return at once."""
        ...

    def preview(self, run: Rendered) -> bytes:
        """Return what submitting a run would make: job.json, or the manifests of a cluster."""
        ...

    def load(self, name: str) -> Rendered:
        """Return a run as it was submitted."""
        ...

    def snapshot(self, run: str) -> Snapshot | None:
        """Return what is known of a run now; None when there is none of this name."""
        ...

    def snapshots(self) -> tuple[list[Snapshot], list[str]]:
        """Return what is known of every run now, and complaints about those that cannot be read."""
        ...

    def alive(self, run: str) -> bool:
        """Return whether something of the run still works."""
        ...

    def log(self, run: str) -> bytes:
        """Return everything that a run printed."""
        ...

    def follow_log(self, run: str) -> Iterator[bytes]:
        """Yield what a run prints, from the beginning until it has ended."""
        ...

    def cancel(self, run: str, now: bool = False) -> bool:
        """End a run and return when it is gone: it saves first, or with `now` is killed. False: it was not running."""
        ...
