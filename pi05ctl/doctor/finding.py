"""Checks and what they find; the engine that runs them. Knows nothing of what is checked."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pi05.errors import JobError
from pi05ctl.errors import CtlError, Forbidden

Site = TypeVar("Site")
State = Literal["ok", "warning", "missing", "skipped", "blocked"]


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        state: ok; warning (runs work, or some do); missing (they do not); skipped (there is nothing to look at, or we
            may not look); blocked (not looked at, because something it needs is missing).
        text: In one line.
        remedy: What to do about it.
        check: Whose finding it is.
    """

    state: State
    text: str
    remedy: str = ""
    check: str = ""


@dataclass(frozen=True)
class Check(Generic[Site]):
    """One thing to look at.

    Attributes:
        name: For people; unique.
        look: Looks and says what it found. An error that ends a command is a finding, too.
        needs: Checks without whose success this one would only repeat what they say; they come before it.
    """

    name: str
    look: Callable[[Site], Finding]
    needs: tuple[str, ...] = ()


def examine(checks: Sequence[Check[Site]], site: Site, stop: Callable[[], None]) -> Iterator[Finding]:
    """Run checks side by side and yield what they find in their order, each as soon as it and all before it are done.

    Args:
        checks: What to look at.
        site: Where; handed to every check.
        stop: Called when nobody wants to know any more (Ctrl-C): checks that wait end soon.
    """
    with ThreadPoolExecutor(len(checks)) as pool, ExitStack() as ending:
        ending.callback(stop)
        findings: dict[str, Future[Finding]] = {}
        for check in checks:
            findings[check.name] = pool.submit(_run, check, site, {name: findings[name] for name in check.needs})
        for finding in findings.values():
            yield finding.result()


def _run(check: Check[Site], site: Site, needs: dict[str, Future[Finding]]) -> Finding:
    """Return what a check finds once those that it needs have ended."""
    lacking = [name for name, finding in needs.items() if finding.result().state in ("missing", "blocked")]
    if lacking:
        return Finding("blocked", f"not looked at: see {', '.join(lacking)}", check=check.name)
    found = _look(check, site)
    return Finding(found.state, " ".join(found.text.split()), found.remedy, check.name)


def _look(check: Check[Site], site: Site) -> Finding:
    """Return what a check finds; what it may not look at is no fault of what is there."""
    try:
        return check.look(site)
    except Forbidden as error:
        return Finding("skipped", f"not allowed to look: {str(error).partition(';')[0]}")
    except (CtlError, JobError, OSError) as error:
        return Finding("missing", str(error))
