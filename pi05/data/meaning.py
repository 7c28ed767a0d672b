"""Whether the numbers and pictures of others mean what ours do: order of joints, control mode, gripper, visible goal.

A LeRobot folder says none of this for certain, so names decide where there are any, and the numbers themselves are
asked: a joint target is near the joint it moves to. What does not fit is refused with what it looks like instead.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pi05.config import ACTION_NAMES
from pi05.errors import DataError
from pi05.simulator import JOINT_NAMES, STORED_JOINTS, stored_names
from pi05.tasks import Task

DELTA = 0.1
"""rad, what an action of 1 moves a joint by in ManiSkill's pd_joint_delta_pos and pd_joint_target_delta_pos (Panda)."""
CONTROL_MODES = ("pd_joint_pos", "pd_joint_delta_pos", "pd_joint_target_delta_pos")
"""Whose actions are joint targets, or become some by arithmetic."""
_ARM = 7
_NEAR, _CLEARLY = 0.1, 0.01
"""rad between a target and its joint, the median: demonstrations of the planner have 0.001 to 0.014, and targets of one
joint may be as near to another one; one that is not, and three times nearer to another, is that other's."""
_OPEN = 0.045
"""m, more than a finger of the Panda can open."""
_GREEN = 1.5
"""How much more green than red or blue a pixel of PickCube's goal has at least; nothing else in the scene is so."""
_SHOWN = 0.2
"""Share of episodes whose first picture has it at least: of ours three in four do, the arm is before the others."""


@dataclass(frozen=True)
class Layout:
    """Which columns are what.

    Attributes:
        arm: Of the 7 joints, in order.
        fingers: Of the gripper (an action), or of one finger or both (a state).
        others: Further columns by our names: the poses of the task.
    """

    arm: tuple[int, ...]
    fingers: tuple[int, ...]
    others: tuple[tuple[str, int], ...] = ()

    @property
    def columns(self) -> list[int]:
        """All columns, in our order."""
        return [*self.arm, *self.fingers, *(column for _, column in self.others)]


def action_layout(names: Sequence[str], width: int) -> Layout:
    """Return which columns of an action are the joints and the gripper, by name, else by place.

    Raises:
        DataError: It is not of 8 numbers, or the names say another thing.
    """
    if width != len(ACTION_NAMES):
        raise DataError(
            f"an action has {width} numbers{_named(names)}, {len(ACTION_NAMES)} are required: 7 absolute joint "
            "targets in rad and the gripper (pd_joint_pos). Moves of the hand (7 numbers: pd_ee_delta_pose) cannot be "
            "converted here; ManiSkill's recordings of them can: import the h5 file"
        )
    layout = _layout(names) if names else Layout(tuple(range(_ARM)), (_ARM,))
    if layout is None or len(layout.fingers) != 1:
        raise DataError(
            f"the actions are named {', '.join(names)}; seven numbered joints and a gripper are required. If they are "
            "that, in this order, say so with --map FEATURE[0:8]=action"
        )
    return layout


def state_layout(names: Sequence[str], width: int, task: Task) -> Layout:
    """Return which columns of a state are the joints, the fingers and the task's poses, by name, else by place.

    Raises:
        DataError: It is not of 8 or 9 numbers without a name each, or no names are those of joints.
    """
    poses = [name for name in stored_names(task) if name not in STORED_JOINTS]
    if set(JOINT_NAMES) <= set(names):
        poses = poses if set(poses) <= set(names) else []  # those of another task say nothing here
        joints = [name for name in STORED_JOINTS if name in names]
        arm, fingers = joints[:_ARM], joints[_ARM:]
        places = {name: list(names).index(name) for name in [*joints, *poses]}
        return Layout(
            tuple(places[name] for name in arm),
            tuple(places[name] for name in fingers),
            tuple((name, places[name]) for name in poses),
        )
    layout = _layout(names) if names else None
    if layout is None and width in (_ARM + 1, _ARM + 2):
        if names:
            raise DataError(
                f"the numbers of a state are named {', '.join(names)}; seven numbered joints and one or two fingers "
                "are required. If they are that, in this order, say so with --map FEATURE[0:9]=state"
            )
        layout = Layout(tuple(range(_ARM)), tuple(range(_ARM, width)))
    if layout is None:
        raise DataError(
            f"a state has {width} numbers{_named(names)}, required are 7 joints in rad and one or two fingers in m; "
            "say which they are, as in --map FEATURE[0:9]=state"
        )
    return layout


def _layout(names: Sequence[str]) -> Layout | None:
    """Return where seven joints and their gripper or fingers are, by the numbers in their names, or None."""
    fingers = [column for column, name in enumerate(names) if re.search("finger|gripper", name.lower())]
    numbers = {
        column: int(found[1])
        for column, name in enumerate(names)
        if column not in fingers and (found := re.search(r"(\d+)\D*$", name))
    }
    arm = sorted(numbers, key=lambda column: numbers[column])
    if not fingers and len(arm) in (_ARM + 1, _ARM + 2):  # ManiSkill's converter numbers all: joint_0 ... joint_8
        arm, fingers = arm[:_ARM], arm[_ARM:]
    ordered = [numbers[column] for column in arm]
    consecutive = len(arm) == _ARM and ordered == list(range(ordered[0], ordered[0] + _ARM))
    return Layout(tuple(arm), tuple(fingers)) if consecutive and 1 <= len(fingers) <= 2 else None


