"""A signal that comes while a job still loads its libraries."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pi05.events import parse
from tests.fast.test_contract import TRAIN


def _hears(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal: the mask SigCgt of proc(5)."""
    text = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line.split()[1] for line in text.splitlines() if line.startswith("SigCgt")), 16)
    return bool(mask >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_libraries_load_is_kept(tmp_path: Path, number: int) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(TRAIN | {"storage": tmp_path.as_uri()}))
    line = [sys.executable, "-m", "pi05.jobs.train", str(path)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not _hears(process.pid, signal.SIGTERM):
        time.sleep(0.001)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    last = parse(said.splitlines()[-1])
    assert last is not None
    assert (last.kind, last.exit_code) == ("failed", 143)
