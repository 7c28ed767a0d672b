"""What the kubelet is to a pod: starts one local job, waits, and writes down how it ended.

    python -m pi05ctl.local.supervisor STORAGE RUN JOBS_AT_ONCE COMMAND...

It returns as soon as the run is its own (exit code 75: another supervisor has it) and goes on in the background, in a
session of its own, so that it outlives the terminal. It holds the lease `supervisor` of the run all the time, which
says "alive" without a pid that could be recycled. Should it be killed, the job goes on and holds the run's own lease.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import FrameType

from pi05.errors import JobError, TemporaryError
from pi05.storage import Storage, connect
from pi05ctl.runs.process import Process, alive_key, cancel_key, from_json, identity, record_key

_POLL = 0.2
"""Seconds between two looks for a free slot."""


def main(argv: list[str]) -> int:
    """Take the run, detach, and see its job through."""
    url, run, jobs_at_once, *command = argv
    storage = connect(url)
    try:
        with storage.lease(alive_key(run)):
            process = _next_attempt(storage, run)
            storage.write(record_key(run), process.to_json())
            if os.fork():
                os._exit(0)  # the caller knows now that the run is taken; the lease stays with the child
            _supervise(storage, run, process, int(jobs_at_once), command)
    except JobError as error:
        sys.stderr.write(f"supervisor of {run}: {error}\n")
        return error.exit_code
    return 0


def _next_attempt(storage: Storage, run: str) -> Process:
    """Return the record of an attempt that has just been asked for."""
    attempt = 1
    with contextlib.suppress(JobError, ValueError, TypeError):
        attempt = from_json(storage.read(record_key(run))).attempt + 1
    return Process(attempt=attempt, submitted=time.time())


def _supervise(storage: Storage, run: str, process: Process, jobs_at_once: int, command: list[str]) -> None:
    """Wait for a slot, run the command to its end and keep the record up to date."""
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.ExitStack() as held:
        if not _wait_for_slot(storage, run, process, jobs_at_once, held):
            _note(storage, run, replace(process, ended=time.time()))
            return
        started = time.time()  # before the first event, so that none seems to be of an earlier attempt
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            problem = f"cannot start {command[0]}: {error.strerror}"
            _note(storage, run, replace(process, ended=time.time(), problem=problem))
            return
        signal.signal(signal.SIGTERM, lambda signum, _: child.send_signal(signum))
        process = replace(process, pid=child.pid, identity=identity(child.pid), started=started)
        _note(storage, run, process)
        exit_code = _wait(child)
        _note(storage, run, replace(process, ended=time.time(), exit_code=exit_code))


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Return the exit code, after ending what the job left behind (planner processes of a killed job)."""
    # WNOWAIT: until the child is reaped, its process group's number cannot be given to anyone else.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


def _wait_for_slot(storage: Storage, run: str, process: Process, jobs_at_once: int, held: contextlib.ExitStack) -> bool:
    """Hold one of `jobs_at_once` slots (0 is no limit); return False when the run was cancelled first."""
    said = False
    while not storage.exists(cancel_key(run)):
        if jobs_at_once == 0 or _take_slot(storage, jobs_at_once, held):
            return True
        if not said:
            _note(storage, run, replace(process, waiting=True))
            said = True
        time.sleep(_POLL)
    return False


def _take_slot(storage: Storage, jobs_at_once: int, held: contextlib.ExitStack) -> bool:
    """Return whether a slot was free and is now held."""
    for number in range(jobs_at_once):
        with contextlib.suppress(TemporaryError):
            held.enter_context(storage.lease(f"local/slot-{number}"))
            return True
    return False


def _leave(signum: int, frame: FrameType | None) -> None:
    """End while nothing was started yet."""
    del frame
    raise SystemExit(128 + signum)


def _note(storage: Storage, run: str, process: Process) -> None:
    """Replace process.json; a full disk ends neither the job nor its supervision."""
    try:
        storage.write(record_key(run), process.to_json())
    except (JobError, OSError) as error:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"supervisor of {run}: {error}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
