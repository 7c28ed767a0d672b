"""Turns abort(), with which XLA ends a process that has lost its company, into our exit code and last words.

XLA aborts from a thread of its own while the main one waits for a collective that will never end, so there is no
exception to catch. C's signal handler runs in the aborting thread.
"""

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from pi05.errors import CompanyLost

_ALARM = 10
"""Seconds in which a process that has lost the others says so and ends."""
_HANDLERS: list[Any] = []
"""Kept for the life of the process: C has only their addresses."""


class Abort:
    """What happens from now on when this process aborts.

    Args:
        on_abort: Says what is known, in another thread; the process then ends with the exit code of CompanyLost.
    """

    def __init__(self, on_abort: Callable[[], None]) -> None:
        self._on_abort = on_abort
        self._code: int | None = None
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._end)
        _HANDLERS.append(handler)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)

    def leave(self, code: int) -> None:
        """End with this code and silently, whatever the others do; JAX says goodbye to them when Python ends."""
        self._code = code

    def _end(self, number: int) -> NoReturn:
        del number
        signal.alarm(_ALARM)  # should the words below not find their way, the process ends all the same
        try:
            if self._code is None:
                self._on_abort()
        finally:
            os._exit(CompanyLost.exit_code if self._code is None else self._code)
