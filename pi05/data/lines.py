"""Programs that do one piece of work for each line they are sent, so that their imports (7 s) are paid once.

asked   a line                  answered   what the work returns, a line
                                or         REFUSED, an exit code and words, the last line: an error with words
"""

import os
import sys
from collections.abc import Callable

from pi05.errors import ConfigError, DataError, JobError

REFUSED = "!refused "
"""Begins the answer of a program that ends for a reason that it can name."""


def serve(begin: Callable[[], Callable[[str], str]]) -> int:
    """Do the work that `begin` returns for each line on stdin and answer what it returns; return the exit code.

    Whatever is printed meanwhile goes to stderr. An error with words ends the program with its exit code, its words
    being the answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # ManiSkill, its solvers and mplib print there
    try:
        work = begin()
        for line in sys.stdin:
            print(work(line.rstrip("\n")), file=answers, flush=True)
    except JobError as error:
        print(f"{REFUSED}{error.exit_code} {' '.join(str(error).split())}", file=answers, flush=True)
        return error.exit_code
    return 0


def refusal(answer: str) -> JobError | None:
    """Return the error that an answer is, or None."""
    if not answer.startswith(REFUSED):
        return None
    code, _, words = answer.removeprefix(REFUSED).strip().partition(" ")
    kinds = {str(kind.exit_code): kind for kind in (ConfigError, DataError)}
    return kinds.get(code, JobError)(words)
