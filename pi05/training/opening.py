"""Opens what is to be pushed, weights or a tokenizer, as a job would: `python -m pi05.training.opening PATH`.

Every array is read once, and none is kept. What is missing or damaged is one line on stdout, and exit code 65. Whether
the weights fit a model is for the job to say that knows one.
"""

import logging
import sys
from pathlib import Path

from pi05.data.tokenizer import Tokenizer
from pi05.errors import DataError
from pi05.model import weights


def opened(path: Path) -> None:
    """Open a SentencePiece file or a folder with `params`; raise DataError when that fails."""
    if path.is_file():
        Tokenizer.load(path)
    else:
        weights.read_through(path / "params")


def main(arguments: list[str]) -> int:
    """Open a path; return the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        opened(Path(arguments[0]))
    except DataError as error:
        sys.stdout.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
