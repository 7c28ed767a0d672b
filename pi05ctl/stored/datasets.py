"""Datasets in storage: what there is, what one was made of, and whether it is whole.

Reads manifests and the two small meta files of a dataset; what is inside its rows is looked at by the jobs'
interpreter, because that takes pyarrow.
"""

import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from pi05.config import Convention
from pi05.errors import DataError, nearest
from pi05.storage import MANIFEST, Storage
from pi05.tasks import TASKS
from pi05ctl.errors import TargetError, UsageError

_META, _INFO = "meta/pi05.json", "meta/info.json"
_ROOT = "datasets"
_MADE_HERE = re.compile(r"[0-9a-f]{12}")
"""Names of datasets that a demos run has made: a digest of what it was told."""


@dataclass(frozen=True)
class Described:
    """A dataset.

    Attributes:
        key: In storage.
        task: Name of its task.
        demos, frames: Episodes, and rows of all.
        size: Bytes.
        when: When it was complete, in seconds since 1970.
        convention: Of states, actions and cameras.
        renderer: What drew its images.
        goal_visible: Whether they show the goal.
        source: Recordings of others that were replayed, or "".
        seeds: Of the episodes.
        seeds_known: Whether they are; episodes of an imported dataset are numbered instead.
        tried: Seeds tried for them.
        failures: How many seeds failed, by reason.
        seconds: Planning and replay that a kept demonstration took, failures included.
        inexact: Episodes whose replay was not the recording bit for bit.
        versions: Of what made it.
    """

    key: str
    task: str
    demos: int
    frames: int
    size: int
    when: float
    convention: Convention
    renderer: str
    goal_visible: bool
    source: str
    seeds: tuple[int, ...]
    seeds_known: bool
    tried: int
    failures: dict[str, int]
    seconds: tuple[float, float]
    inexact: int
    versions: dict[str, str]


def described(storage: Storage) -> tuple[list[Described], list[str]]:
    """Return all datasets, the newest last, and what is wrong with those that cannot be described."""
    found: list[Described] = []
    damaged: list[str] = []
    for task in TASKS:
        folder = f"{_ROOT}/{task}"
        content = storage.scan(folder, [MANIFEST, _META, _INFO])
        for key in sorted({key.removesuffix(f"/{MANIFEST}") for key in content if key.endswith(f"/{MANIFEST}")}):
            try:
                found.append(_describe(storage, key, content))
            except DataError as error:
                damaged.append(str(error))
        begun = {key.removesuffix(f"/{_INFO}") for key in content if key.endswith(f"/{_INFO}")}
        damaged += [
            f"{storage.url}/{key} has no {MANIFEST}: a run is making it, or others did; to use what others made: "
            f"{_import(storage, key)}"
            for key in sorted(begun)
            if f"{key}/{MANIFEST}" not in content
        ]
    return sorted(found, key=lambda one: one.when), damaged


def find(storage: Storage, name: str) -> str:
    """Return the key of a dataset.

    Args:
        storage: Where it is.
        name: Its key, a unique beginning of its digest, or a task (its newest one).

    Raises:
        UsageError: There is none of that name, or more than one.
    """
    keys = [f"{_ROOT}/{task}/{digest}" for task in TASKS for digest in storage.artefacts(f"{_ROOT}/{task}")]
    wanted = name.strip("/").removeprefix(f"{_ROOT}/")
    if wanted in TASKS:
        mine = [key for key in keys if key.split("/")[1] == wanted]
        if mine:
            return max(mine, key=storage.modified)
        raise UsageError(f"{storage.url} has no dataset of {wanted} yet; make one: pi05ctl submit demos {wanted}")
    task, _, digest = wanted.rpartition("/")
    fits = [key for key in keys if _digest(key).startswith(digest) and task in ("", key.split("/")[1])]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UsageError(f"{name!r} could be any of {', '.join(fits)}")
    hint = nearest(wanted, [*TASKS, *map(_digest, keys)]) or ";"
    there = ", ".join(keys) or "none; make one: pi05ctl submit demos pushcube"
    raise UsageError(f"{storage.url} has no dataset {name!r}{hint} there are {there}".replace("? there", "? There"))


def describe(storage: Storage, key: str) -> Described:
    """Return what a dataset is; raise DataError when its meta files are missing or damaged."""
    folder, _, digest = key.rpartition("/")
    return _describe(storage, key, storage.scan(folder, [MANIFEST, _META, _INFO]) if digest else {})


