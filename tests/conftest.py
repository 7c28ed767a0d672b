"""What every group of tests shares: nothing is fetched, nothing runs on a GPU by accident, children hear Ctrl-C."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pi05ctl.spec.runspec import Options, RunSpec, resolve


def pytest_configure() -> None:
    """Let what tests start hear Ctrl-C: a background shell has it ignored, and children inherit that but no handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def options(preset: str, task: str = "pushcube") -> Options:
    """Return what a preset says, so that tests shrink the real configuration instead of inventing one."""
    return resolve(RunSpec(kind="train", task=task, preset=preset))
