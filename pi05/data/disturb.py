"""Pushes a replay off its course: the arm is displaced now and then, and what it should do from there is shown.

A planner's demonstrations lie on one course, so a policy that has strayed by a centimetre is where no demonstration
has been. Here the executed joint targets are displaced for a moment and the recorded ones stay as planned: what
follows is a way back. Noise in the expert's actions, with the expert's intention as the label, is the idea of DART
(Laskey et al. 2017, arXiv 1703.09327). Knows no simulator.
"""

import numpy as np

_PUSH = (3, 9)
"""Control steps that a push lasts, least and one more than most."""
_REST = (10, 31)
"""Control steps between two pushes: the arm needs some eight of 50 ms to be back on its course."""
_JOINTS = 7


def displacements(seed: int, steps: int, size: float) -> np.ndarray:
    """Return what each executed joint target is off by, float32 (steps, 7) in rad.

    Pushes and rests follow each other; during a push each joint is off by one amount, drawn for it.

    Args:
        seed: Of the episode; the same displacements every time.
        steps: Control steps.
        size: Standard deviation of a push, in rad a joint.
    """
    random = np.random.Generator(np.random.Philox(key=seed))
    off = np.zeros((steps, _JOINTS), np.float32)
    step = int(random.integers(_REST[1]))
    while step < steps:
        length = int(random.integers(*_PUSH))
        off[step : step + length] = size * random.standard_normal(_JOINTS)
        step += length + int(random.integers(*_REST))
    return off
