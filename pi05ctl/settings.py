"""Where runs live and what runs them: pi05.toml, found from the working directory upward, and the environment.

    target = "local"                                # the default of --target
    storage = "pi05-data"                           # a folder beside this file, or file:///absolute/path
    python = ".venv/bin/python"                     # runs the jobs
    planner_python = ".venv-planner/bin/python"     # plans demonstrations (numpy < 2)
    jobs_at_once = 1                                # of the local target; the others are Queued

All of it has defaults. The only variable that counts is PI05_STORAGE, and a command that obeys it says so.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pi05.config import Positive, Section, explain
from pi05ctl.errors import UsageError, unknown

FILE = "pi05.toml"
VARIABLE = "PI05_STORAGE"
_PLANNER = ".venv-planner/bin/python"


class _File(Section):
    """What pi05.toml may say."""

    target: str = "local"
    storage: str | None = None
    python: str | None = None
    planner_python: str | None = None
    jobs_at_once: Positive = 1


@dataclass(frozen=True)
class Settings:
    """Where runs live and what runs them.

    Attributes:
        storage: Root of all artefacts, as a URL.
        python: Interpreter of the jobs.
        planner_python: Interpreter of the planner's environment.
        target: Where runs go unless a command says otherwise.
        jobs_at_once: Jobs that the local target runs at the same time.
        origin: Where the storage comes from when it is not the default, for people.
    """

    storage: str
    python: str
    planner_python: str
    target: str = "local"
    jobs_at_once: int = 1
    origin: str | None = None


def load(folder: Path, environ: Mapping[str, str], python: Path) -> Settings:
    """Return the settings that hold in `folder` for a pi05ctl run by the interpreter `python`."""
    found = next((path for path in _upward(folder) if path.is_file()), None)
    base = found.parent if found else folder
    file = _read(found) if found else _File()
    storage, origin = file.storage, FILE if file.storage else None
    if environ.get(VARIABLE):
        storage, origin = environ[VARIABLE], VARIABLE
    return Settings(
        storage=_url(storage or "pi05-data", base),
        python=str(base / file.python) if file.python else str(python),
        planner_python=_planner(file.planner_python, base, python),
        target=file.target,
        jobs_at_once=file.jobs_at_once,
        origin=origin,
    )


def _upward(folder: Path) -> list[Path]:
    """Return where pi05.toml may lie, nearest first."""
    return [parent / FILE for parent in (folder, *folder.parents)]


def _read(path: Path) -> _File:
    """Return what pi05.toml says; raise UsageError when it is not TOML or has a key nobody reads."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    for key in table:
        if key not in _File.model_fields:
            raise UsageError(f"{path}: {unknown('key', key, list(_File.model_fields))}")
    try:
        return _File.model_validate(table, strict=True)
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error)}") from error


def _url(storage: str, base: Path) -> str:
    """Return a URL as it is, and a path as a file:// URL, relative to `base`."""
    if "://" in storage:
        return storage
    return (base / Path(storage).expanduser()).resolve().as_uri()


def _planner(given: str | None, base: Path, python: Path) -> str:
    """Return the planner's interpreter: the given one, or the one beside the project or its environment."""
    if given:
        return str(base / given)
    beside = [base / _PLANNER, python.parent.parent.parent / _PLANNER]
    return str(next((path for path in beside if path.exists()), beside[0]))
