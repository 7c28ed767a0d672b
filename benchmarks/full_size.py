"""The full preset at its full size, here: random weights to a bucket, opened, asked; LoRA saved and resumed.

What is shown is that it fits and that it works, stage by stage, each in a process of its own whose peak memory is
known. Nothing of it is fast on a CPU, and the weights know nothing.

    scripts/bench full_size

    demos     two demonstrations with cameras, by the real job
    draw      3.35 B random weights in the released form
    push      `pi05ctl weights push` to an emulator of GCS
    verify    `pi05ctl weights verify`
    opened    fetched, verified, and in bfloat16 as a policy holds them
    saved     the state of preset lora on those weights, with moments drawn at random, written as a checkpoint is
    resumed   that checkpoint opened as a training that goes on does; every array compared with what was written
    trained   the weights as a checkpoint of a training of the full preset
    evaluate  two queries of one episode with cameras, by the real job

It takes 50 GB of disk in TMPDIR, and memory as it says.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pi05.config import EvalJob, Job, TrainJob
from pi05.storage import PARAMS, RunPaths, connect
from pi05ctl.spec.render import render, to_json
from pi05ctl.spec.runspec import RunSpec, parse_assignment
from pi05ctl.spec.settings import FILE, Settings

GB = 1e9
TASK, WEIGHTS = "pushcube", "pi05_base"
SMALL = (
    "demos.count=2",
    "train.tokenizer=none",  # the released one is not to be had everywhere; without it prompts are longer
    "train.fsdp_devices=1",  # there is one device
    "eval.episodes=1",
    "eval.max_steps=16",  # of which 8 are executed a query
    "eval.batch_size=1",
    "eval.environments=1",
    "eval.workers=1",
    "eval.videos=0",
)
WRITTEN = "written.json"
"""Digests of the arrays that were saved."""


def job(kind: str, url: str, preset: str = "full") -> Job:
    """Return what the process of a job is told."""
    overrides = dict(parse_assignment(text) for text in SMALL)
    spec = RunSpec.model_validate({"kind": kind, "task": TASK, "preset": preset, "overrides": overrides})
    planner = str(Path(".venv-planner/bin/python").absolute())
    return render(spec, Settings(storage=url, python=sys.executable, planner_python=planner)).job


def training(url: str, preset: str = "full") -> TrainJob:
    """Return what a training is told."""
    told = job("train", url, preset)
    assert isinstance(told, TrainJob)
    return told


def evaluation(url: str) -> EvalJob:
    """Return what an evaluation is told."""
    told = job("eval", url)
    assert isinstance(told, EvalJob)
    return told


# What no command and no job does alone. Each gets the folder of all and the URL of the bucket, and says what it saw.


def draw(folder: Path, url: str) -> str:
    """Write random weights of the full model in the released form."""
    from pi05.model import tree, weights

    weights.write(folder / WEIGHTS / PARAMS, tree.initial(training(url).model, seed=0))
    return f"{sum(path.stat().st_size for path in (folder / WEIGHTS).rglob('*')) / GB:.1f} GB of files"


def opened(_: Path, url: str) -> str:
    """Fetch the weights, and bring them onto the device as a policy has them."""
    return f"{_bytes(_weights(url, 'bfloat16')) / GB:.2f} GB of arrays"


def saved(folder: Path, url: str) -> str:
    """Begin a LoRA run from the weights, as a training does, and write its state, as a checkpoint is written."""
    import jax
    import numpy as np

    from pi05.training import checkpoint, loop

    random = np.random.default_rng(0)
    with _assembled(training(url, "lora")) as (run, around):
        state = loop.start(run, around)
        state = replace(state, opt_state=jax.tree.map(partial(_drawn, random), state.opt_state))
        (folder / WRITTEN).write_text(json.dumps(_digests(state)))
        with around.storage.stage(around.paths.checkpoint(1)) as staged:
            checkpoint.write(staged, checkpoint.of(state, run.loader.recipe, run.meta(1)))
        return f"{_bytes(state) / GB:.2f} GB of arrays"


def resumed(folder: Path, url: str) -> str:
    """Open that checkpoint as a training that goes on does, and compare."""
    from pi05.training import loop

    with _assembled(training(url, "lora")) as (run, around):
        written, found = json.loads((folder / WRITTEN).read_text()), _digests(loop.start(run, around))
    around.storage.delete(around.paths.root)  # the room is needed
    if different := [path for path in written.keys() | found.keys() if written.get(path) != found.get(path)]:
        raise SystemExit(f"{len(different)} arrays of {len(written)} are not what was written: {different[:5]}")
    return f"{len(found)} arrays, each bit for bit what was written"


def trained(_: Path, url: str) -> str:
    """Put the weights into the bucket as the checkpoint that the evaluation looks for."""
    from pi05.training import checkpoint

    told = training(url).model_copy(update={"run": evaluation(url).train_run})
    params = _weights(url, "float32")
    with _assembled(told) as (run, around):
        around.storage.delete(f"weights/{WEIGHTS}")  # the room is needed
        with around.storage.stage(around.paths.checkpoint(1)) as staged:
            checkpoint.write(staged, checkpoint.Checkpoint(params, None, run.loader.recipe, run.meta(1)))
    return f"{_bytes(params) / GB:.2f} GB of arrays"


def _weights(url: str, dtype: str) -> dict[str, Any]:
    from pi05.model import weights

    model = training(url).model
    folder = connect(url).open(f"weights/{WEIGHTS}", (PARAMS,))
    return weights.read(folder / PARAMS, model, weights.for_acting(model, dtype))


@contextlib.contextmanager
def _assembled(told: TrainJob) -> Iterator[tuple[Any, Any]]:
    """Yield a training and what is around it."""
    from pi05.jobs import train
    from pi05.jobs.runtime import Context

    context = Context(connect(told.storage), RunPaths(told.run))
    with train.assembled(told, context) as run:
        yield run, context


def _drawn(random: Any, array: Any) -> Any:
    """Return random numbers in the place of an array, which is given up; counts are left as they are."""
    import jax
    import numpy as np

    if not array.ndim:
        return array
    shape, place = array.shape, array.sharding
    array.delete()
    return jax.device_put(random.standard_normal(shape, np.float32), place)


def _bytes(arrays: Any) -> int:
    import jax

    return sum(array.nbytes for array in jax.tree.leaves(arrays))


def _digests(state: Any) -> dict[str, str]:
    """Return a digest of each array's bits and type, by path."""
    import jax
    import numpy as np

    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() + str(array.dtype)
        for path, array in jax.tree_util.tree_leaves_with_path(state)
    }


