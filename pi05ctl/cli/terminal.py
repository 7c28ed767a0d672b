"""The only writer to stdout and stderr and the only reader of stdin: data for programs, words for people, questions.

stdout is for data, stderr for people. What others wrote (a pod's log, a file in a bucket) may hold anything: on a
terminal every control character of it is shown and not obeyed.
"""

import io
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from pi05ctl.errors import UsageError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters but newline and tab, and those that turn the direction of a line."""
_COLOURS = {"ok": "32", "warning": "33", "missing": "1;31"}


class _Said(logging.Handler):
    """Writes what modules without words of their own log, as a line for people."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def prepare() -> None:
    """Have stdout and stderr take whatever is written, as escapes where their encoding lacks it, or closed, nowhere.

    What the controller logs is said on stderr.
    """
    logging.getLogger("pi05ctl").addHandler(_Said())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started us
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def is_terminal() -> bool:
    """Return whether somebody reads stdout."""
    return sys.stdout.isatty()


def out(text: str) -> None:
    """Write data of ours; what others wrote has gone through `plain`."""
    sys.stdout.write(text)
    sys.stdout.flush()


def out_json(value: Any) -> None:
    """Write data for a program."""
    out(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def out_bytes(data: bytes) -> None:
    """Write what a run printed: as it is to a file or a pipe, plain to a terminal."""
    if is_terminal():
        out(plain(data.decode(errors="replace")))
        return
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def say(text: str) -> None:
    """Write one line for people."""
    sys.stderr.write(f"pi05ctl: {plain(' '.join(text.split()))}\n")


def plain(text: str) -> str:
    r"""Return text whose control characters are words: \x1b instead of an escape."""
    return _CONTROL.sub(lambda one: ascii(one[0])[1:-1], text.replace("\r\n", "\n"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: in colour and as wide as the terminal, aligned text elsewhere."""
    from pi05ctl.views.tables import terminal_table, text_table

    cells = [[plain(cell) for cell in row] for row in rows]
    if not is_terminal():
        return text_table(header, cells)
    return terminal_table(header, cells, shutil.get_terminal_size().columns, colour="NO_COLOR" not in os.environ)


def coloured(word: str, text: str) -> str:
    """Return text in the colour of a word such as `missing`, where there are colours."""
    if word not in _COLOURS or not is_terminal() or "NO_COLOR" in os.environ:
        return text
    return f"\x1b[{_COLOURS[word]}m{text}\x1b[0m"


def size(count: float) -> str:
    """Return bytes as people read them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def can_ask() -> bool:
    """Return whether somebody can answer."""
    return sys.stdin.isatty()


def ask(question: str, default: str, check: Callable[[str], None]) -> str:
    """Ask until the answer can be; an empty one is the default. Raise Abort when there is no more to read."""
    while True:
        answer = _answer(f"{question} [{default}]: " if default else f"{question}: ") or default
        try:
            check(answer)
        except UsageError as error:
            say(str(error))
        else:
            return answer


def confirm(lines: Sequence[str], question: str) -> None:
    """Show what would be done and ask whether it shall be; raise Abort unless the answer is yes."""
    for line in lines:
        say(line)
    if _answer(f"{question} [y/N] ").lower() not in ("y", "yes"):
        raise typer.Abort


def _answer(question: str) -> str:
    sys.stderr.write(question)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise typer.Abort
    return line.strip()
