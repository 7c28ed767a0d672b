"""Which episodes of a dataset are trained on, and which are kept apart to see how a policy does on what it never saw.

Depends on how many episodes there are and on nothing else, so that seeds, resumes and other datasets change nothing.
"""

import numpy as np
from jaxtyping import Bool, Int

from pi05.data.dataset import Dataset
from pi05.errors import ConfigError

Rows = Int[np.ndarray, " n"]


def split(dataset: Dataset, held_out: float) -> tuple[Rows, Rows]:
    """Return the rows to train on, and those that are kept apart.

    Args:
        dataset: Its rows, episode after episode.
        held_out: Episodes that are kept apart, or below 1 their share; spread evenly over all.

    Raises:
        ConfigError: None would be left to train on.
    """
    apart = _apart(len(dataset.starts) - 1, held_out, dataset.meta.task)
    kept = np.repeat(apart, np.diff(dataset.starts))
    return np.flatnonzero(~kept), np.flatnonzero(kept)


def _apart(episodes: int, held_out: float, task: str) -> Bool[np.ndarray, " e"]:
    """Return for each episode whether it is kept apart; a share keeps at least one."""
    count = int(held_out) if held_out >= 1 else int(np.ceil(held_out * episodes))
    if count >= episodes:
        raise ConfigError(
            f"train.held_out={held_out:g} would keep {count} of the {episodes} episodes of {task} apart and leave none "
            f"to train on; use at most {episodes - 1}"
        )
    apart = np.zeros(episodes, bool)
    apart[((np.arange(count) + 0.5) * episodes / max(count, 1)).astype(int)] = True
    return apart
