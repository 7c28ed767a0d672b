"""Job mains: `python -m pi05.jobs.<kind> job.json`.

Loading JAX or a simulator takes seconds in which a signal would find no handler: a container's process number 1 would
not hear it at all, and have to be killed when its grace period ends. So this, which Python reads first, listens; and
it takes away what would tell JAX, before the job can, how to compute.
"""

import os
import signal
import sys
from types import FrameType, TracebackType

from pi05 import variables

early: list[int] = []
"""Signals that came before the job's own handler was there."""
ignored: dict[str, str] = {}
"""Environment variables that were taken away, because what a job computes is told by its options."""


def _listen(number: int, frame: FrameType | None) -> None:
    del frame
    early.append(number)


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error as Python does, and after it where it may come from: the last line is what a status shows."""
    sys.__excepthook__(kind, error, trace)
    if given := os.environ.get("PYTHONPATH"):
        sys.stderr.write(
            f"{kind.__name__}: {error}; PYTHONPATH={given} comes before the packages of {sys.executable}: unset it, "
            "should it hold those of another Python (ROS sets it in every shell)\n"
        )


if sys.argv[0] == "-m":  # what Python's documentation says that it is while the main module is looked for
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, _listen)
    sys.excepthook = _explain
    ignored.update(variables.pinned(os.environ))
    for _name in ignored:
        del os.environ[_name]