def verify(storage: Storage, key: str, python: str) -> None:
    """Compare every file with its checksum, then look at every row and image.

    Args:
        storage: Where it is.
        key: Of the dataset.
        python: Interpreter of the jobs.

    Raises:
        DataError: Something is wrong: every problem, and the remedy.
        UsageError: The interpreter cannot look into datasets.
        TargetError: It died while it looked.
    """
    if problems := storage.verify(key) or _look_inside(storage, key, python):
        raise DataError(f"{storage.url}/{key} cannot be used: {'; '.join(problems)}; {_remedy(storage, key)}")


def _remedy(storage: Storage, key: str) -> str:
    """Return what to do about a dataset: to delete only what can be made again here."""
    task, name = key.split("/")[1:3]
    away = f"delete {storage.url}/{key}, then"
    if name.startswith("import-"):
        return f"{away} import what it was made of again: pi05ctl datasets import FOLDER --task {task}"
    if _MADE_HERE.fullmatch(name):
        return f"{away} make it again: pi05ctl submit demos {task} (with the same options)"
    return (
        "no run made it under this name, so nothing here can make it again: put back what it was, or import it: "
        + _import(storage, key)
    )


def _import(storage: Storage, key: str) -> str:
    """Return the command that makes a dataset of ours of a folder that others have put into storage."""
    where = f"{storage.url}/{key}".removeprefix("file://") if storage.url.startswith("file:") else "FOLDER"
    return f"pi05ctl datasets import {shlex.quote(where)} --task {key.split('/')[1]}"


def _look_inside(storage: Storage, key: str, python: str) -> list[str]:
    """Return what is wrong with a dataset whose checksums agree."""
    command = [python, "-m", "pi05.data.verify", str(storage.open(key))]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"{python} does not run ({error.strerror}); set python in pi05.toml") from error
    if asked.returncode in (0, DataError.exit_code):
        return asked.stdout.splitlines()
    last = (asked.stderr.strip().splitlines() or [f"it ended with code {asked.returncode}"])[-1]
    imports = any(word in last for word in ("ModuleNotFoundError", "ImportError", "No module named"))
    if asked.returncode < 0 or ("Traceback" in asked.stderr and not imports):
        raise TargetError(f"every checksum of {key} agrees, but whoever looked into it died: {last}")
    raise UsageError(
        f"every checksum of {key} agrees, but {python} cannot look into it ({last}); set python in pi05.toml to an "
        "environment with the jobs' packages (scripts/_setup sim)"
    )


def _describe(storage: Storage, key: str, content: dict[str, bytes]) -> Described:
    """Return a dataset from its small files."""
    if f"{key}/{_META}" not in content and f"{key}/{_INFO}" in content:
        raise DataError(f"{storage.url}/{key} has no {_META}, so it was made elsewhere; {_import(storage, key)}")
    try:
        files = cast("dict[str, dict[str, Any]]", json.loads(content[f"{key}/{MANIFEST}"])["files"])
        meta = cast("dict[str, Any]", json.loads(content[f"{key}/{_META}"]))
        info = cast("dict[str, Any]", json.loads(content[f"{key}/{_INFO}"]))
        attempts = cast("list[dict[str, Any]]", meta["attempts"])
        seeds = tuple(int(seed) for seed in meta["seeds"])
        kept = max(len(seeds), 1)
        return Described(
            key=key,
            task=str(meta["task"]),
            demos=len(seeds),
            frames=int(info["total_frames"]),
            size=sum(int(entry["size"]) for entry in files.values()),
            when=storage.modified(key),
            convention=Convention.model_validate(meta["convention"]),
            renderer=str(meta["renderer"]),
            goal_visible=bool(meta.get("goal_visible", True)),
            source=str(meta.get("source", "")),
            seeds=seeds,
            seeds_known=bool(meta.get("seeds_known", True)),
            tried=len(attempts),
            failures=dict(Counter(str(one["reason"]) for one in attempts if not one["success"]).most_common()),
            seconds=(
                sum(float(one["seconds"]) for one in attempts) / kept,
                sum(float(one.get("replay_seconds", 0)) for one in attempts) / kept,
            ),
            inexact=int(meta.get("inexact", 0)),
            versions=dict(meta["versions"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{storage.url}/{key} cannot be described ({error!r}); pi05ctl datasets verify {key}"
        ) from error


def spans(seeds: Sequence[int]) -> str:
    """Return seeds as people write them: `0-2, 4, 7-9`."""
    parts: list[str] = []
    begin = 0
    for index in range(1, len(seeds) + 1):
        if index == len(seeds) or seeds[index] != seeds[index - 1] + 1:
            first, last = seeds[begin], seeds[index - 1]
            parts.append(str(first) if first == last else f"{first}-{last}")
            begin = index
    return ", ".join(parts)


def _digest(key: str) -> str:
    return key.rsplit("/", 1)[-1]
