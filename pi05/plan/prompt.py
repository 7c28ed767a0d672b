"""A training's tasks -> the length of its prompts, as far as it can be known without the tokenizer's file.

PaliGemma's tokenizer has most English words as one token and spells numbers digit by digit, with one more token for the
space before them. The small one of the recipe has every word of the tasks and every number as one token.
"""

import re

from pi05 import tasks
from pi05.config import TrainJob

_PIECES = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]|\n")
_LETTERS = 8
"""Of a word that is one token; longer ones are two or more."""
_MULTIPLE = 8
_STATE = {"joints": 8, "joints_and_poses": 21}
"""Numbers of a state, at most."""


def assumed_length(job: TrainJob) -> int:
    """Return the tokens that every prompt is padded to, if the job's tokenizer is like those two."""
    convention, spelled = job.convention, job.train.tokenizer is not None
    numbers = _STATE[convention.state] if convention.state_in_prompt else 0
    longest = max(_count(tasks.find(share.task).sentence, numbers, spelled) for share in job.shares)
    return min(-(-longest // _MULTIPLE) * _MULTIPLE, job.model.max_token_len)


def _count(sentence: str, numbers: int, spelled: bool) -> int:
    """Return the tokens of a prompt: its beginning, words, marks, numbers and the space at its end."""
    pieces = _PIECES.findall(f"Task: {sentence}, State: ;\nAction: ")
    words = sum(-(-len(piece) // _LETTERS) if piece.isalpha() else 1 for piece in pieces)
    return 2 + words + numbers * (4 if spelled else 1)
