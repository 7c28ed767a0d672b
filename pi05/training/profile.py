"""Some steps -> a trace of JAX's profiler in the run's storage: what the devices and the host did, and when.

    runs/<run>/profile/<first>-<last>/plugins/profile/<time>/*.xplane.pb        xprof or TensorBoard shows it

Process 0 records its own devices. A trace that is there is not made again.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from pi05.errors import TemporaryError
from pi05.training import processes
from pi05.training.meter import Meter
from pi05.training.surroundings import Surroundings, warn

log = logging.getLogger("pi05")


class Profile:
    """Records the steps of a window.

    Args:
        window: First and last step; None records nothing.
        around: Where it goes.
    """

    def __init__(self, window: tuple[int, int] | None, around: Surroundings) -> None:
        self._around = around
        self._first, self._last = window or (0, 0)
        self._key = around.paths.profile(self._first, self._last)
        self._wanted = window is not None and processes.leads() and not around.storage.exists(self._key)
        self._folder = Path()
        self._begun = False

    @contextlib.contextmanager
    def recording(self) -> Iterator["Profile"]:
        """Record inside; a trace that has begun and not ended is thrown away."""
        with tempfile.TemporaryDirectory(prefix="pi05-profile-") as folder:
            self._folder = Path(folder)
            try:
                yield self
            finally:
                self._stop()

    def before(self, step: int) -> None:
        """Begin when the first step of the window is about to be given to the devices."""
        if self._wanted and step == self._first:
            jax.profiler.start_trace(self._folder)
            self._begun = True

    def after(self, step: int, values: Any, meter: Meter) -> None:
        """End when the last step of the window, which leaves `values`, has ended."""
        if self._begun and step == self._last:
            jax.block_until_ready(values)
            with meter.pause("save_seconds"):
                self._stop()
                self._keep()

    def _keep(self) -> None:
        """Leave the trace in storage; that this is impossible is no reason for a training to end."""
        try:
            self._around.storage.publish(self._folder, self._key)
            log.info("the profile of steps %d to %d is in %s", self._first, self._last, self._key)
        except TemporaryError as error:
            warn(self._around.events, f"the profile of steps {self._first} to {self._last} is lost: {error}")

    def _stop(self) -> None:
        if self._begun:
            self._begun = False
            jax.profiler.stop_trace()