INSIDE: dict[str, Callable[[Path, str], str]] = {
    function.__name__: function for function in (draw, opened, saved, resumed, trained)
}

# The stages, and how they are measured.


def main() -> None:
    """Run every stage and print its time and its peak memory."""
    from tests.gcs.emulator import Emulator, Line, new_bucket

    with tempfile.TemporaryDirectory(prefix="pi05-full-size-") as name, contextlib.ExitStack() as ended:
        folder, server = Path(name), Emulator(Line())
        ended.callback(server.line.close)
        server.start()
        ended.callback(server.stop)
        os.environ |= {"TMPDIR": name, "XDG_CACHE_HOME": name, "STORAGE_EMULATOR_HOST": server.url}
        url = new_bucket(server)
        os.environ["JAX_PLATFORMS"] = "cpu"
        stages = {name: _measured(name, command, folder) for name, command in _commands(folder, url)}
    largest = max(stage["peak_gb"] for stage in stages.values())
    seconds = round(sum(stage["seconds"] for stage in stages.values()))
    print(json.dumps({"name": "full_size", "seconds": seconds, "peak_gb": largest, "stages": stages}))


def _commands(folder: Path, url: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each stage's command when the stage before has ended."""

    def inside(name: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.full_size", name, str(folder), url]

    def ours(told: Job, module: str) -> list[str]:
        path = folder / f"{module}.json"
        path.write_bytes(to_json(told))
        return [sys.executable, "-m", f"pi05.jobs.{module}", str(path)]

    weights = [sys.executable, "-m", "pi05ctl", "weights"]
    (folder / FILE).write_text(f'target = "cluster"\n[cluster]\nstorage = "{url}"\n')
    yield "demos", ours(job("demos", url), "demos")
    yield "draw", inside("draw")
    yield "push", [*weights, "push", WEIGHTS, "--from", str(folder / WEIGHTS)]
    shutil.rmtree(folder / WEIGHTS)
    yield "verify", [*weights, "verify", WEIGHTS]
    for name in ("opened", "saved", "resumed", "trained"):
        yield name, inside(name)
    shutil.rmtree(folder / f"pi05-{os.getuid()}")  # copies of what is in the bucket
    yield "evaluate", ours(evaluation(url), "evaluate")


def _measured(name: str, command: list[str], folder: Path) -> dict[str, float]:
    """Run a process; return its seconds, and the peak memory of it or of the largest that it started."""
    start, log = time.monotonic(), folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    words = log.read_text()
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{name} ended with {code}:\n{words[-3000:]}")
    stage = {"seconds": round(time.monotonic() - start, 1), "peak_gb": round(used.ru_maxrss * 1024 / GB, 1)}
    print(
        f"{name:9} {stage['seconds']:7.1f} s  {stage['peak_gb']:5.1f} GB  {words.strip().splitlines()[-1]}", flush=True
    )
    return stage


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(INSIDE[sys.argv[1]](Path(sys.argv[2]), sys.argv[3]))
    else:
        main()
