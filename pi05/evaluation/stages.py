"""Where an episode failed: turns ManiSkill's flags over time and the object's path into one of `results.FAILURES`.

A success is a chain: grasp the object, bring it to its place, let go, be still; which links a task has shows in the
flags that ManiSkill gives for it. The failure is the first link that never held. Pushing and pulling have no flags, so
there the path decides.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Flags = Sequence[Mapping[str, bool]]

_GRASPED = ("is_grasped", "is_cubeA_grasped", "is_obj_grasped")
_PLACED = ("is_obj_placed", "is_cubeA_on_cubeB", "is_obj_on_bin", "is_peg_aligned")
_STILL = ("is_robot_static", "is_cubeA_static", "is_obj_static")
_MOVED = 0.01
"""m by which an object that was pushed has moved; it trembles by less than a mm when it is put down."""


def failure(flags: Flags, path: np.ndarray) -> str:
    """Return where an episode that was never solved failed.

    Args:
        flags: ManiSkill's flags after the reset and after each step.
        path: Positions of the object at the same moments, (steps + 1, 3) in m.
    """
    grasped, placed, still = (_course(flags, names) for names in (_GRASPED, _PLACED, _STILL))
    if grasped is None or placed is None:
        return "not placed" if np.linalg.norm(path - path[0], axis=1).max() > _MOVED else "never touched"
    if not grasped.any():
        return "never grasped"
    if not placed.any():
        return "not placed" if grasped[-1] else "dropped"
    if still is None:
        return "not inserted"
    return "not released" if _released_counts(flags) and grasped[placed].all() else "not still"


def _course(flags: Flags, names: Sequence[str]) -> np.ndarray | None:
    """Return bool (steps + 1,) of the one of these flags that the task has, None when it has none."""
    name = next((name for name in names if name in flags[0]), None)
    return None if name is None else np.array([moment[name] for moment in flags])


def _released_counts(flags: Flags) -> bool:
    """Return whether success asks for an open hand: where the object must be still, not where the robot must be."""
    return "is_robot_static" not in flags[0]
