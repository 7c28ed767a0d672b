"""Several processes, usually one a node, that train as one: how they meet and how they part.

When one dies the others end too, with an exit code of its own: waiting for it would last for ever.

                 process 0                    process 1
    join         serves the coordinator  <->  connects to it       10 minutes' patience, then CompanyLost
    work         what all decide alike is in pi05.training.processes
    leave        waits until all have come this far
"""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import jax

from pi05.errors import CompanyLost, ConfigError, JobError, NotLearning, Stopped, TemporaryError
from pi05.training import processes
from pi05.training.abort import Abort

log = logging.getLogger("pi05")

_PATIENCE = 600
"""Seconds in which all processes must have met: pods start at different times, and images are large."""
_HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead."""
_LEAVING = 20
"""Seconds that one which fails alone waits for the others before it goes."""
_TOGETHER = (Stopped, NotLearning)
"""What all processes find at the same step."""
_OURS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")
"""Status codes of XLA errors that would come again; others, in company, mean that a process or the network is gone."""


@dataclass
class Company:
    """This process among those that train together.

    Attributes:
        process, processes: Its number, and how many there are.
        coordinator: HOST:PORT where process 0 serves; None when there is one process.
        on_lost: Called from another thread with a sentence when the others are lost; the process ends after it.
        patience: Seconds in which all must have met.
    """

    process: int = 0
    processes: int = 1
    coordinator: str | None = None
    on_lost: Callable[[str], None] = print
    patience: int = _PATIENCE
    _joined: bool = field(default=False, init=False)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Meet the others, and at the end wait until all are there; alone, do nothing.

        Raises:
            CompanyLost: The others were not met or were lost.
            ConfigError: The address is not HOST:PORT.
        """
        if self.coordinator is None:
            yield
            return
        abort = Abort(lambda: self.on_lost(self._lost()))
        self._join(self.coordinator)
        try:
            yield
            processes.wait_for_all()
        except JobError as error:
            abort.leave(error.exit_code)
            if isinstance(error, _TOGETHER):
                with contextlib.suppress(jax.errors.JaxRuntimeError):  # whoever is gone need not be waited for
                    processes.wait_for_all()
            raise
        except jax.errors.JaxRuntimeError as error:
            abort.leave(1 if str(error).startswith(_OURS) else CompanyLost.exit_code)
            if str(error).startswith(_OURS):
                raise
            raise CompanyLost(f"{self._lost()}: {error}") from error
        except Exception:
            abort.leave(1)
            raise
        jax.distributed.shutdown()

    def _join(self, address: str) -> None:
        """Connect to the coordinator and take this process's place, which nobody may have had before."""
        if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
            raise ConfigError(f"--coordinator {address!r} is not HOST:PORT")
        if self.process == 0:
            _check_free(int(address.rpartition(":")[2]))
        # Its handler of SIGTERM would replace ours.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            jax.distributed.initialize(
                address,
                self.processes,
                self.process,
                initialization_timeout=self.patience,
                heartbeat_timeout_seconds=_HEARTBEAT,
                shutdown_timeout_seconds=_LEAVING,
            )
            processes.tell("process", "here")
        except jax.errors.JaxRuntimeError as error:
            raise CompanyLost(
                f"process {self.process} cannot take part in the training at {address}: {error}. If it was restarted, "
                "the others will notice and start again, too"
            ) from error
        self._joined = True
        log.info("process %d of %d, coordinator %s", self.process, self.processes, address)

    def _lost(self) -> str:
        """Return in words what it means that the others are gone, or were never there."""
        if not self._joined:
            return (
                f"the {self.processes} processes of this training did not all meet at {self.coordinator} within "
                f"{self.patience} s; are all of them running, and does that address lead to process 0?"
            )
        return (
            f"process {self.process} has lost the others of this training ({self.processes} processes): one of them "
            "ended or cannot be reached; the next start goes on from the last checkpoint"
        )


def _check_free(port: int) -> None:
    """Raise TemporaryError when the coordinator cannot listen on a port; JAX may crash instead of saying so."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise TemporaryError(
            f"process 0 cannot listen on port {port} ({error.strerror}); end what listens there, or give all processes "
            "another --coordinator"
        ) from error
