"""Replays recordings in the environment that evaluates: turns actions into demonstrations, states and frames.

    python -m pi05.data.replay --task pushcube --convention JSON

makes one block for each line of JSON on stdin, {"plan": the planner's h5 file, "seeds": [...], "out": the block}, and
answers the block's path. With --source, one h5 file has the recordings of all blocks. An episode counts when its replay
succeeds.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pi05 import simulator, tasks
from pi05.config import Convention
from pi05.data.blocks import Origin, png, write_block
from pi05.data.dataset import Attempt, Demo
from pi05.data.disturb import displacements
from pi05.data.lines import serve
from pi05.data.recordings import Plan, Recording, Recordings, read_plan
from pi05.data.shades import Shades, of_episode, of_frame
from pi05.errors import DataError
from pi05.simulator import JointTargets, Simulator
from pi05.tasks import Task

log = logging.getLogger(__name__)

Convert = Callable[[Recording], Recording]


@dataclass(frozen=True)
class Replay:
    """What the main environment made of a recording.

    Attributes:
        demo: States, actions and frames.
        success: Whether the last step succeeded.
        exact: Whether every number of the physical state had the recorded bits at every step.
        difference: Largest absolute difference.
        disturbed: Whether it was pushed off its course.
    """

    demo: Demo
    success: bool
    exact: bool
    difference: float
    disturbed: bool


def replay(
    simulator: Simulator, recording: Recording, hold: int = 0, off: np.ndarray | None = None, look: bool = True
) -> Replay:
    """Step the recorded actions from the recorded seed; render before each, and compare the physics after each.

    Args:
        simulator: Of the recording's task.
        recording: Actions, seed and physics.
        hold: Steps that repeat the last action at the end.
        off: What each executed joint target is off by, float32 (T + hold, 7) in rad; the demonstration has the targets
            without it.
        look: Whether to render; without, the demonstration has no frames.
    """
    info = simulator.reset(recording.seed)
    actions = np.concatenate([recording.actions, np.repeat(recording.actions[-1:], hold, axis=0)])
    executed = actions.copy()
    if off is not None:
        executed[:, : off.shape[1]] += off
    states, physics = [], [simulator.physics()]
    cameras = simulator.convention.cameras if look else ()
    frames: dict[str, list[bytes]] = {name: [] for name in cameras}
    shades: dict[str, list[Shades]] = {name: [] for name in cameras}
    for action in executed:
        states.append(simulator.stored_state())
        for name, image in simulator.images().items() if look else ():
            frames[name].append(png(image))
            shades[name].append(of_frame(image))
        info = simulator.step(action)
        physics.append(simulator.physics())
    exact, difference = _compare(physics[: len(recording.actions) + 1], recording.physics)
    seen = {name: of_episode(by_frame) for name, by_frame in shades.items()}
    demo = Demo(recording.seed, np.stack(states), actions, frames, seen)
    return Replay(demo, info.success, exact, difference, off is not None)


def origin(task: Task, convention: Convention, source: str = "", hold: int = 0, disturb: float = 0.0) -> Origin:
    """Return what blocks that are made here and now are made under."""
    return Origin(
        task=task.name,
        convention=convention,
        renderer=simulator.renderer(convention.cameras),
        versions=simulator.versions(),
        source=source,
        hold=hold,
        disturb=disturb,
    )


def judge(
    simulator: Simulator,
    attempt: Attempt,
    recording: Recording | None,
    convert: Convert | None = None,
    hold: int = 0,
    disturb: float = 0.0,
) -> tuple[Attempt, Demo | None]:
    """Replay an attempt's recording; return what became of it, and its demonstration when the replay succeeded.

    Args:
        simulator: Of the task.
        attempt: What the recorder says.
        recording: What it recorded, if it succeeded.
        convert: Makes joint targets of a recording whose control mode is another one.
        hold, disturb: Of `DemosConfig`. With `disturb` it is replayed once more, pushed on the way, and that is the
            demonstration if it succeeds, too; only what may be the demonstration is rendered.
    """
    if recording is None:
        return attempt, None
    flaw = _flaw(recording, simulator.task.eval_limit)
    if not flaw and convert and recording.mode != simulator.convention.control_mode:
        try:
            recording = convert(recording)
        except ValueError as error:
            flaw = str(error)
    attempt = attempt.model_copy(update={"steps": len(recording.actions)})  # some recorders count one more
    if flaw:
        return attempt.model_copy(update={"success": False, "reason": flaw}), None
    begin = time.process_time()
    replayed, kept = _replays(simulator, recording, hold, disturb)
    cost = {"replay_seconds": round(time.process_time() - begin, 3)}
    reason = "" if replayed.success else "the replay did not succeed"
    if not np.isfinite(kept.demo.states).all():
        reason = "its states are not finite"
    found = {"exact": replayed.exact, "difference": replayed.difference, "disturbed": kept.disturbed}
    found |= {"success": not reason, "reason": reason}
    log.info("seed %d: %s, %.2f s", attempt.seed, reason or "replayed", cost["replay_seconds"])
    return attempt.model_copy(update=cost | found), None if reason else kept.demo


def _replays(simulator: Simulator, recording: Recording, hold: int, disturb: float) -> tuple[Replay, Replay]:
    """Return the undisturbed replay, and that whose demonstration is kept, if the first succeeded."""
    straight = replay(simulator, recording, hold, look=not disturb)
    if not disturb or not straight.success:
        return straight, straight
    off = displacements(recording.seed, len(recording.actions) + hold, disturb)
    pushed = replay(simulator, recording, hold, off)
    return straight, pushed if pushed.success else replay(simulator, recording, hold)


def _flaw(recording: Recording, limit: int) -> str:
    """Return why a recording cannot be a demonstration, before anything is replayed, or ""."""
    if len(recording.actions) < 2:
        return f"it has {len(recording.actions)} steps, two are required"
    if len(recording.actions) > limit:
        return f"it is longer than an evaluation allows ({limit} steps)"
    return "" if np.isfinite(recording.actions).all() else "its actions are not finite"


def _compare(physics: list[dict[str, np.ndarray]], recorded: dict[str, np.ndarray]) -> tuple[bool, float]:
    """Return whether two courses have the same bits, and their largest difference in what both have."""
    exact, difference = physics[0].keys() == recorded.keys(), 0.0
    for name in physics[0].keys() & recorded.keys():
        ours, theirs = np.stack([state[name] for state in physics]), recorded[name]
        exact &= ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
        if ours.shape == theirs.shape:
            difference = max(difference, float(np.abs(ours - theirs).max(initial=0.0)))
    return exact, difference


class _Replayer:
    """Makes blocks in one environment.

    Args:
        task, convention: Of the blocks.
        source: Recordings of others to replay; without it, those that the planner has just written.
    """

    def __init__(
        self, task: Task, convention: Convention, source: Recordings | None, hold: int, disturb: float
    ) -> None:
        self._source = source
        self._origin = origin(task, convention, source.identity if source else "", hold, disturb)
        self._simulator = Simulator(task, convention)
        self._converters: dict[str, JointTargets] = {}

    def block(self, line: str) -> str:
        """Make the block that a line asks for."""
        asked = json.loads(line)
        plan = self._source.plan(asked["seeds"]) if self._source else _planned(Path(asked["plan"]), asked["seeds"])
        made = self._origin
        results = (
            judge(self._simulator, one, plan.recordings.get(one.seed), self._convert, made.hold, made.disturb)
            for one in plan.attempts
        )
        write_block(Path(asked["out"]), made, results)
        return asked["out"]

    def _convert(self, recording: Recording) -> Recording:
        """Return a recording of another control mode as joint targets; its environment is kept for the next."""
        if recording.mode not in self._converters:
            convention = self._simulator.convention
            self._converters[recording.mode] = JointTargets(self._simulator.task, convention, recording.mode)
        actions = self._converters[recording.mode].of(recording.seed, recording.actions)
        return replace(recording, actions=actions, mode="pd_joint_pos")


def _planned(path: Path, seeds: list[int]) -> Plan:
    """Return what the planner has written; raise DataError when it is not whole."""
    plan = read_plan(path, seeds)
    if plan is None:
        raise DataError(f"{path} is damaged directly after it was written; check the disk and run again")
    return plan


def main(arguments: list[str] | None = None) -> None:
    """Make the blocks that stdin asks for."""
    parser = argparse.ArgumentParser(description="Replay recordings in the environment that evaluates.")
    parser.add_argument("--task", required=True, choices=tasks.TASKS)
    parser.add_argument("--convention", required=True, type=Convention.model_validate_json)
    parser.add_argument("--source", type=Path, help="ManiSkill's h5 file, when others recorded what is replayed")
    parser.add_argument("--hold", type=int, default=0, help="steps that repeat the last action at the end")
    parser.add_argument("--disturb", type=float, default=0.0, help="size of pushes, in rad a joint")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    task = tasks.find(given.task)

    def begin() -> Callable[[str], str]:
        source = Recordings(given.source, task, given.convention) if given.source else None
        return _Replayer(task, given.convention, source, given.hold, given.disturb).block

    sys.exit(serve(begin))


if __name__ == "__main__":
    main()
