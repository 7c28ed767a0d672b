"""What lies where in a storage: the names of a run's artefacts, and keys that stay inside."""

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from pi05.errors import DataError

PARAMS, STATE, ASSETS = "params", "train_state", "assets"
"""Parts of a checkpoint: what a policy is made of; what only training needs, in those that it can go on from; words
and statistics that both need."""


@dataclass(frozen=True)
class RunPaths:
    """Names every artefact of a run.

    runs/<run>/{run.json,job.json,status.json,log.txt,lease,work/,checkpoints/<step>/,results/<shard>.json,report/}
    runs/<run>/shards/<shard>/{status.json,lease,work/}    of one shard, when several pods share the work
    runs/<run>/logs/<attempt>.txt                    what a pod printed; what is long goes on in <attempt>.0001.txt
    runs/<run>/profile/<first>-<last>/               what some training steps did, recorded by JAX's profiler
    runs/<run>/skipped/<step>.json                   of what rows a training step was made that was not finite

    Attributes:
        run: Name of the run.
        shard: Part of the work that has a status and a lease of its own; None for a whole run.
    """

    run: str
    shard: int | None = None

    @property
    def root(self) -> str:
        """Folder of the run."""
        return f"runs/{self.run}"

    @property
    def shards(self) -> str:
        """Folder of shards, one folder each."""
        return f"{self.root}/shards"

    @property
    def spec(self) -> str:
        """What was asked for, written by the controller."""
        return f"{self.root}/run.json"

    @property
    def job(self) -> str:
        """What the job was told."""
        return f"{self.root}/job.json"

    @property
    def status(self) -> str:
        """The last event of the job or of this shard."""
        return f"{self._own}/status.json"

    @property
    def log(self) -> str:
        """Everything the job printed, when it ran on this machine."""
        return f"{self.root}/log.txt"

    @property
    def logs(self) -> str:
        """Folder of what each pod printed."""
        return f"{self.root}/logs"

    @property
    def lease(self) -> str:
        """Held by the one process that may write this run or this shard."""
        return f"{self._own}/lease"

    @property
    def work(self) -> str:
        """Intermediate files that a restarted job or shard reuses."""
        return f"{self._own}/work"

    @property
    def checkpoints(self) -> str:
        """Folder of checkpoints, one folder a step."""
        return f"{self.root}/checkpoints"

    @property
    def results(self) -> str:
        """Folder of evaluation results."""
        return f"{self.root}/results"

    def checkpoint(self, step: int) -> str:
        """Checkpoint artefact of a step."""
        return f"{self.checkpoints}/{step}"

    def profile(self, first: int, last: int) -> str:
        """What JAX's profiler recorded of some training steps."""
        return f"{self.root}/profile/{first}-{last}"

    def skipped(self, step: int) -> str:
        """What a training step was made of that changed nothing, because its loss or gradient was not finite."""
        return f"{self.root}/skipped/{step}.json"

    def attempt_log(self, attempt: str, part: int = 0) -> str:
        """What one pod printed, in parts of which each goes on where the one before ends."""
        return f"{self.logs}/{attempt}{f'.{part:04d}' if part else ''}.txt"

    @property
    def _own(self) -> str:
        return self.root if self.shard is None else f"{self.shards}/{self.shard}"


def check_key(key: str) -> str:
    """Return `key` when it stays inside the storage root; raise DataError otherwise."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\\" in key or re.search(r"[\x00-\x1f]", key):
        raise DataError(f"storage key {key!r} is not a relative path without '..'")
    return key


def removal(url: str, key: str) -> str:
    """Return the command with which a person removes an artefact."""
    command = {"gs": "gcloud storage rm -r", "s3": "aws s3 rm --recursive"}.get(url.partition("://")[0])
    if command is None:
        return f"rm -r {shlex.quote(unquote(f'{url}/{key}'.removeprefix('file://')))}"
    return f"{command} {shlex.quote(f'{url}/{key}')}"
