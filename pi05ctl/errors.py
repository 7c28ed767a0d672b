"""What can go wrong for the user of pi05ctl, each with its exit code.

CtlError
├── RunFailed             1  the run that was followed failed or was cancelled
├── UsageError            2  something impossible was asked for; nothing was started
├── TargetError           3  the target (this machine, a cluster), its storage or the network did not do its part
│   ├── Unreachable       3  it does not answer (now)
│   ├── Forbidden         3  the cluster knows us and does not allow it
│   └── NameTaken         3  another release has the run's name
├── DoesNotFit            4  a training needs more memory than its GPUs have
├── WaitTimeout         124  `wait --timeout` ran out; the run goes on
└── FailedWhileWaiting  125  `wait` saw the run fail or be cancelled

0 is a run that is done (or a command that did what was asked), 130 a Ctrl-C. Errors of the contract (pi05.errors) count
as usage when the words were wrong (ConfigError) and as the target's otherwise.
"""

from collections.abc import Sequence

from pi05.errors import AccessError, ConfigError, JobError, nearest

INTERRUPTED = 130


class CtlError(Exception):
    """Base of all errors that end a command with one line instead of a traceback."""

    exit_code = 1


class RunFailed(CtlError):
    """The run that was followed failed or was cancelled."""

    exit_code = 1


class UsageError(CtlError):
    """Something impossible was asked for; nothing was started."""

    exit_code = 2


class TargetError(CtlError):
    """The target, its storage or the network did not do its part."""

    exit_code = 3


class Unreachable(TargetError):
    """The cluster does not answer; whoever waits for a run asks again."""


class Forbidden(TargetError):
    """The cluster does not allow it."""


class NameTaken(TargetError):
    """A Helm release of the run's name exists, or another submission has just made it."""


class DoesNotFit(CtlError):
    """A training needs more memory than its GPUs have; nothing was started."""

    exit_code = 4


class WaitTimeout(CtlError):
    """`wait --timeout` ran out; the run goes on."""

    exit_code = 124


class FailedWhileWaiting(CtlError):
    """`wait` saw the run fail or be cancelled."""

    exit_code = 125


def exit_code(error: CtlError | JobError) -> int:
    """Return what pi05ctl exits with after `error`; the jobs' own codes stay inside their processes."""
    if isinstance(error, CtlError):
        return error.exit_code
    usage = isinstance(error, ConfigError) and not isinstance(error, AccessError)
    return UsageError.exit_code if usage else TargetError.exit_code


def unknown(what: str, given: str, known: Sequence[str]) -> UsageError:
    """Return the error for a name that means nothing: the nearest one, then all."""
    hint = nearest(given, known) or ";"
    return UsageError(f"unknown {what} {given!r}{hint} there are {', '.join(known)}".replace("? there", "? There"))
