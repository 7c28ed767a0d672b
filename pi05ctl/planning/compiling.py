"""A training's step -> its plan as a compiler has it: in a process of this machine that has JAX's CUDA plugin."""

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from pi05 import chips
from pi05.chips import Machine
from pi05.config import TrainJob
from pi05.errors import ConfigError
from pi05.plan.document import NO_COMPILER, Plan
from pi05ctl.errors import UsageError
from pi05ctl.spec.render import to_json

SOURCE = Path(chips.__file__).parent
"""Of pi05, as it is here."""


class Compiler(Protocol):
    """What compiles steps, here or elsewhere."""

    def plan(self, job: TrainJob, machine: Machine) -> Plan | None:
        """Return a plan; None, having said why, when it cannot.

        Raises:
            UsageError: The job is impossible.
        """
        ...


class Here:
    """Compiles in a process of its own, with this source, wherever the packages are.

    Args:
        python: Interpreter of an environment with JAX's CUDA plugin.
        say: Tells people why it could not.
    """

    def __init__(self, python: Path, say: Callable[[str], None]) -> None:
        self._python, self._say = python, say

    def plan(self, job: TrainJob, machine: Machine) -> Plan | None:
        """Return what the program that compiles says."""
        try:
            done = self._run(job, machine)
        except OSError as error:
            self._say(f"not compiled, but estimated: {self._python} does not start: {error.strerror}")
            return None
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        if done.returncode == ConfigError.exit_code:
            raise UsageError(last)
        if done.returncode:
            why = last if done.returncode == NO_COMPILER else f"{self._python} ended with {done.returncode}: {last}"
            self._say(f"not compiled, but estimated: {why}")
            return None
        return Plan.model_validate_json(done.stdout)

    def _run(self, job: TrainJob, machine: Machine) -> "subprocess.CompletedProcess[str]":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "job.json")
            path.write_bytes(to_json(job))
            command = [str(self._python), "-m", "pi05.jobs.plan", str(path), "--chip", machine.chip.name]
            command += ["--gpus", str(machine.gpus), "--nodes", str(machine.nodes)]
            environ = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
            return subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