def targets(actions: np.ndarray, states: np.ndarray, starts: np.ndarray, mode: str) -> np.ndarray:
    """Return actions of a control mode as absolute joint targets (N, 8), as ManiSkill's controllers compute them.

    Args:
        actions: (N, 8), joints and gripper.
        states: (N, 8 or more), joints first.
        starts: First row of each episode, and N.
        mode: One of CONTROL_MODES.
    """
    if mode == "pd_joint_pos":
        return actions
    moves = DELTA * np.clip(actions[:, :_ARM], -1, 1)
    found = actions.copy()
    found[:, :_ARM] = states[:, :_ARM] + moves
    if mode == "pd_joint_target_delta_pos":  # from where the last target was, not from where the joint is
        for begin, end in pairwise(starts):
            found[begin:end, :_ARM] = states[begin, :_ARM] + np.cumsum(moves[begin:end], axis=0)
    return found


def doubts(states: np.ndarray, actions: np.ndarray, starts: np.ndarray) -> list[str]:
    """Return why states and actions, arranged as ours, cannot be joints and absolute joint targets; empty: they can be.

    Args:
        states: (N, 8 or 9), 7 joints and fingers.
        actions: (N, 8), absolute.
        starts: First row of each episode, and N.
    """
    inner = np.setdiff1d(np.arange(len(states) - 1), starts[1:-1] - 1)
    now, then, wanted = states[inner, :_ARM], states[inner + 1, :_ARM], actions[inner, :_ARM]
    found = _not_absolute(now, then, wanted)
    return [*([found] if found else []), *_gripper_doubts(states[:, _ARM], actions[:, _ARM])]


def _not_absolute(now: np.ndarray, then: np.ndarray, wanted: np.ndarray) -> str:
    """Return what joint targets look like that are not near the joints, or ""."""
    if not np.ptp(now, axis=0).any():
        return "the joints of the state never move"
    cost = np.minimum(_distances(wanted, now), _distances(wanted, then))
    gaps, least, best = np.diagonal(cost), cost.min(axis=1), cost.argmin(axis=1)
    nearer_another = bool(((gaps > _CLEARLY) & (gaps > 3 * least)).any()) and len(set(best)) == _ARM
    if gaps.max() <= _NEAR and not nearer_another:
        return ""
    far = ", ".join(f"joint_{joint + 1} {gaps[joint]:.2f}" for joint in np.flatnonzero(gaps > _NEAR))
    if nearer_another and least.max() <= _NEAR:
        as_found = ", ".join(f"joint_{joint + 1}" for joint in best)
        return (
            f"the joints of an action are in another order than those of a state: by their values they are {as_found}"
        )
    said = f"actions are not absolute joint targets in rad: from the joints they are away, as a median, {far}"
    if np.minimum(_distances(np.deg2rad(wanted), then), 9).diagonal().max() <= _NEAR:
        return f"{said}; they would fit as degrees"
    moves = then - now
    varied = (moves.std(axis=0) > 1e-6) & (wanted.std(axis=0) > 1e-6)
    alike = [np.corrcoef(moves[:, joint], wanted[:, joint])[0, 1] for joint in np.flatnonzero(varied)]
    if alike and np.mean(alike) > 0.4:
        return (
            f"{said}; they are like the joints' changes, so the control mode is another one (pd_joint_delta_pos, "
            "pd_joint_target_delta_pos or pd_joint_vel): of the first two say --control-mode, and they are converted"
        )
    return said


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the median distance of each column of one (N, J) from each of another, (J, J)."""
    return np.stack([np.median(np.abs(other - column[:, None]), axis=0) for column in one.T])


def _gripper_doubts(opening: np.ndarray, gripper: np.ndarray) -> list[str]:
    """Return why a finger's opening is not in m, or a gripper's action not from -1, closed, to 1, open."""
    found: list[str] = []
    if opening.min() < -0.01 or opening.max() > _OPEN:
        found.append(f"a finger opens from {opening.min():.3g} to {opening.max():.3g}, 0 to 0.04 m is required")
    low, high = float(gripper.min()), float(gripper.max())
    if low < -1.01 or high > 1.01 or (low >= -0.01 and low < 0.9):
        found.append(f"the gripper's actions are from {low:.3g} to {high:.3g}, -1 (closed) to 1 (open) is required")
    elif (gripper > 0).any() and (gripper < 0).any() and opening[gripper > 0].mean() < opening[gripper < 0].mean():
        found.append("the gripper closes where its action is positive, 1 must open it")
    return found


def goal_shown(pictures: Sequence[np.ndarray]) -> bool:
    """Return whether PickCube's goal, a green ball, is in pictures uint8 (height, width, 3): in enough of them."""
    return bool(pictures) and float(np.mean([_green(picture) for picture in pictures])) > _SHOWN


def _green(picture: np.ndarray) -> bool:
    red, green, blue = np.moveaxis(picture.astype(np.int32), -1, 0)
    seen = (green > 60) & (green > _GREEN * red) & (green > _GREEN * blue)
    return bool(seen.sum() >= max(picture.shape[0] * picture.shape[1] // 10_000, 2))


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
