"""A dataset that others made, from a folder of this machine to storage: named by its content, converted, verified.

The jobs' interpreter does the converting (pi05.data.importing), because that takes pyarrow; what it says of the data
is passed on. The same folder with the same options is the same dataset, and is made once. ManiSkill's recordings are
only found here: a demos run replays them.
"""

import hashlib
import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pi05.config import Convention
from pi05.errors import ConfigError, DataError
from pi05.storage import Storage, crc32c, expanded, files_of
from pi05.tasks import Task
from pi05ctl.errors import UsageError
from pi05ctl.stored import datasets

_VERSION = 1
"""Of how folders are converted; another one makes other datasets, under other names."""


@dataclass(frozen=True)
class Wish:
    """What is imported, and how, as the user says it.

    Attributes:
        folder: A LeRobot dataset.
        task: Whose demonstrations they are.
        options: Of pi05.data.importing, as its command line has them; part of the dataset's name.
    """

    folder: Path
    task: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """ManiSkill's recordings of a task: the h5 file, the control mode, and how many episodes succeeded."""

    path: Path
    mode: str
    episodes: int


@dataclass(frozen=True)
class Imported:
    """A dataset in storage, and whether it was there before."""

    key: str
    already: bool


def import_dataset(storage: Storage, wish: Wish, python: str) -> Imported:
    """Bring a dataset of others into storage, verified.

    Args:
        storage: Where to.
        wish: What.
        python: Interpreter of the jobs.

    Raises:
        UsageError: There is no dataset in the folder, an option means nothing, or the interpreter cannot import.
        DataError: The data are damaged, or not what demonstrations of the task have to be: the field, what is required.
    """
    folder = expanded(wish.folder)
    _check_form(folder)
    identity = _identity(folder, wish)
    key = f"datasets/{wish.task}/import-{identity}"
    already = storage.exists(key)
    if not already:
        with storage.stage(key) as out:
            _convert(folder, wish, identity, out, python)
    datasets.verify(storage, key, python)
    return Imported(key, already)


def training_options(found: Convention, wanted: Convention) -> list[str]:
    """Return the --set options with which a preset of convention `wanted` trains on a dataset of another one."""
    ours, theirs = wanted.model_dump(mode="json"), found.model_dump(mode="json")
    return [f"convention.{name}={_word(theirs[name])}" for name in ours if ours[name] != theirs[name]]


def recordings(source: Path, task: Task) -> Recorded | None:
    """Return the recordings of a task in a folder as ManiSkill's downloader lays it, or in one h5 file; None: no h5.

    Of several files that of pd_joint_pos is taken, whose actions are ours.

    Raises:
        UsageError: None is of the task, or more than one could be meant.
        DataError: The json beside a file is missing or damaged.
    """
    source = expanded(source)
    paths = [source] if source.suffix in (".h5", ".hdf5") and source.is_file() else _below(source)
    if not paths or (source / "meta/info.json").is_file():
        return None
    told = {path: _told(path) for path in paths}
    fitting = [found for path in paths if (found := _recorded(path, told[path], task))]
    if not fitting:
        envs = ", ".join(sorted({_env(one) for one in told.values()}))
        raise UsageError(
            f"{source} has recordings of {envs}, {task.name} is {task.env_id}; name another task or folder"
        )
    ours = [one for one in fitting if one.mode == Convention().control_mode] or fitting
    if len(ours) > 1:
        raise UsageError(f"{source} has several recordings; name one: {', '.join(str(one.path) for one in ours)}")
    return ours[0]


def _below(folder: Path) -> list[Path]:
    """Return the h5 files below a folder, through links."""
    return [folder / name for name in files_of(folder, hidden=False) if name.endswith(".h5")] if folder.is_dir() else []


def _told(path: Path) -> dict[str, Any]:
    """Return the json beside an h5 file."""
    beside = path.with_suffix(".json")
    try:
        told: object = json.loads(beside.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(
            f"{beside} is missing; ManiSkill's recordings are an h5 file and its json: fetch both"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{beside} is damaged ({error}); fetch the recordings again") from error
    if not isinstance(told, dict):
        raise DataError(f"{beside} is not what ManiSkill's recorder writes; fetch the recordings again")
    return cast("dict[str, Any]", told)


def _env(told: dict[str, Any]) -> str:
    """Return of which environment recordings are."""
    return str(told["env_info"]["env_id"]) if isinstance(told.get("env_info"), dict) else "nothing that is said"


def _recorded(path: Path, told: dict[str, Any], task: Task) -> Recorded | None:
    """Return recordings when they are of a task."""
    if _env(told) != task.env_id:
        return None
    try:
        episodes = cast("list[dict[str, Any]]", told["episodes"])
        modes = sorted({str(one["control_mode"]) for one in episodes})
        kept = sum(bool(one.get("success", True)) for one in episodes)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path.with_suffix('.json')} is not what ManiSkill's recorder writes ({error!r})") from error
    if not kept:
        raise DataError(f"{path} has no episode that succeeded, of {len(episodes)}; import others")
    return Recorded(path.absolute(), " and ".join(modes), kept)


def _word(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value).lower()  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _check_form(folder: Path) -> None:
    """Raise UsageError unless a folder looks like a dataset that can be imported."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}; name the folder of a LeRobot dataset, which has meta/info.json")
    if not (folder / "meta/info.json").is_file():
        below = [path.parent.parent for path in sorted(folder.glob("*/meta/info.json"))]
        hint = f"; there is one in {below[0]}" if below else ""
        raise UsageError(f"{folder} is no LeRobot dataset: it has no meta/info.json{hint}")


def _identity(folder: Path, wish: Wish) -> str:
    """Return 12 digits that change with any byte that is imported, and with how."""
    found = {name: crc32c(folder / name) for name in files_of(folder, hidden=False)}
    said = {"v": _VERSION, "files": found, "options": wish.options}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _convert(folder: Path, wish: Wish, identity: str, out: Path, python: str) -> None:
    """Let the jobs' interpreter convert a folder; what it says on the way is shown, what it refuses is raised."""
    command = [python, "-m", "pi05.data.importing", str(folder), "--task", wish.task, "--out", str(out)]
    try:
        asked = subprocess.run(
            [*command, "--identity", identity, *wish.options], stdout=subprocess.PIPE, text=True, check=False
        )
    except OSError as error:
        raise UsageError(f"{python} does not run ({error.strerror}); set python in pi05.toml") from error
    said = asked.stdout.strip()
    if asked.returncode == DataError.exit_code:
        raise DataError(said)
    if asked.returncode == ConfigError.exit_code:
        raise UsageError(said)
    if asked.returncode:
        raise UsageError(
            f"{shlex.join(command)} ended with code {asked.returncode}; if packages are missing there, set python in "
            "pi05.toml to an environment with the jobs' packages (scripts/_setup sim)"
        )
