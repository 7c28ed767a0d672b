"""Job mains: `python -m pi05.jobs.<kind> job.json`.

Loading JAX or a simulator takes seconds in which a signal would find no handler: a container's process number 1 would
not hear it at all, and have to be killed when its grace period ends. So this, which Python reads first, listens; and
it takes away what would tell JAX, before the job can, how to compute.
"""

import os
import signal
import sys
from types import FrameType

from pi05 import variables

early: list[int] = []
"""Signals that came before the job's own handler was there."""
ignored: dict[str, str] = {}
"""Environment variables that were taken away, because what a job computes is told by its options."""


def _listen(number: int, frame: FrameType | None) -> None:
    del frame
    early.append(number)


if sys.argv[0] == "-m":  # what Python's documentation says that it is while the main module is looked for
    for _number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(_number) is not signal.SIG_IGN:
            signal.signal(_number, _listen)
    ignored.update(variables.pinned(os.environ))
    for _name in ignored:
        del os.environ[_name]
