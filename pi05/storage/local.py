"""Folders of this user on this machine, for what can be made again."""

import os
import tempfile
from pathlib import Path

from pi05.errors import ConfigError


def scratch() -> Path:
    """Return the folder for what is large."""
    return Path(tempfile.gettempdir()) / f"pi05-{os.getuid()}"


def user_cache() -> Path:
    """Return the folder of small things that were read before.

    Raises:
        ConfigError: There is neither XDG_CACHE_HOME nor a home, as in a container that runs under a number.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given or Path("~/.cache").expanduser()) / "pi05"
    except RuntimeError:
        raise ConfigError(
            f"user {os.getuid()} has no home on this machine; set HOME or XDG_CACHE_HOME to a folder"
        ) from None
