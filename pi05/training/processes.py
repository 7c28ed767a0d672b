"""Several processes, usually one a node, that train as one: meet, agree, gather, and end together.

Every process holds its part of the state and makes its part of each batch; process 0 alone writes and speaks. What all
must decide alike (where to start, whether to stop) they decide here. When one dies the others end too, with the exit
code of "try again": waiting for it would last for ever.

                 process 0                    process 1
    join         serves the coordinator  <->  connects to it       10 minutes' patience, then TemporaryError
    check_same   digest of the job       <->  digest of the job
    compile      the step                <->  the step             however long either takes
    steps        all-reduce over the devices of both; every STOP_EVERY steps: was anybody told to stop?
    save         writes what is gathered      takes part in gathering
    leave        waits until all have come this far
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from pi05 import sharding
from pi05.errors import TERMINATED, ConfigError, JobError, NotLearning, TemporaryError

log = logging.getLogger("pi05")

STOP_EVERY = 10
"""Steps between two questions whether anybody was told to stop; each waits for the steps before it."""
_PATIENCE = 600
"""Seconds in which all processes must have met: pods start at different times, and images are large."""
_HEARTBEAT = 30
"""Seconds without a sign of life after which a process counts as dead."""
_LEAVING = 20
"""Seconds that one which fails alone waits for the others before it goes."""
_GATHERED = 2**30
"""Bytes that are gathered at a time."""
_ALARM = 10
"""Seconds in which a process that has lost the others says so and ends."""
_TOGETHER = (TERMINATED, NotLearning.exit_code)
"""Exit codes of what all processes find at the same step."""
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

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Meet the others, and at the end wait until all are there; alone, do nothing.

        Raises:
            TemporaryError: The others were not met or were lost.
            ConfigError: The address is not HOST:PORT.
        """
        if self.coordinator is None:
            yield
            return
        lost = _Lost(self)
        self._join(lost)
        try:
            yield
            wait_for_all()
        except JobError as error:
            lost.leave(error.exit_code)
            if error.exit_code in _TOGETHER:
                with contextlib.suppress(jax.errors.JaxRuntimeError):  # whoever is gone need not be waited for
                    wait_for_all()
            raise
        except jax.errors.JaxRuntimeError as error:
            lost.leave(1 if str(error).startswith(_OURS) else TemporaryError.exit_code)
            if str(error).startswith(_OURS):
                raise
            raise TemporaryError(f"{_lost_words(self)}: {error}") from error
        except Exception:
            lost.leave(1)
            raise
        jax.distributed.shutdown()

    def _join(self, lost: "_Lost") -> None:
        """Connect to the coordinator and take this process's place, which nobody may have had before."""
        address = self.coordinator or ""
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
            _client().key_value_set(f"pi05/process/{self.process}", "here")
        except jax.errors.JaxRuntimeError as error:
            raise TemporaryError(
                f"process {self.process} cannot take part in the training at {address}: {error}. If it was restarted, "
                "the others will notice and start again, too"
            ) from error
        lost.joined = True
        log.info("process %d of %d, coordinator %s", self.process, self.processes, address)


class _Lost:
    """Turns abort(), with which XLA ends a process whose company is lost, into our exit code and words.

    XLA aborts from a thread of its own while the main one waits for a collective that will never end, so there is no
    exception to catch. C's signal handler runs in the aborting thread.
    """

    def __init__(self, company: Company) -> None:
        self.joined = False
        self._company = company
        self._code: int | None = None
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._end)  # kept: C has only its address
        _HANDLERS.append(self._handler)
        ctypes.CDLL(None).signal(int(signal.SIGABRT), self._handler)

    def leave(self, code: int) -> None:
        """End with this code, whatever the others do; JAX says goodbye to them when Python ends."""
        self._code = code

    def _end(self, number: int) -> NoReturn:
        del number
        signal.alarm(_ALARM)  # should the words below not find their way, the process ends all the same
        try:
            if self._code is None:
                self._company.on_lost(self._words())
        finally:
            os._exit(TemporaryError.exit_code if self._code is None else self._code)

    def _words(self) -> str:
        company = self._company
        if self.joined:
            return _lost_words(company)
        return (
            f"the {company.processes} processes of this training did not all meet at {company.coordinator} within "
            f"{company.patience} s; are all of them running, and does that address lead to process 0?"
        )


_HANDLERS: list[Any] = []


def leads() -> bool:
    """Return whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def check_same(job: str) -> None:
    """Raise ConfigError on every process unless all were given the same job."""
    digest = np.frombuffer(hashlib.sha256(job.encode()).digest(), np.uint8)
    digests = _all(digest)
    others = [process for process, found in enumerate(digests) if not np.array_equal(found, digests[0])]
    if others:
        raise ConfigError(
            f"processes {', '.join(map(str, others))} of {len(digests)} were given another job.json than process 0; "
            "give all of them the same"
        )


def choice_of_first(number: int) -> int:
    """Return the number that process 0 has."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def any_stops(stopping: bool, step: int) -> bool:
    """Return whether a process was told to stop; of several, all ask at the same steps and get the same answer."""
    if jax.process_count() == 1:
        return stopping
    return step % STOP_EVERY == 0 and bool(_all(np.array(stopping)).any())


def compile_together(function: Any, *arguments: Any) -> None:
    """Compile a jitted function and wait until all have: devices that meet for the first time wait for 30 s only."""
    function.lower(*arguments).compile()
    if jax.process_count() > 1:
        wait_for_all()


def wait_for_all() -> None:
    """Return when every process has come here."""
    _all(np.array(True))


def gather(tree: Any) -> Any:
    """Return a tree whose arrays are whole: numpy's on process 0, None elsewhere; alone, they stay where they are.

    Some leaves at a time, so that no device has to hold much more than its part of the state.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    whole = [array for group in _groups(leaves) for array in _whole(group)]
    return jax.tree.unflatten(structure, whole)


def _groups(leaves: list[jax.Array]) -> Iterator[list[jax.Array]]:
    """Yield the leaves in order, as many at a time as have _GATHERED bytes, but at least one."""
    group: list[jax.Array] = []
    for leaf in leaves:
        if group and sum(other.nbytes for other in group) + leaf.nbytes > _GATHERED:
            yield group
            group = []
        group.append(leaf)
    yield group


def _whole(group: list[jax.Array]) -> list[np.ndarray | None]:
    """Return leaves on the host of process 0, by way of all devices."""
    mesh = cast(NamedSharding, group[0].sharding).mesh
    replicated = jax.jit(_same, out_shardings=sharding.replicated(cast(Mesh, mesh)))(group)
    return [np.asarray(array) if leads() else None for array in replicated]


def _same(group: list[jax.Array]) -> list[jax.Array]:
    return group


def _all(value: np.ndarray) -> np.ndarray:
    """Return the value of every process, stacked; waits for all of them."""
    return np.asarray(multihost_utils.process_allgather(value)).reshape(jax.process_count(), *value.shape)


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


def _client() -> Any:
    """Return JAX's client of the coordinator, which has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _lost_words(company: Company) -> str:
    return (
        f"process {company.process} has lost the others of this training ({company.processes} processes): one of them "
        "ended or cannot be reached; the next start goes on from the last checkpoint"
    )
