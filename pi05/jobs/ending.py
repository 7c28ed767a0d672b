"""When an evaluation with eval.until ends: episodes of this process and those that other shards have kept -> a seed.

Shards do not speak with each other. Each looks into the folders where the others keep their episodes, and whoever looks
finds the same seed sooner or later, because only episodes in a row from the first seed on count (results.end). What a
shard has run beyond it, because it did not know yet, counts for nobody.
"""

import hashlib
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from pi05 import variables
from pi05.jobs.runtime import Context
from pi05.results import Episode, Result, end
from pi05.storage import RunPaths


def kept_as(header: Result) -> str:
    """Return the folder, inside a shard's work folder, in which episodes of this evaluation are kept."""
    what = header.checkpoint or header.policy
    told = variables.words(header.variables).encode()
    return f"{what}+{hashlib.sha256(told).hexdigest()[:8]}" if header.variables else what


class Ending:
    """Finds the seed before which an evaluation ends.

    Args:
        context: Which shard this is, and where the others keep what they have.
        header: The evaluation; without `until` it never ends early.
    """

    def __init__(self, context: Context, header: Result) -> None:
        self._context, self._header = context, header
        self._others: dict[str, Episode] = {}
        self._stop: int | None = None

    @property
    def early(self) -> bool:
        """Whether the evaluation is known to end before its last seed."""
        return self._stop is not None

    def before(self, seeds: Sequence[int], solved: Mapping[int, bool]) -> list[int]:
        """Return those of the seeds that come before the end; all while it is not known.

        Args:
            seeds: Of this process.
            solved: Whether each of its episodes that have ended was solved.
        """
        until, first = self._header.until, self._header.first_seed
        if until is not None and first is not None and self._stop is None:
            self._look()
            known = {episode.seed: episode.success_once for episode in self._others.values()}
            self._stop = end({**known, **solved}, first, until)
        return [seed for seed in seeds if self._stop is None or seed < self._stop]

    def _look(self) -> None:
        """Read what other shards have finished since the last look."""
        storage, run = self._context.storage, self._context.paths.run
        for shard in range(self._context.shards):
            if shard == self._context.shard:
                continue
            paths = RunPaths(run, shard)
            folder = f"{paths.work}/{kept_as(self._header)}"
            names = self._context.insist(lambda folder=folder: storage.children(folder))
            keys = [key for name in names if (key := f"{folder}/{name}").endswith(".json")]
            new = [key for key in (*keys, f"{paths.results}/{shard}.json") if key not in self._others]
            for key, data in self._context.insist(lambda new=new: storage.read_all(new)).items():
                self._take(key, data)

    def _take(self, key: str, data: bytes) -> None:
        """Keep an episode, or those of a shard that has ended; what is damaged or of another evaluation is left."""
        try:
            if "/results/" not in key:
                self._others[key] = Episode.model_validate_json(data)
                return
            result = Result.model_validate_json(data)
        except ValidationError:
            return
        if result.model_copy(update={"episodes": ()}) == self._header:
            self._others |= {f"{key}/{episode.seed}": episode for episode in result.episodes}
