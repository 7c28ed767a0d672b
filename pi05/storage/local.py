"""Folders of this user on this machine: for what can be made again, and those that a person names."""

import os
import tempfile
from pathlib import Path

from pi05.errors import ConfigError


def scratch() -> Path:
    """Return the folder for what is large."""
    return Path(tempfile.gettempdir()) / f"pi05-{os.getuid()}"


def user_cache() -> Path:
    """Return the folder of small things that were read before; of a user without a home one beside `scratch`.

    (As in a container that runs under a number: nothing there outlives it, so nothing is lost.)
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path("~/.cache").expanduser()) / "pi05"
    except RuntimeError:
        return scratch() / "cache"


def expanded(path: Path) -> Path:
    """Return a path that a person wrote, `~` and `~name` in it replaced by the home that they stand for.

    Raises:
        ConfigError: This machine knows no such home.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        whose = path.parts[0]
        raise ConfigError(
            f"{path}: this machine knows no home that {whose} stands for; write the path in full (or set HOME)"
        ) from None
