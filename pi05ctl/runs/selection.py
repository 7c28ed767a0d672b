"""All runs -> those that a table shows, and how many it leaves out. Pure: time comes in."""

from collections.abc import Sequence
from dataclasses import dataclass

from pi05 import tasks
from pi05ctl.errors import UsageError, unknown
from pi05ctl.runs.status import STATES, RunStatus
from pi05ctl.spec.runspec import KINDS

OLD = 7 * 86_400.0
"""Seconds since the end of a run after which tables leave it out: then Kubernetes forgets its Job and gc takes it."""


@dataclass(frozen=True)
class Wanted:
    """Which runs to show.

    Attributes:
        states, tasks, kinds: Those that count; empty: all.
        limit: How many, the newest; None: all.
        old: Whether those that ended long ago, too.
    """

    states: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    limit: int | None = None
    old: bool = True

    @property
    def every(self) -> bool:
        """Whether runs of every state, task and kind are wanted."""
        return not (self.states or self.tasks or self.kinds)


def wanted(
    states: Sequence[str], of_tasks: Sequence[str], kinds: Sequence[str], limit: int | None, old: bool
) -> Wanted:
    """Return what words ask for; raise UsageError for one that means nothing, with the nearest that does."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} must be at least 1")
    return Wanted(
        frozenset(_known("state", word, STATES) for word in states),
        frozenset(_known("task", word, tuple(tasks.TASKS)) for word in of_tasks),
        frozenset(_known("kind of run", word, KINDS) for word in kinds),
        limit,
        old,
    )


def select(statuses: Sequence[RunStatus], by: Wanted, now: float) -> tuple[list[RunStatus], str]:
    """Return the runs to show, in their order, and what to say of those that are left out; "" when none is."""
    fits = [
        status
        for status in statuses
        if (not by.states or status.state in by.states)
        and (not by.tasks or status.task in by.tasks)
        and (not by.kinds or status.kind in by.kinds)
    ]
    recent = [status for status in fits if by.old or not _is_old(status, now)]
    shown = recent[: by.limit]
    old, more = len(fits) - len(recent), len(recent) - len(shown)
    days = f"{OLD / 86_400:.0f} days"
    left = [f"{old} that ended more than {days} ago (--all)"] if old else []
    left += [f"{more} older ones (--limit {by.limit})"] if more else []
    return shown, " and ".join(left)


def _is_old(status: RunStatus, now: float) -> bool:
    return status.ended and status.latest is not None and now - status.latest > OLD


def _known(what: str, word: str, names: Sequence[str]) -> str:
    for name in names:
        if word.lower() == name.lower():
            return name
    raise unknown(what, word, names)
