"""Programs that do one piece of work for each line they are sent, so that their imports (7 s) are paid once."""

import os
import sys
from collections.abc import Callable


def serve(work: Callable[[str], str]) -> None:
    """Do `work` for each line on stdin and answer what it returns; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # ManiSkill, its solvers and mplib print there
    for line in sys.stdin:
        print(work(line.rstrip("\n")), file=answers, flush=True)
