"""What a pod prints, kept in parts: whole and in order, also when the process ends without unwinding."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys, time
from pathlib import Path
from pi05.jobs import output

folder, how = Path(sys.argv[1]), sys.argv[2]
output.PERIOD, output.PART = 0.05, 10_000
uploads = []

def upload(part, data):
    if how == "refused" and len(uploads) < 3:
        uploads.append(0)
        raise output.JobError("no way there")
    (folder / f"{part:04d}").write_bytes(data)
    uploads.append(part)

with output.kept(upload) as log:
    for number in range(2000):
        print("line", number, "x" * 80)
        if number % 200 == 0:
            time.sleep(0.06)
    os.system("echo a child")
    if how == "drained":
        log.drain()
        os._exit(3)
    if how == "ended":
        log.end()
        os._exit(3)
(folder / "uploads").write_text(" ".join(map(str, uploads)))
"""


def run(folder: Path, how: str = "") -> tuple[int, bytes, list[Path]]:
    """Return the exit code, what was printed, and the parts that were kept."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder), how], capture_output=True, check=False)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout, sorted(folder.glob("0*"))


def joined(parts: list[Path]) -> bytes:
    return b"".join(path.read_bytes() for path in parts)


def test_the_parts_of_a_log_are_what_was_printed(tmp_path: Path) -> None:
    code, printed, parts = run(tmp_path)
    assert code == 0
    assert printed.splitlines()[-1] == b"a child"
    assert [path.name for path in parts] == [f"{number:04d}" for number in range(len(parts))]
    assert len(parts) > 3
    assert joined(parts) == printed


def test_only_the_part_that_grows_is_written_again(tmp_path: Path) -> None:
    _, _, parts = run(tmp_path)
    uploads = [int(part) for part in (tmp_path / "uploads").read_text().split()]
    assert uploads == sorted(uploads), "a part is never touched again once the next one has begun"
    assert max(path.stat().st_size for path in parts) < 10_000 + 2**16
    assert all(path.stat().st_size >= 10_000 for path in parts[:-1])


def test_what_could_not_be_uploaded_comes_later(tmp_path: Path) -> None:
    _, printed, parts = run(tmp_path, "refused")
    assert joined(parts) == printed
    assert printed.count(b"the log could not be saved: no way there") == 3


def test_a_process_that_ends_at_once_has_printed_everything(tmp_path: Path) -> None:
    code, printed, _ = run(tmp_path, "drained")
    assert (code, printed.splitlines()[-1]) == (3, b"a child")


def test_a_process_that_ends_without_unwinding_has_uploaded_everything(tmp_path: Path) -> None:
    code, printed, parts = run(tmp_path, "ended")
    assert code == 3
    assert joined(parts) == printed
