"""Which features of a LeRobot folder are the state, the action and the cameras: as said, else by usual names."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pi05.data.foreign import ForeignFolder, Pick
from pi05.errors import ConfigError, DataError, nearest

log = logging.getLogger("pi05")

STATE, ACTION, CAMERAS = "state", "action", ("base_camera", "hand_camera")
NOTHING = "none"
"""What a feature is that is not used."""
_FULL = {
    "observation.state": STATE,
    **{f"observation.images.{camera}": camera for camera in CAMERAS},
}
"""Names as a dataset of ours has them, which --map takes, too."""
_USUAL = {
    STATE: ("observation.state", "state", "observation.qpos", "qpos", "robot_state"),
    ACTION: ("action", "actions"),
    "base_camera": (
        *("observation.images.base_camera", "image", "observation.image", "observation.images.image", "base_camera"),
        *("observation.images.base", "base_image", "observation.images.top", "observation.images.front"),
    ),
    "hand_camera": (
        *("observation.images.hand_camera", "wrist_image", "observation.wrist_image", "observation.images.wrist_image"),
        *("hand_camera", "observation.images.hand", "observation.images.wrist", "hand_image", "wrist_camera"),
    ),
}
"""What recorders and converters call them; the first that is there counts."""
_ASSIGNMENT = re.compile(r"(?P<theirs>[^=\[\]]+)(\[(?P<begin>\d*):(?P<end>\d*)\])?=(?P<ours>[a-z_.]+)")


@dataclass(frozen=True)
class Keys:
    """What a folder calls ours.

    Attributes:
        state, action: Numbers that, side by side, are the state and the action.
        cameras: Feature of each camera there is.
    """

    state: tuple[Pick, ...]
    action: tuple[Pick, ...]
    cameras: dict[str, str]


def keys(folder: ForeignFolder, maps: Sequence[str]) -> Keys:
    """Return the features that are used.

    Args:
        folder: Where they are.
        maps: Each `theirs=ours`, of numbers also `theirs[0:8]=ours`; ours is state, action, base_camera, hand_camera or
            none. Several of one state or action are put side by side.

    Raises:
        ConfigError: A map names what is not there, or what it cannot be.
        DataError: The state or the action is not found.
    """
    said = [_parsed(folder, text) for text in maps]
    taken = {pick.feature for pick, _ in said}
    found = {ours: [pick for pick, name in said if name == ours] for ours in (STATE, ACTION, *CAMERAS)}
    for ours, picks in found.items():
        if not picks:
            usual = next((name for name in _USUAL[ours] if name in folder.features and name not in taken), None)
            picks += [Pick(usual)] if usual and folder.is_picture(usual) == (ours in CAMERAS) else []
    cameras = {camera: _one_picture(folder, camera, found[camera]) for camera in CAMERAS if found[camera]}
    for ours in (STATE, ACTION):
        _check_numbers(folder, ours, found[ours])
    for ours, picks in found.items():
        log.info("%s: %s", ours, " + ".join(map(str, picks)) or "none")
    if unused := [name for name in folder.cameras if name not in cameras.values()]:
        log.info("not used: %s", ", ".join(unused))
    return Keys(tuple(found[STATE]), tuple(found[ACTION]), cameras)


def _parsed(folder: ForeignFolder, text: str) -> tuple[Pick, str]:
    """Return the parts of one `theirs=ours`."""
    match = _ASSIGNMENT.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"--map {text!r} is not THEIRS=OURS; write it as --map wrist_image=hand_camera")
    ours = _FULL.get(match["ours"], match["ours"])
    known = (STATE, ACTION, *CAMERAS, NOTHING)
    if ours not in known:
        raise ConfigError(
            f"--map {text}: {ours!r} is none of ours{nearest(ours, known) or ';'} they are {', '.join(known)}"
        )
    theirs = match["theirs"]
    if theirs not in folder.features:
        there = ", ".join(folder.features)
        raise ConfigError(
            f"--map {text}: there is no feature {theirs!r}{nearest(theirs, folder.features)}; it has {there}"
        )
    return Pick(theirs, int(match["begin"] or 0), int(match["end"]) if match["end"] else None), ours


def _check_numbers(folder: ForeignFolder, ours: str, picks: Sequence[Pick]) -> None:
    """Raise DataError unless the state or the action is found, and of numbers."""
    if not picks:
        there = ", ".join(name for name in folder.features if not folder.is_picture(name))
        raise DataError(f"{folder.path} has no {ours} by a usual name; it has {there}; say which: --map FEATURE={ours}")
    if pictures := [pick.feature for pick in picks if folder.is_picture(pick.feature)]:
        raise ConfigError(f"--map {pictures[0]}={ours}: that is a picture, numbers are required")


def _one_picture(folder: ForeignFolder, camera: str, picks: Sequence[Pick]) -> str:
    """Return the one feature that a camera is."""
    if len(picks) > 1:
        raise ConfigError(f"{camera} is said to be {' and '.join(map(str, picks))}; one feature is a camera")
    if not folder.is_picture(picks[0].feature):
        kind = folder.features[picks[0].feature].get("dtype")
        raise ConfigError(f"--map {picks[0]}={camera}: that is {kind}, an image or a video is required")
    return picks[0].feature
