"""Plans demonstrations with ManiSkill's motion-planning solvers: turns a block of seeds into ManiSkill's h5 and json.

Runs in the planner's own environment (mplib 0.1.1 crashes with numpy 2), so nothing else imports this module:

    python -m pi05.data.planner --task pushcube --first-seed 0 --seeds 20 --out block.h5

Without --first-seed it plans one block for each line `FIRST_SEED SEEDS OUT` on stdin and answers `OUT` on stdout when
that block is complete, so that ManiSkill is imported once (7 s) for many blocks. Everything else goes to stderr.

`block.h5` and `block.json` are what ManiSkill's RecordEpisode writes, environment states included, and hold the
successful episodes. The json also lists every attempt under `attempts`. It is renamed into place last: a block
exists when its json does. A seed's plan does not depend on the seeds before it.
"""

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pi05 import simulator, tasks
from pi05.config import Convention
from pi05.data.lines import serve

log = logging.getLogger(__name__)

_SOLVERS = {
    "pickcube": "solvePickCube",
    "stackcube": "solveStackCube",
    "pushcube": "solvePushCube",
    "pullcube": "solvePullCube",
    "placesphere": "solvePlaceSphere",
    "peginsertionside": "solvePegInsertionSide",
}
_SOURCE = "ManiSkill's motion-planning solver, planned by pi05.data.planner"


@dataclass(frozen=True)
class Planned:
    """What became of one seed: `steps` recorded, `seconds` of one core that planning took, why it failed or ""."""

    seed: int
    success: bool
    steps: int
    seconds: float
    reason: str


class Planner:
    """Plans seed after seed in one environment.

    Args:
        task: Name of the task.
        robot: ManiSkill robot uid.
    """

    def __init__(self, task: str, robot: str) -> None:
        convention = Convention(robot=robot, cameras=(), state="joints_and_poses")
        self._env = simulator.make(tasks.find(task), convention)
        self._solve = _solver(task)

    def block(self, seeds: range, out: Path) -> list[Planned]:
        """Plan `seeds` and write `out` (.h5) and its .json, both complete or neither."""
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.stem}."))
        try:
            recorder = _recorder(self._env, folder)
            with simulator.inert_materials():
                attempts = [self._attempt(recorder, seed) for seed in seeds]
            _close(recorder)
            _publish(folder, out, attempts)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return attempts

    def _attempt(self, recorder: Any, seed: int) -> Planned:
        """Plan one seed; whatever the solver raises is that seed's failure."""
        _seed_libraries(seed)
        begin = time.process_time()
        steps, reason = 0, ""
        try:
            last = self._solve(recorder, seed=seed)
            steps = int(recorder.unwrapped.elapsed_steps[0])
            reason = _failure(last)
        except Exception as error:  # solvers raise whatever their libraries do
            reason = f"{type(error).__name__}: {error}"
        if not reason:
            recorder.flush_trajectory()  # else the next reset, which reconfigures, drops what was recorded
        attempt = Planned(seed, not reason, steps, round(time.process_time() - begin, 3), reason)
        log.info("seed %d: %s, %d steps, %.2f s", seed, reason or "planned", steps, attempt.seconds)
        return attempt


def _solver(task: str) -> Callable[..., Any]:
    """Return ManiSkill's solver; imports mplib, which only this environment has."""
    from mani_skill.examples.motionplanning.panda import solutions

    return getattr(solutions, _SOLVERS[task])


def _seed_libraries(seed: int) -> None:
    """Seed the global generators that a solver's libraries may draw from, so that a plan depends on its seed alone."""
    random.seed(seed)
    np.random.seed(seed)


def _failure(last: Any) -> str:
    """Return why a solver's result is no demonstration, "" when it is one; `last` is its last step, or -1."""
    if isinstance(last, int):
        return "no plan found"
    return "" if bool(last[-1]["success"]) else "the plan was executed without success"


def _recorder(env: Any, folder: Path) -> Any:
    """Return `env` wrapped so that flush_trajectory() writes the episode."""
    from mani_skill.utils.wrappers.record import RecordEpisode

    return RecordEpisode(
        env,
        str(folder),
        trajectory_name="block",
        save_video=False,
        save_on_reset=False,
        record_reward=False,
        source_type="motionplanning",
        source_desc=_SOURCE,
    )


def _close(recorder: Any) -> None:
    """Finish the recorder's files without closing the environment, which serves the next block."""
    recorder.env = _Kept(recorder.env)
    recorder.close()


class _Kept:
    """An environment whose close does nothing."""

    def __init__(self, env: Any) -> None:
        self._env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def close(self) -> None:
        pass


def _publish(folder: Path, out: Path, attempts: list[Planned]) -> None:
    """Add the attempts to the json and rename both files into place, the json last."""
    recorded = folder / "block.json"
    content = json.loads(recorded.read_bytes()) if recorded.exists() else {"episodes": []}
    content["attempts"] = [asdict(attempt) for attempt in attempts]
    recorded.write_text(json.dumps(content, indent=1))
    for name in ("block.h5", "block.json"):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    (folder / "block.h5").replace(out)
    recorded.replace(out.with_suffix(".json"))


def main(arguments: list[str] | None = None) -> None:
    """Plan one block, or the blocks that stdin asks for."""
    parser = argparse.ArgumentParser(description="Plan demonstrations with ManiSkill's motion-planning solvers.")
    parser.add_argument("--task", required=True, choices=tasks.TASKS)
    parser.add_argument("--robot", default="panda_wristcam", choices=simulator.ROBOTS)
    parser.add_argument("--first-seed", type=int, help="without it, blocks are read from stdin")
    parser.add_argument("--seeds", type=int, default=20, help="how many consecutive seeds")
    parser.add_argument("--out", type=Path, default=Path("block.h5"))
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")

    def begin() -> Callable[[str], str]:
        planner = Planner(given.task, given.robot)

        def plan(line: str) -> str:
            first, count, out = line.split(" ", 2)
            planner.block(range(int(first), int(first) + int(count)), Path(out))
            return out

        return plan

    if given.first_seed is not None:
        begin()(f"{given.first_seed} {given.seeds} {given.out}")
    else:
        sys.exit(serve(begin))


if __name__ == "__main__":
    main()
