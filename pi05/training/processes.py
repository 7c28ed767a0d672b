"""What several processes that train as one decide alike, and what they tell each other.

Every process holds its part of the state and makes its part of each batch; process 0 leads: it alone speaks, and what
all must decide alike (where to start, whether to stop) they decide here. How they meet and part: pi05.training.company.

                 process 0                    process 1
    check_same   digest of the job       <->  digest of the job
    compile      the step                <->  the step             however long either takes
    steps        all-reduce over the devices of both; every STOP_EVERY steps: was anybody told to stop?
    tell, hear   <-- a note by way of the coordinator, from any thread, while the devices do something else --
"""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pi05.errors import ConfigError

STOP_EVERY = 10
"""Steps between two questions whether anybody was told to stop; each waits for the steps before it."""
_LISTENING = 5
"""Seconds that `hear` waits at a time."""


def number() -> int:
    """Return which process this is; 0 leads."""
    return jax.process_index()


def leads() -> bool:
    """Return whether this is the process that speaks."""
    return number() == 0


def others() -> range:
    """Return the numbers of the processes that the first one leads."""
    return range(1, jax.process_count())


def check_same(job: str) -> None:
    """Raise ConfigError on every process unless all were given the same job."""
    digest = np.frombuffer(hashlib.sha256(job.encode()).digest(), np.uint8)
    digests = _all(digest)
    different = [process for process, found in enumerate(digests) if not np.array_equal(found, digests[0])]
    if different:
        raise ConfigError(
            f"processes {', '.join(map(str, different))} of {len(digests)} were given another job.json than process 0; "
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


def tell(subject: str, note: str) -> None:
    """Leave a note of this process; each subject once. No collective: any thread may do so at any time."""
    state = _coordination()
    state.client.key_value_set(f"pi05/{subject}/{state.process_id}", note)


def hear(subject: str, process: int) -> str:
    """Return the note of another process as soon as it is there; whoever waits for a dead one ends with all others."""
    while True:
        try:
            return _coordination().client.blocking_key_value_get(f"pi05/{subject}/{process}", _LISTENING * 1000)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise


def _all(value: np.ndarray) -> np.ndarray:
    """Return the value of every process, stacked; waits for all of them."""
    return np.asarray(multihost_utils.process_allgather(value)).reshape(jax.process_count(), *value.shape)


def _coordination() -> Any:
    """Return JAX's connection to the coordinator, which has no public name; it needs no device."""
    from jax._src import distributed

    return distributed.global_state
