"""A job that does as it is told, with less patience: `program ACTION TERMINATION-LOG job.json [arguments of a job]`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pi05.config import EvalJob, TrainJob
from pi05.errors import DataError
from pi05.jobs import output, runtime, status
from pi05.jobs.runtime import Context
from pi05.storage import bucket, lease


def work(job: EvalJob, context: Context) -> None:
    """Print in every way there is, then do what the first argument says."""
    print("python says hello")
    print("python complains", file=sys.stderr)
    os.write(1, b"descriptor 1\n")
    os.write(2, b"descriptor 2\n")
    subprocess.run(["sh", "-c", "echo child; echo child complains >&2"], check=True)
    context.events.emit("progress", step=1, total=3, unit="episodes")
    if action == "refuse":
        raise DataError("the dataset is damaged")
    if action == "crash":
        raise ZeroDivisionError("unlucky")
    if action == "write":
        context.insist(lambda: context.storage.write(f"{context.paths.results}/0.json", job.run.encode()))
    if action == "twice":
        print("x" * 50_000, "said last", flush=True)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    if action == "wait":
        for step in range(2, 2000):
            context.events.emit("progress", step=step, total=2000, unit="episodes")
            context.check_stop()
            time.sleep(0.05)


if __name__ == "__main__":
    action = sys.argv.pop(1)
    output.TERMINATION_LOG = Path(sys.argv.pop(1))
    output.PERIOD, status.PERIOD = 0.5, 0.5
    lease.TTL, lease.BEAT = 3.0, 0.5
    bucket.PATIENCE = 1.0
    if action == "train":
        from pi05.jobs.train import train  # the other actions need no JAX
        from pi05.training import delivery

        delivery._LONGEST_PAUSE = 1.0
        runtime.main(TrainJob, train)
    runtime.main(EvalJob, work)
