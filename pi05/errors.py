"""What can go wrong inside a job, each with the exit code that Kubernetes acts on.

JobError
├── ConfigError     64  the job was told something impossible; permanent
│   └── AccessError 64  a storage does not exist or does not let us in
├── DataError       65  a dataset, weight file or checkpoint is missing, damaged or of another convention; permanent
├── NotLearning     66  the loss is not finite, or never left that of predicting nothing; permanent
├── StageFailed     67  a stage of a pipeline (pi05ctl.pipeline) was cancelled or failed for good; permanent
├── Stopped        143  the job was asked to stop, and has saved
│   └── LeftAlone   69  of processes that train together another one was: as below
└── TemporaryError  75  try again: a full disk, a run that another process is writing
    ├── Unreachable 75  a bucket that does not answer now; a long run waits for it instead of ending
    └── CompanyLost 69  of processes that train together another one has ended, or never came; that one counts

A message says what was given, what is required and what to do.
"""

import difflib
from collections.abc import Iterable

TERMINATED = 143
"""Exit code after SIGTERM (128 + 15); never 0, or Kubernetes would call the Job complete."""


class JobError(Exception):
    """Base of all errors that end a job with words instead of a traceback."""

    exit_code = 1


class ConfigError(JobError):
    """The job was told something impossible."""

    exit_code = 64


class AccessError(ConfigError):
    """A storage does not exist or does not let us in: an admin's matter, not that of the job's options."""


class DataError(JobError):
    """A file the job depends on is missing, damaged or follows another convention."""

    exit_code = 65


class NotLearning(JobError):
    """Training diverged or never started to learn."""

    exit_code = 66


class Stopped(JobError):
    """The job was asked to stop, has saved what it had, and will go on from there when started again."""

    exit_code = TERMINATED


class LeftAlone(Stopped):
    """Another of the processes that train together was asked to stop, and so all of them do."""

    exit_code = 69


class TemporaryError(JobError):
    """The same job may succeed when it runs again."""

    exit_code = 75


class Unreachable(TemporaryError):
    """The storage does not answer now."""


class CompanyLost(TemporaryError):
    """Another of the processes that train together has ended or cannot be reached: its failure counts, not this."""

    exit_code = 69


def nearest(given: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the closest known name, or "" when none is close."""
    close = difflib.get_close_matches(given.lower(), list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
