"""A dataset that others made, from a folder of this machine to storage: named by its content, converted, verified.

The jobs' interpreter does the converting (pi05.data.importing), because that takes pyarrow; what it says of the data
is passed on. The same folder with the same options is the same dataset, and is made once.
"""

import hashlib
import json
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pi05.config import Convention
from pi05.errors import ConfigError, DataError
from pi05.storage import Storage, artefact
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
    folder = wish.folder.expanduser()
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
    found: dict[str, str] = {}
    for path in sorted(_files(folder)):
        found[path.relative_to(folder).as_posix()] = artefact.crc32c(path)
    said = {"v": _VERSION, "files": found, "options": wish.options}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _files(folder: Path) -> list[Path]:
    """Return the files of a LeRobot dataset; links are followed, and one that leads nowhere is refused."""
    found: list[Path] = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") for part in inside):  # of git, of the hub
            continue
        if path.is_symlink() and not path.exists():
            raise DataError(
                f"{path} is a link to {path.readlink()}, which does not exist; fetch the dataset again, whole"
            )
        if path.is_symlink() and path.is_dir():
            found += [path / below.relative_to(path) for below in _files(path)]
        elif path.is_file():
            found.append(path)
    return found


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
