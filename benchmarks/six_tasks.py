"""Policies for the six tasks on this machine: success over training seeds, kept with what makes each again.

One `pi05ctl submit pipeline` a task and training seed; seeds share their demonstrations. `--together 2` runs two at
once, each on cores of its own. docs/results/TASK-PRESET-seedK keeps of each the jobs of training and evaluation, every
episode (without its path), and what each stage took on how many cores. The table is made of what is kept alone:
`--table` prints it and runs nothing. What a store holds already is not done again.

    scripts/bench six_tasks [--tasks stackcube ...] [--preset tiny] [--seeds 0 1 2] [--store FOLDER] [--together 2]
        [--table]
"""

import argparse
import json
import os
import queue
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi05.events import parse
from pi05.results import wilson
from pi05.storage import FileStorage, RunPaths
from pi05.tasks import TASKS
from pi05ctl.views.published import OTHERS

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs/results"
_EPISODE = ("seed", "success_once", "success_at_end", "first_success_step", "failure", "steps", "distance")
"""What is kept of an episode; its path would be some MB a policy."""


@dataclass(frozen=True)
class Wanted:
    """One pipeline.

    Attributes:
        task, preset, seed: Of the training.
        episodes: Of the evaluation.
        store: Where its runs lie.
    """

    task: str
    preset: str
    seed: int
    episodes: int
    store: Path


@dataclass(frozen=True)
class Kept:
    """One policy's evaluation as it is kept.

    Attributes:
        task, preset, seed: Of the training.
        solved, episodes: Once, of all.
    """

    task: str
    preset: str
    seed: int
    solved: int
    episodes: int


def make_all(wanted: Sequence[Wanted], together: int) -> None:
    """Make all, several at once, each on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0))
    free: queue.Queue[list[int]] = queue.Queue()
    for number in range(together):
        free.put(cores[number::together])

    def one(which: Wanted) -> None:
        mine = free.get()
        try:
            make(which, mine)
        finally:
            free.put(mine)

    with ThreadPoolExecutor(together) as pool:
        list(pool.map(one, wanted))


def make(wanted: Wanted, cores: Sequence[int]) -> None:
    """Run one pipeline to its end on some cores and keep what it found."""
    line = [sys.executable, "-m", "pi05ctl", "submit", "pipeline", wanted.task, "--target", "local"]
    line += ["--preset", wanted.preset, f"--set=train.seed={wanted.seed}", f"--set=eval.episodes={wanted.episodes}"]
    pinned = ["taskset", "--cpu-list", ",".join(map(str, cores)), *line, "--follow"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(pinned, cwd=wanted.store, env=environ, check=False, capture_output=True, text=True)
    pipeline = re.search(r"pipeline-\S+", done.stdout)
    if done.returncode or pipeline is None:
        raise SystemExit(f"six_tasks: {shlex.join(line)} ended with {done.returncode}: {done.stderr}")
    folder = KEPT / f"{wanted.task}-{wanted.preset}-seed{wanted.seed}"
    keep(FileStorage(wanted.store.as_uri()), pipeline.group(), folder, len(cores))
    print(f"{folder.name}: {_cell([_read(folder)])}", flush=True)


def keep(storage: FileStorage, pipeline: str, folder: Path, cores: int) -> None:
    """Write what is kept of a pipeline's runs."""
    told = json.loads(storage.read(RunPaths(pipeline).job))
    runs = {stage["kind"]: stage["run"] for stage in told["stages"]}
    result = json.loads(storage.read(f"{RunPaths(runs['eval']).results}/0.json"))
    result["episodes"] = [{name: one[name] for name in _EPISODE} for one in result["episodes"]]
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ("train", "eval"):
        _write(folder / f"{stage}.json", json.loads(storage.read(RunPaths(runs[stage]).job)) | {"storage": ""})
    _write(folder / "result.json", result)
    minutes = {stage: _minutes(storage, run) for stage, run in runs.items()}
    _write(folder / "time.json", {"cores": cores, "minutes": minutes})


def _minutes(storage: FileStorage, run: str) -> float:
    """Return how long a run took from its first word to its last."""
    lines = storage.read(RunPaths(run).log).decode().splitlines()
    times = [event.time for line in lines if (event := parse(line))]
    return round((times[-1] - times[0]) / 60, 1)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(folder: Path = KEPT) -> list[Kept]:
    """Return all that is kept, in the order of tasks, presets and seeds."""
    found = [_read(path) for path in folder.glob("*-*-seed*")]
    order = list(TASKS)
    return sorted(found, key=lambda one: (order.index(one.task), one.preset, one.seed))


def _read(folder: Path) -> Kept:
    task, preset, seed = folder.name.split("-")
    episodes = json.loads((folder / "result.json").read_text())["episodes"]
    solved = sum(episode["success_once"] for episode in episodes)
    return Kept(task, preset, int(seed.removeprefix("seed")), solved, len(episodes))


def table(kept: list[Kept]) -> list[str]:
    """Return the lines of a Markdown table, one a task: each preset's seeds and their mean, beside published rates."""
    presets = sorted({one.preset for one in kept}, key=["tiny", "micro"].index)
    columns = ["task", *presets, *(anchor.short for anchor in OTHERS)]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for task in TASKS:
        cells = [_cell([one for one in kept if (one.task, one.preset) == (task, preset)]) for preset in presets]
        cells += [f"{anchor.rates[task]:g}" if task in anchor.rates else "" for anchor in OTHERS]
        lines.append("| " + " | ".join([task, *cells]) + " |")
    return lines


def _cell(seeds: list[Kept]) -> str:
    """Return `87: 85 [77, 91], 89 [81, 94]`: the mean, and each training seed with its interval."""
    if not seeds:
        return "not measured"
    rates = [100 * one.solved / one.episodes for one in seeds]
    bounds = [[round(100 * end) for end in wilson(one.solved, one.episodes)] for one in seeds]
    each = ", ".join(f"{rate:.0f} {bound}" for rate, bound in zip(rates, bounds, strict=True))
    return f"**{statistics.mean(rates):.0f}**: {each}"


def main() -> None:
    """Make what is asked for and print the table of all that is kept."""
    parser = argparse.ArgumentParser(description="Policies for the six tasks, over training seeds.")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--preset", choices=("tiny", "micro"), default="tiny")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--store", type=Path, help="where the runs lie; default: a folder that is removed")
    parser.add_argument("--together", type=int, default=1, help="pipelines at once")
    parser.add_argument("--table", action="store_true", help="only print what is kept")
    given = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        store = (given.store or Path(scratch)).resolve()
        store.mkdir(parents=True, exist_ok=True)
        settings = f'storage = "{store.as_uri()}"\njobs_at_once = {given.together}\n'
        (store / "pi05.toml").write_text(settings)
        wanted = [Wanted(t, given.preset, s, given.episodes, store) for s in given.seeds for t in given.tasks]
        make_all([] if given.table else wanted, given.together)
    print("\n".join(table(read())))
    print(json.dumps({"name": "six_tasks", "seconds": round(time.perf_counter() - begin)}))


if __name__ == "__main__":
    main()
