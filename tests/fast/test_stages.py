"""Where an episode failed, told from flags and paths of a few steps."""

import numpy as np
import pytest

from pi05.evaluation.stages import failure
from pi05.results import FAILURES

STILL = np.zeros((4, 3))
MOVED = np.array([[0.0, 0, 0], [0.005, 0, 0], [0.02, 0, 0], [0.02, 0, 0]])


def course(**flags: str) -> list[dict[str, bool]]:
    """Return flags over time, each written as the string of its moments: `.` no, `x` yes."""
    names = {name: [mark == "x" for mark in marks] for name, marks in flags.items()}
    return [dict(zip(names, moment, strict=True)) for moment in zip(*names.values(), strict=True)]


def pick(grasped: str, placed: str, static: str) -> list[dict[str, bool]]:
    return course(is_grasped=grasped, is_obj_placed=placed, is_robot_static=static)


def stack(grasped: str, placed: str, static: str) -> list[dict[str, bool]]:
    return course(is_cubeA_grasped=grasped, is_cubeA_on_cubeB=placed, is_cubeA_static=static)


def place(grasped: str, placed: str, static: str) -> list[dict[str, bool]]:
    return course(is_obj_grasped=grasped, is_obj_on_bin=placed, is_obj_static=static)


@pytest.mark.parametrize(
    ("flags", "path", "stage"),
    [
        ([{}] * 4, STILL, "never touched"),
        ([{}] * 4, 0.45 * MOVED, "never touched"),
        ([{}] * 4, MOVED, "not placed"),
        (pick("....", "....", "xxxx"), STILL, "never grasped"),
        (pick("....", "....", "xxxx"), MOVED, "never grasped"),
        (pick("....", "..x.", "...."), MOVED, "never grasped"),
        (pick(".xx.", "....", "xxxx"), MOVED, "dropped"),
        (pick(".xxx", "....", "xxxx"), MOVED, "not placed"),
        (pick(".x.x", "....", "xxxx"), MOVED, "not placed"),
        (pick(".xxx", "..xx", "xx.."), MOVED, "not still"),
        (stack(".xxx", "..xx", "xxxx"), MOVED, "not released"),
        (stack(".xx.", "..xx", "xxx."), MOVED, "not still"),
        (stack(".xx.", "....", "xxxx"), MOVED, "dropped"),
        (place(".xxx", "...x", "xxxx"), MOVED, "not released"),
        (place(".x..", "..xx", "...."), MOVED, "not still"),
        (place("....", "....", "xxxx"), STILL, "never grasped"),
        (course(is_grasped="....", is_peg_aligned="...."), STILL, "never grasped"),
        (course(is_grasped=".xx.", is_peg_aligned="...."), MOVED, "dropped"),
        (course(is_grasped=".xxx", is_peg_aligned="...."), MOVED, "not placed"),
        (course(is_grasped=".xxx", is_peg_aligned="..x."), MOVED, "not inserted"),
    ],
)
def test_the_first_link_that_never_held_is_named(flags, path, stage) -> None:
    assert failure(flags, path) == stage
    assert stage in FAILURES
