"""The real command line in a folder: `pi05ctl ...`, in this process or one of its own, and job mains."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Said:
    """How a command ended, and its words."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """What it said last on stderr."""
        return self.err.strip().splitlines()[-1]


def program(module: str, *words: str, folder: Path, **variables: str | None) -> Said:
    """Run `python -m MODULE WORDS` in a folder, in an environment that only `variables` add to; None takes one away."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    given: dict[str, str | None] = {**kept, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Said(done.returncode, done.stdout, done.stderr)


def pi05ctl(*words: str, folder: Path, **variables: str | None) -> Said:
    """Run `pi05ctl WORDS` in a process of its own."""
    return program("pi05ctl", *words, folder=folder, **variables)
