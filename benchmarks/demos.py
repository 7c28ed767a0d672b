"""Demonstrations of all six tasks: yield, seconds a kept one, and the oracle, beside the figures of the specification.

The real jobs run, as their processes: first without cameras (planning and replay), then, of fewer demonstrations, with
both cameras at 224 pixels, then the evaluation of the oracle, which must solve every one. Seconds to plan and to replay
are a kept demonstration's, as one core computes them (so other work on the machine does not count); `seeing_computed`
is what all processes of the job computed, imports included. Renders are timed in this process, for three sizes.

    scripts/bench demos [--tasks pushcube pullcube ...] [--count 20] [--seeing 5] [--store FOLDER]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pi05 import simulator, tasks
from pi05.config import Convention, DemosConfig, DemosJob, EvalConfig, EvalJob
from pi05.data.dataset import META, DatasetMeta
from pi05.results import Result
from pi05.simulator import Simulator
from pi05.storage import FileStorage, RunPaths

BLIND = Convention(cameras=(), state="joints_and_poses")
SEEING = Convention()
PLANNER = Path(__file__).parents[1] / ".venv-planner/bin/python"
PUBLISHED = {
    "pickcube": ("25 of 25", 0.5),
    "stackcube": ("25 of 25", 1.0),
    "pushcube": ("25 of 26", 0.3),
    "pullcube": ("25 of 25", 0.5),
    "placesphere": ("25 of 49", 1.8),
    "peginsertionside": ("25 of 35", 5.5),
}
"""What the specification measured: yield, and seconds to plan a demonstration on one core."""
SIZES, RENDERS = (224, 112, 64), 10


@dataclass(frozen=True)
class Made:
    """What a demos job made and took: its meta data, seconds on the clock and computed, and bytes."""

    meta: DatasetMeta
    wall: float
    computed: float
    size: int


def run(job: DemosJob | EvalJob) -> tuple[float, float]:
    """Run a job; return seconds on the clock, and computed by all its processes."""
    program = {"demos": "demos", "eval": "evaluate"}[job.kind]
    file = FileStorage(job.storage).root / f"{job.run}.json"
    file.write_text(job.model_dump_json())
    before, begin = _computed(), time.perf_counter()
    subprocess.run([sys.executable, "-m", f"pi05.jobs.{program}", str(file)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin, _computed() - before


def make(task: str, convention: Convention, count: int, root: Path) -> Made:
    """Run a demos job; a dataset that is there already is removed first."""
    name = f"{'seeing' if convention.cameras else 'blind'}-{count}"
    job = DemosJob(
        run=f"demos-{task}-{name}",
        task=task,
        storage=root.as_uri(),
        convention=convention,
        dataset=f"datasets/{task}/{name}",
        demos=DemosConfig(count=count, block=4 if convention.cameras else 10),
        planner_python=str(PLANNER),
    )
    storage = FileStorage(job.storage)
    storage.delete(job.dataset)
    wall, computed = run(job)
    folder = storage.open(job.dataset)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Made(DatasetMeta.model_validate_json((folder / META).read_bytes()), wall, computed, size)


def oracle(task: str, count: int, root: Path) -> int:
    """Return how many of the demonstrations the evaluation's oracle solves."""
    job = EvalJob(
        run=f"eval-{task}-oracle",
        task=task,
        storage=root.as_uri(),
        convention=BLIND,
        dataset=f"datasets/{task}/blind-{count}",
        train_run="none",
        eval=EvalConfig(policy="oracle", episodes=count, videos=0),
    )
    storage = FileStorage(job.storage)
    storage.delete(RunPaths(job.run).root)
    run(job)
    result = Result.model_validate_json(storage.read(f"{RunPaths(job.run).results}/0.json"))
    return sum(episode.success_once for episode in result.episodes)


def render_seconds(task: str, size: int) -> float:
    """Return the computed seconds of a render of both cameras, the median."""
    environment = Simulator(tasks.find(task), Convention(image_size=size))
    environment.reset(0)
    environment.images()
    taken = []
    for _ in range(RENDERS):
        begin = time.process_time()
        environment.images()
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def measure(task: str, count: int, seeing: int, root: Path) -> dict[str, object]:
    """Return a task's row."""
    blind, seen = make(task, BLIND, count, root), make(task, SEEING, seeing, root)
    frames = sum(attempt.steps for attempt in seen.meta.attempts if attempt.success)
    solved = oracle(task, count, root)
    return {
        "task": task,
        "kept": f"{len(blind.meta.seeds)} of {len(blind.meta.attempts)}",
        "published": PUBLISHED[task][0],
        "plan_seconds": round(blind.meta.solver_seconds, 2),
        "published_seconds": PUBLISHED[task][1],
        "replay_seconds": round(blind.meta.replay_seconds, 2),
        "seeing_kept": f"{len(seen.meta.seeds)} of {len(seen.meta.attempts)}",
        "seeing_replay_seconds": round(seen.meta.replay_seconds, 1),
        "seeing_wall": round(seen.wall, 1),
        "seeing_computed": round(seen.computed, 1),
        "frame_ms": round(1000 * seen.meta.replay_seconds * len(seen.meta.seeds) / frames),
        "megabytes": round(seen.size / 1e6, 1),
        "kilobytes_a_frame": round(seen.size / frames / 1e3),
        "render_ms": {size: round(1000 * render_seconds(task, size)) for size in SIZES},
        "inexact": blind.meta.inexact + seen.meta.inexact,
        "oracle": f"{solved} of {count}",
        "whole": solved == count,
    }


def main(arguments: Sequence[str]) -> None:
    """Measure the tasks one after the other and print a row each."""
    parser = argparse.ArgumentParser(prog="scripts/bench demos")
    parser.add_argument("--tasks", nargs="+", choices=list(tasks.TASKS), default=list(tasks.TASKS))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeing", type=int, default=5)
    parser.add_argument("--store", type=Path, help="keep the datasets here")
    given = parser.parse_args(arguments)
    print(f"renderer {simulator.renderer(SEEING.cameras)}")
    with tempfile.TemporaryDirectory() as temporary:
        root = (given.store or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        found = []
        for task in given.tasks:
            found.append(measure(task, given.count, given.seeing, root))
            print(json.dumps(found[-1]), flush=True)
    print(json.dumps({"name": "demos", "whole": all(row["whole"] for row in found), "tasks": len(found)}))


def _computed() -> float:
    """Return the seconds that ended processes of ours, and theirs, have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
