"""Words that several commands share, and the service that they name."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pi05ctl.cli import terminal

if TYPE_CHECKING:
    from pi05ctl.service import Service
    from pi05ctl.spec.settings import Settings


class Output(StrEnum):
    """Form of what goes to stdout."""

    text = "text"
    json = "json"


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name, a unique beginning of it, or a task (its newest run).")
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target", metavar="NAME", help="Where: local (this machine) or cluster; its default is in pi05.toml."
    ),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="Form of the output.")]


def at_home(path: Path | None) -> Path | None:
    """Return a path of the command line with the home that `~` stands for: shells leave it alone in --from=~/x."""
    from pi05.storage import expanded

    return None if path is None else expanded(path)


def settings_here() -> "Settings":
    """Return the settings that hold here."""
    from pi05ctl.spec import settings

    return settings.load(Path.cwd(), os.environ, Path(sys.executable))


def service_of(target: str | None) -> "Service":
    """Return the service of a target (or of the default one) under the settings that hold here."""
    from pi05ctl.service import Service
    from pi05ctl.spec.settings import VARIABLE

    found = settings_here()
    if found.origin == VARIABLE and (target or found.target) == "local":
        terminal.say(f"storage {found.storage} (from {found.origin})")
    return Service(found, target)
