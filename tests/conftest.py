"""What every group of tests shares: nothing is fetched from the network, nothing runs on a GPU by accident."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pi05ctl.spec.runspec import Options, RunSpec, resolve


def options(preset: str, task: str = "pushcube") -> Options:
    """Return what a preset says, so that tests shrink the real configuration instead of inventing one."""
    return resolve(RunSpec(kind="train", task=task, preset=preset))
